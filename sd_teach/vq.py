"""A first stage whose latents are entries of a codebook, LDM's other kind; Stable Diffusion itself does not use it.

Shape letters: b batch, z latent channels, h and w sides of whatever passes through.
van den Oord et al. 2017, https://arxiv.org/abs/1711.00937; Rombach et al. 2022, https://arxiv.org/abs/2112.10752, 3.1.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sd_teach.ddim import ddim_step
from sd_teach.vae import Decoder, Encoder, VAEConfig


class VectorQuantizer(nn.Module):
    """[b, z, h, w] -> same: every place becomes the nearest of n_embed codes. van den Oord et al. 2017, equation 1."""

    def __init__(self, n_embed: int, z_channels: int):
        super().__init__()
        self.embedding = nn.Embedding(n_embed, z_channels)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_embed, 1.0 / n_embed)

    def forward(self, z: Tensor) -> Tensor:
        vectors = z.permute(0, 2, 3, 1)
        nearest = torch.cdist(vectors.flatten(0, 2), self.embedding.weight).argmin(dim=1)
        return self.embedding(nearest).view(vectors.shape).permute(0, 3, 1, 2)


class VQModel(nn.Module):
    """The autoencoder around it, as LDM samples with it (VQModelInterface): it quantizes on the way out, not in."""

    def __init__(self, config: VAEConfig = VAEConfig(), n_embed: int = 8192):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        conv_out, z = self.encoder.conv_out, config.z_channels
        self.encoder.conv_out = nn.Conv2d(conv_out.in_channels, z, 3, padding=1)  # a latent, not a mean and a variance
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(n_embed, z)
        self.quant_conv = nn.Conv2d(z, z, 1)
        self.post_quant_conv = nn.Conv2d(z, z, 1)

    def encode(self, x: Tensor) -> Tensor:
        """x: [b, 3, h, w] in [-1, 1] -> latent [b, z, h/8, w/8], not yet on the codes."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        """z: [b, z, h/8, w/8] -> picture [b, 3, h, w], from the nearest codes unless told otherwise."""
        return self.decoder(self.post_quant_conv(z if force_not_quantize else self.quantize(z)))


def quantized_ddim_step(
    quantize: Callable[[Tensor], Tensor], x: Tensor, eps: Tensor, alpha_bar_t: Tensor, alpha_bar_prev: Tensor
) -> tuple[Tensor, Tensor]:
    """ddim_step without fresh noise, whose pred_x0 is moved to the nearest codes before it is used.

    LDM's quantize_denoised, for ddim.run_steps: `partial(quantized_ddim_step, vq.quantize)` is a step. The direction
    back to x_prev stays the predicted eps, so the two no longer add up to x.
    """
    _, pred_x0 = ddim_step(x, eps, alpha_bar_t, alpha_bar_prev)
    pred_x0 = quantize(pred_x0)
    return alpha_bar_prev.sqrt() * pred_x0 + (1.0 - alpha_bar_prev).sqrt() * eps, pred_x0
