"""The three networks under the names the checkpoint has for them, and the scaling that joins them.

Shape letters: b batch, h and w sides of the picture in pixels, n = 77 token slots, d width of the text states.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sd_teach.noise import NoiseSchedule, ScheduleConfig
from sd_teach.text_encoder import FrozenCLIPEmbedder, TextConfig
from sd_teach.unet import UNetConfig, UNetModel
from sd_teach.vae import AutoencoderKL, VAEConfig


@dataclass(frozen=True)
class Defaults:
    """What a run does unless told otherwise."""

    image_size: int = 512  # pixels on each side, what the model was trained at
    steps: int = 20
    guidance_scale: float = 7.5
    guidance_until: int = 0  # time step below which the scale is at most 1; 0: none
    eta: float = 0.0  # 0..1, how much fresh noise each of DDIM's steps adds; 1: as much as DDPM


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is not a weight; the defaults are Stable Diffusion v1.5's."""

    text: TextConfig = field(default_factory=TextConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    scale_factor: float = 0.18215  # 1 / standard deviation of the encoder's latents
    defaults: Defaults = field(default_factory=Defaults)

    @property
    def size_multiple(self) -> int:
        """Sides of a picture must be multiples of this: 8 in the VAE times 8 in the UNet, 64."""
        return self.vae.downsampling * self.unet.downsampling


class DiffusionWrapper(nn.Module):
    """Hands the conditioning to the UNet; also what puts `model.diffusion_model.` before its names."""

    def __init__(self, diffusion_model: UNetModel):
        super().__init__()
        self.diffusion_model = diffusion_model

    def forward(self, x: Tensor, t: Tensor, c_crossattn: list[Tensor]) -> Tensor:
        """x: [b, 4, h/8, w/8]; t: [b]; c_crossattn: text states [b, n_i, d], joined along n. Returns x's shape."""
        return self.diffusion_model(x, t, torch.cat(c_crossattn, dim=1))


class LatentDiffusion(nn.Module):
    """Stable Diffusion's networks; its state dict has the 1,130 names and shapes of the real checkpoint."""

    def __init__(self, config: ModelConfig = ModelConfig()):
        super().__init__()
        self.config = config
        self.schedule = NoiseSchedule(config.schedule)
        self.model = DiffusionWrapper(UNetModel(config.unet))
        self.first_stage_model = AutoencoderKL(config.vae)
        self.cond_stage_model = FrozenCLIPEmbedder(config.text)

    def apply_model(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Predict the noise in x: [b, 4, h/8, w/8], at time steps t: [b], given text states [b, n, d].

        The UNet may run in half precision; x and the answer keep the sampler's float32.
        """
        dtype = self.model.diffusion_model.out[2].weight.dtype
        return self.model(x.to(dtype), t, [context.to(dtype)]).to(x.dtype)

    def get_learned_conditioning(self, prompts: list[str]) -> Tensor:
        """Prompts -> text states [b, n, d]."""
        return self.cond_stage_model(prompts)

    def encode_first_stage(self, pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pictures [b, 3, h, w] in [-1, 1] -> a sampled latent [b, 4, h/8, w/8], scaled to about unit variance."""
        return self.config.scale_factor * self.first_stage_model.encode(pictures).sample(generator)

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Latent [b, 4, h/8, w/8] of about unit variance -> pictures [b, 3, h, w]; z is left as it was."""
        return self.first_stage_model.decode(z / self.config.scale_factor)
