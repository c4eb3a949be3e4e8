"""Euler and DPM-Solver++(2M) against diffusers' schedulers, with a made-up noise predictor.

Their schedulers compute in float32 whatever they are given; their table of alphas is replaced by ours.
"""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from parity.test_ddim_parity import normal, predictor
from torch.testing import assert_close

from sd_teach.ddim import ddim_timesteps
from sd_teach.noise import NoiseSchedule
from sd_teach.samplers import dpmpp_2m_sample, euler_sample

SCHEDULE = NoiseSchedule()
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # their NumPy
LDM = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def compare(ours, theirs, settings, steps, kept):
    """Run both over the last `kept` of `steps` time steps; ours, theirs: sampler and scheduler."""
    timesteps = ddim_timesteps(steps)[:kept]
    # with all 1000 steps the run ends without noise, else at time step 0
    scheduler = theirs(**LDM, **settings, final_sigmas_type="zero" if timesteps[0] == 0 else "sigma_min")
    scheduler.alphas_cumprod = SCHEDULE.alphas_cumprod
    scheduler.set_timesteps(timesteps=timesteps.flip(0).tolist())
    x_T = normal(3, 4, 4, 4)
    states = list(ours(predictor, x_T, SCHEDULE, timesteps=timesteps))
    if theirs is EulerDiscreteScheduler:  # its latents are not shrunk as noise comes in
        start = SCHEDULE.alphas_cumprod[timesteps[-1]].rsqrt()
        assert_close(scheduler.init_noise_sigma, (1 + scheduler.sigmas[0] ** 2).sqrt())
        shrink = (1 + scheduler.sigmas[1:] ** 2).rsqrt()
    else:
        start, shrink = 1.0, torch.ones(len(timesteps))
    x, expected = start * x_T, []
    for t, factor in zip(scheduler.timesteps, shrink, strict=True):
        eps = predictor(scheduler.scale_model_input(x, t), t.long().expand(3))
        x = scheduler.step(eps, t, x).prev_sample
        expected.append(factor * x)
    expected = torch.stack(expected)
    assert 0.1 < expected.std() < 3
    assert [state.t for state in states] == scheduler.timesteps.tolist()
    assert_close(torch.stack([state.x_prev for state in states]), expected, rtol=0, atol=2e-5)


RUNS = pytest.mark.parametrize(
    ("steps", "kept"), [(1, 1), (2, 2), (5, 5), (20, 20), (30, 30), (250, 250), (1000, 1000), (20, 15), (20, 1)]
)


@RUNS
def test_euler_equals_diffusers(steps, kept):
    compare(euler_sample, EulerDiscreteScheduler, dict(timestep_spacing="leading"), steps, kept)


@RUNS
def test_dpm_solver_of_second_order_equals_diffusers(steps, kept):
    settings = dict(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=False)
    compare(dpmpp_2m_sample, DPMSolverMultistepScheduler, settings, steps, kept)
