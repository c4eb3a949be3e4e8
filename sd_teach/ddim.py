"""Step 3 of the pipeline: from noise to a latent in a few deterministic steps.

Shape letters: b batch, c, h, w sides of the latent, S number of steps.
Song, Meng & Ermon 2021 (DDIM), https://arxiv.org/abs/2010.02502; alpha there is alpha_bar here (and in DDPM).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sd_teach.noise import NoiseSchedule


def ddim_timesteps(steps: int, num_timesteps: int = 1000) -> Tensor:
    """The S time steps of a run, ascending: t_i = i · T // S + 1; all of 0..T-1 where S = T. LongTensor [S].

    S steps are S steps: `range(1, T + 1, T // S)` has 31 of them for S = 30 and runs past the table for S = 600.
    Raises ValueError unless 1 <= steps <= num_timesteps.
    """
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps must lie between 1 and {num_timesteps}, got {steps}")
    if steps == num_timesteps:
        return torch.arange(num_timesteps)
    return torch.arange(steps) * num_timesteps // steps + 1


def last_timesteps(timesteps: Tensor, strength: float) -> Tensor:
    """The time steps image to image goes through: the lowest int(strength · S) of a run's S. SDEdit, section 3.

    timesteps: LongTensor [S], ascending. strength: above 0 to 1; 1 gives all of them.
    LDM's t_enc; its script then noises one step further than it takes away, and so fails at strength 1.
    Raises ValueError for a strength outside 0..1, or one so small that no step is left.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength must lie between 0 and 1, got {strength}")
    count = int(strength * len(timesteps))
    if count == 0:
        raise ValueError(f"a strength of {strength} leaves none of {len(timesteps)} steps: give more of either")
    return timesteps[:count]


def ddim_sigma(alpha_bar_t: Tensor, alpha_bar_prev: Tensor, eta: float) -> Tensor:
    """Standard deviation of the fresh noise: 0 for eta = 0 (DDIM), DDPM's for eta = 1. DDIM, equation 16."""
    variance = (1.0 - alpha_bar_prev) / (1.0 - alpha_bar_t) * (1.0 - alpha_bar_t / alpha_bar_prev)
    return eta * variance.sqrt()


def ddim_step(
    x: Tensor,
    eps: Tensor,
    alpha_bar_t: Tensor,
    alpha_bar_prev: Tensor,
    sigma: Tensor | float = 0.0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step from t to the next lower time step of the run. DDIM, equation 12.

        pred_x0 = (x - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)
        x_prev  = sqrt(alpha_bar_prev) pred_x0 + sqrt(1 - alpha_bar_prev - sigma^2) eps + sigma noise

    x, eps, noise: [b, c, h, w], the latent, the noise predicted in it and fresh noise (None where sigma is 0).
    alpha_bar_t, alpha_bar_prev, sigma: scalars. Returns (x_prev, pred_x0), both [b, c, h, w].
    """
    pred_x0 = (x - (1.0 - alpha_bar_t).sqrt() * eps) / alpha_bar_t.sqrt()
    direction = (1.0 - alpha_bar_prev - sigma**2).sqrt() * eps
    x_prev = alpha_bar_prev.sqrt() * pred_x0 + direction
    return (x_prev if noise is None else x_prev + sigma * noise), pred_x0


@dataclass(frozen=True)
class DDIMState:
    """What one step saw and made; tensors are [b, c, h, w]."""

    index: int  # 0..S-1 in the order of the run
    t: int  # time step, falling
    x: Tensor  # the latent that came in
    eps: Tensor  # the noise predicted in it
    pred_x0: Tensor  # where it would end if that prediction were right
    x_prev: Tensor  # the latent that goes on


def ddim_sample(
    eps_model: Callable[[Tensor, Tensor], Tensor],
    x_T: Tensor,
    schedule: NoiseSchedule,
    steps: int = 20,
    eta: float = 0.0,
    noise: Callable[[Tensor], Tensor] | None = None,
    *,
    timesteps: Tensor | None = None,
    blend: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[DDIMState]:
    """Run DDIM from x_T [b, c, h, w], yielding a state after every step; the last state's x_prev is the result.

    eps_model: (x [b, c, h, w], t [b]) -> predicted noise [b, c, h, w].
    eta: 0 deterministic, 1 as much fresh noise as DDPM.
    noise: x -> fresh unit noise of x's shape, called once in each step whose sigma is above 0.
    timesteps, blend: what image to image and inpainting need, see run_steps; timesteps take the place of `steps`.

    The last step goes to alphas_cumprod[0], as in LDM, and not to 1; with all T steps, whose last t is 0, to 1.
    Raises ValueError for steps out of range, eta outside 0..1, or eta above 0 without noise (before the first step).
    """
    if timesteps is None:
        timesteps = ddim_timesteps(steps, schedule.num_timesteps)
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie between 0 and 1, got {eta}")
    if eta > 0 and noise is None:
        raise ValueError("eta above 0 adds fresh noise at every step: pass noise=, for example torch.randn_like")

    def step(x: Tensor, eps: Tensor, alpha_bar_t: Tensor, alpha_bar_prev: Tensor) -> tuple[Tensor, Tensor]:
        sigma = ddim_sigma(alpha_bar_t, alpha_bar_prev, eta)
        return ddim_step(x, eps, alpha_bar_t, alpha_bar_prev, sigma, noise(x) if sigma > 0 else None)

    return run_steps(step, eps_model, x_T, schedule, timesteps, blend)


def run_steps(
    step: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    eps_model: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Tensor,
    blend: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[DDIMState]:
    """The loop that all samplers share: predict the noise, take a step, from the last of the time steps to the first.

    step: (x, eps, alpha_bar_t, alpha_bar_prev) -> (x_prev, pred_x0), a sampler's own.
    x: [b, c, h, w], a latent as noisy as the last time step says. timesteps: LongTensor [S], ascending.
    blend: (x, t [b]) -> the x to go on with, called before each step; inpainting puts the known part back there.
    """
    last = schedule.alphas_cumprod[0] if timesteps[0] > 0 else torch.ones(())
    alphas = schedule.alphas_cumprod[timesteps]
    alphas_prev = torch.cat([last[None], alphas[:-1]])
    for index, i in enumerate(reversed(range(len(timesteps)))):
        t = torch.full((len(x),), int(timesteps[i]), device=x.device)
        x = blend(x, t) if blend else x
        eps = eps_model(x, t)
        x_prev, pred_x0 = step(x, eps, alphas[i], alphas_prev[i])
        yield DDIMState(index, int(timesteps[i]), x, eps, pred_x0, x_prev)
        x = x_prev
