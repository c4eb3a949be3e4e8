"""Other ways to take the steps of a run: step functions and loops of the same family as ddim.

All of them follow the same path, the probability flow from noise to latent; they differ in how well a step keeps to it.
Shape letters: b batch, c, h, w sides of the latent, S number of steps.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sd_teach.ddim import DDIMState, ddim_sample, ddim_timesteps, run_steps
from sd_teach.noise import NoiseSchedule


def euler_step(x: Tensor, eps: Tensor, alpha_bar_t: Tensor, alpha_bar_prev: Tensor) -> tuple[Tensor, Tensor]:
    """One step along the tangent, where noise is added and the signal is not shrunk. Karras et al. 2022, algorithm 1.

        x / sqrt(alpha_bar) = x0 + s noise,  s = sqrt((1 - alpha_bar) / alpha_bar)
        d (x / sqrt(alpha_bar)) / d s = eps

    This is ddim_step without fresh noise, written otherwise: the two agree to rounding.
    Arguments and result as in ddim_step.  https://arxiv.org/abs/2206.00364
    """
    s, s_prev = ((1.0 - alpha_bar_t) / alpha_bar_t).sqrt(), ((1.0 - alpha_bar_prev) / alpha_bar_prev).sqrt()
    unscaled = x / alpha_bar_t.sqrt()
    return alpha_bar_prev.sqrt() * (unscaled + (s_prev - s) * eps), unscaled - s * eps


def dpmpp_2m_step(
    x: Tensor,
    eps: Tensor,
    alpha_bar_t: Tensor,
    alpha_bar_prev: Tensor,
    alpha_bar_last: Tensor | None = None,
    x0_last: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of DPM-Solver++(2M), of second order for one network call. Lu et al. 2022, algorithm 2.

        lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar))
        h      = lambda_prev - lambda_t,  r = (lambda_t - lambda_last) / h
        D      = (1 + 1 / 2r) pred_x0 - 1 / 2r x0_last
        x_prev = sqrt(1 - alpha_bar_prev) / sqrt(1 - alpha_bar_t) x - sqrt(alpha_bar_prev) (exp(-h) - 1) D

    alpha_bar_last, x0_last: alpha_bar_t and pred_x0 of the step before. Without them D is pred_x0, which is DDIM's
    step; the same where alpha_bar_prev is 1, since h would be infinite.
    Other arguments and result as in ddim_step.  https://arxiv.org/abs/2211.01095
    """
    pred_x0 = (x - (1.0 - alpha_bar_t).sqrt() * eps) / alpha_bar_t.sqrt()
    h = _half_log_snr(alpha_bar_prev) - _half_log_snr(alpha_bar_t)
    target = pred_x0
    if x0_last is not None and alpha_bar_prev < 1:
        r = (_half_log_snr(alpha_bar_t) - _half_log_snr(alpha_bar_last)) / h
        target = pred_x0 + (pred_x0 - x0_last) / (2.0 * r)
    shrunk = ((1.0 - alpha_bar_prev) / (1.0 - alpha_bar_t)).sqrt() * x
    return shrunk - alpha_bar_prev.sqrt() * torch.expm1(-h) * target, pred_x0


def _half_log_snr(alpha_bar: Tensor) -> Tensor:
    return 0.5 * (alpha_bar / (1.0 - alpha_bar)).log()


def log_snr_timesteps(steps: int, schedule: NoiseSchedule) -> Tensor:
    """S time steps from T-1 down, even in lambda instead of in t, so that the last one goes to 0. LongTensor [S].

    Ascending like ddim_timesteps, and like it all of 0..T-1 where S = T. Steps of less than 1 in t become 1.
    A method of second order needs them ("uniform in logSNR"): of steps even in t, the last are far larger in lambda.
    Raises ValueError unless 1 <= steps <= T.
    """
    T = schedule.num_timesteps
    if not 1 <= steps < T:
        return ddim_timesteps(steps, T)
    falling = _half_log_snr(schedule.alphas_cumprod.double())
    even = torch.linspace(float(falling[0]), float(falling[-1]), steps + 1, dtype=torch.float64)[1:]
    t = (falling[:, None] - even).abs().argmin(dim=0)
    i = torch.arange(steps)
    return i + (t - i).cummax(dim=0).values.clamp(1, T - steps)  # t - i grows: no time step comes twice


def euler_sample(
    eps_model: Callable[[Tensor, Tensor], Tensor],
    x_T: Tensor,
    schedule: NoiseSchedule,
    steps: int = 20,
    *,
    timesteps: Tensor | None = None,
    blend: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[DDIMState]:
    """Run Euler's method; arguments, states and errors as in ddim_sample, without fresh noise."""
    timesteps = ddim_timesteps(steps, schedule.num_timesteps) if timesteps is None else timesteps
    return run_steps(euler_step, eps_model, x_T, schedule, timesteps, blend)


def dpmpp_2m_sample(
    eps_model: Callable[[Tensor, Tensor], Tensor],
    x_T: Tensor,
    schedule: NoiseSchedule,
    steps: int = 20,
    *,
    timesteps: Tensor | None = None,
    blend: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[DDIMState]:
    """Run DPM-Solver++(2M) over time steps even in log SNR; as ddim_sample otherwise, without fresh noise."""
    timesteps = log_snr_timesteps(steps, schedule) if timesteps is None else timesteps
    last = ()  # what a step leaves for the next one

    def step(x: Tensor, eps: Tensor, alpha_bar_t: Tensor, alpha_bar_prev: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal last
        x_prev, pred_x0 = dpmpp_2m_step(x, eps, alpha_bar_t, alpha_bar_prev, *last)
        last = (alpha_bar_t, pred_x0)
        return x_prev, pred_x0

    return run_steps(step, eps_model, x_T, schedule, timesteps, blend)


SAMPLERS = {"ddim": ddim_sample, "euler": euler_sample, "dpm-solver++": dpmpp_2m_sample}


def sampler_timesteps(sampler: str, steps: int, schedule: NoiseSchedule) -> Tensor:
    """The time steps that a sampler, one of SAMPLERS, takes by itself. LongTensor [S], ascending."""
    if sampler == "dpm-solver++":
        return log_snr_timesteps(steps, schedule)
    return ddim_timesteps(steps, schedule.num_timesteps)
