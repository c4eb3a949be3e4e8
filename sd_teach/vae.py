"""Step 6 of the pipeline, the first stage: pictures <-> latents, 8 times smaller on each side.

Shape letters: b batch, c channels, h and w height and width of whatever passes through.
Attribute names are the checkpoint's (`first_stage_model.decoder.up.3.block.0.norm1.weight` and so on).
Rombach et al. 2022, https://arxiv.org/abs/2112.10752, section 3.1 and appendix G.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_teach.unet import Upsample


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder; the defaults are Stable Diffusion v1.5's (83,653,863 parameters)."""

    in_channels: int = 3  # RGB
    ch: int = 128  # channels of the finest level
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)  # channels of a level / ch; the picture is halved between levels
    num_res_blocks: int = 2  # blocks a level in the encoder; the decoder has one more
    z_channels: int = 4
    norm_groups: int = 32

    @property
    def downsampling(self) -> int:
        """Pixels of the picture per side of one latent: 8 for four levels."""
        return 2 ** (len(self.ch_mult) - 1)


def _norm(channels: int, config: VAEConfig) -> nn.GroupNorm:
    # 1e-6 everywhere in the VAE; the UNet's ResBlocks use PyTorch's default of 1e-5
    return nn.GroupNorm(config.norm_groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """[b, c, h, w] -> [b, out_channels, h, w]: two convolutions beside a shortcut, no time embedding."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig):
        super().__init__()
        self.norm1 = _norm(in_channels, config)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, config)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """[b, c, h, w] -> same: one head of self-attention over all h·w places, made of 1 x 1 convolutions."""

    attend = staticmethod(F.scaled_dot_product_attention)  # packing.py may put a faster one of the same result here

    def __init__(self, channels: int, config: VAEConfig):
        super().__init__()
        self.norm = _norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (conv(normed).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        h = self.attend(q, k, v)[:, 0]  # [b, hw, c]
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """[b, c, h, w] -> [b, c, h/2, w/2]; pads right and below only, where the UNet pads all four sides."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    """[b, c, h, w] -> same: block, attention, block at the coarsest resolution."""

    def __init__(self, channels: int, config: VAEConfig):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, config)
        self.attn_1 = AttnBlock(channels, config)
        self.block_2 = ResnetBlock(channels, channels, config)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Blocks of one resolution, then a change of resolution if there is one to make."""

    def __init__(self, blocks: list[ResnetBlock], **resample: nn.Module):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        for name, module in resample.items():  # named as in the checkpoint: `downsample` or `upsample`
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    """Picture [b, 3, h, w] in [-1, 1] -> moments [b, 2z, h/8, w/8]."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = config.ch
        for level, width in enumerate(widths):
            blocks = [ResnetBlock(channels if i == 0 else width, width, config) for i in range(config.num_res_blocks)]
            resample = {} if level == len(widths) - 1 else {"downsample": Downsample(width)}
            self.down.append(Level(blocks, **resample))
            channels = width
        self.mid = Middle(channels, config)
        self.norm_out = _norm(channels, config)
        self.conv_out = nn.Conv2d(channels, 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent [b, z, h/8, w/8] -> picture [b, 3, h, w], about [-1, 1]. `up[0]` is the finest level, run last."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        channels = widths[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = Middle(channels, config)
        levels = []
        for level, width in reversed(list(enumerate(widths))):
            blocks = [
                ResnetBlock(channels if i == 0 else width, width, config) for i in range(config.num_res_blocks + 1)
            ]
            levels.append(Level(blocks, **({"upsample": Upsample(width)} if level else {})))
            channels = width
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = _norm(channels, config)
        self.conv_out = nn.Conv2d(channels, config.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class DiagonalGaussian:
    """The encoder's answer: a Gaussian of its own for every latent value. moments: [b, 2z, h, w]."""

    def __init__(self, moments: Tensor):
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def mode(self) -> Tensor:
        """The most likely latent, [b, z, h, w]."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A latent drawn on the CPU, so that a seed means the same everywhere, [b, z, h, w]."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """KL divergence to N(0, 1) per picture, in nats, [b]. Kingma & Welling 2014, appendix B."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1.0 - self.logvar).sum(dim=(1, 2, 3))


class AutoencoderKL(nn.Module):
    """Stable Diffusion's first stage. Latents here are raw: scaling to unit variance is LatentDiffusion's part."""

    def __init__(self, config: VAEConfig = VAEConfig()):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """x: [b, 3, h, w] in [-1, 1] -> Gaussian over latents [b, z, h/8, w/8].

        Raises ValueError where h or w is not a multiple of the downsampling factor.
        """
        factor = self.config.downsampling
        if x.shape[-2] % factor or x.shape[-1] % factor:
            raise ValueError(f"height and width must be multiples of {factor}, got {x.shape[-2]} x {x.shape[-1]}")
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """z: [b, z, h/8, w/8], raw latent -> picture [b, 3, h, w]; values may leave [-1, 1] a little."""
        return self.decoder(self.post_quant_conv(z))
