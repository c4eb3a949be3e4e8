"""Step 2 of the pipeline: noise, how much of it at which time step, and where a run's first latent comes from.

Shape letters: b batch, c = 4 latent channels, h and w sides of the latent (the picture's / 8).
Ho et al. 2020 (DDPM), https://arxiv.org/abs/2006.11239, section 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScheduleConfig:
    """How noise grows over the time steps; the defaults are Stable Diffusion v1.5's."""

    num_timesteps: int = 1000  # T
    beta_start: float = 0.00085  # variance added at step 0
    beta_end: float = 0.012  # variance added at step T - 1


class NoiseSchedule:
    """How much signal is left at each time step: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise.

    betas: [T], variance added at step t; the square roots are evenly spaced ("scaled linear").
    alphas_cumprod: [T], alpha_bar_t = product of (1 - beta_i) for i up to t; 0.99915 at 0, 0.00466 at 999.

    Computed in float64 and cast to float32 once. Not a module: schedules have no place in a checkpoint.
    Raises ValueError unless 0 < beta_start <= beta_end < 1 and there is a time step.
    """

    def __init__(self, config: ScheduleConfig = ScheduleConfig()):
        start, end, self.num_timesteps = config.beta_start, config.beta_end, config.num_timesteps
        if self.num_timesteps < 1 or not 0 < start <= end < 1:
            raise ValueError("a schedule needs num_timesteps >= 1 and 0 < beta_start <= beta_end < 1")
        betas = torch.linspace(start**0.5, end**0.5, self.num_timesteps, dtype=torch.float64, device="cpu") ** 2
        self.betas = betas.float()
        self.alphas_cumprod = torch.cumprod(1.0 - betas, dim=0).float()


def q_sample(x0: Tensor, t: Tensor, noise: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The forward process in one jump: sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) noise. DDPM, equation 4.

    x0, noise: [b, c, h, w]; t: [b], LongTensor of time steps, 0..T-1. Returns [b, c, h, w].
    """
    alpha_bar = schedule.alphas_cumprod.to(x0.device)[t].view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x0 + (1.0 - alpha_bar).sqrt() * noise


def image_generators(seed: int, n: int = 1) -> list[torch.Generator]:
    """One CPU generator for each image, seeded seed, seed + 1, ...: image k of a batch is the image of its own seed.

    On the CPU because GPUs draw other numbers from the same seed.
    Raises ValueError for a seed outside 0..2^63 - n.
    """
    if not 0 <= seed <= 2**63 - n:
        raise ValueError(f"seed must lie between 0 and 2^63 - {n}, got {seed}")
    return [torch.Generator().manual_seed(seed + k) for k in range(n)]


def draw_noise(generators: Sequence[torch.Generator], shape: tuple[int, int, int]) -> Tensor:
    """Unit Gaussian noise [b, c, h, w], one generator's next c·h·w numbers for each image; shape: (c, h, w)."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def initial_noise(
    generators: Sequence[torch.Generator], height: int, width: int, channels: int = 4, downsampling: int = 8
) -> Tensor:
    """x_T for pictures of height x width pixels: [b, channels, height / 8, width / 8], unit variance.

    Raises ValueError where a side is not a positive multiple of the downsampling factor.
    """
    if min(height, width) < downsampling or height % downsampling or width % downsampling:
        raise ValueError(f"width and height must be positive multiples of {downsampling}, got {width} x {height}")
    return draw_noise(generators, (channels, height // downsampling, width // downsampling))
