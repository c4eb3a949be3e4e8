"""DDIM against diffusers' DDIMScheduler, with a made-up noise predictor and with guided UNets.

The scheduler multiplies its alphas up in float32, ours in float64, and the difference of 1e-6 is most of what two runs
differ by. So every run is compared twice: as it is, and in float64 with our alphas given to the scheduler.
"""

import pytest
import torch
from diffusers import DDIMScheduler
from parity.diffusers_twins import unet_twins
from torch.testing import assert_close

from sd_teach.ddim import ddim_sample
from sd_teach.guidance import GuidedModel
from sd_teach.noise import NoiseSchedule
from sd_teach.unet import UNetConfig

SCHEDULE = NoiseSchedule()
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 5e-5), (torch.float64, 1e-11)], ids=["float32", "float64, same alphas"]
)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def their_scheduler(steps, dtype=torch.float32, **settings):
    settings = dict(steps_offset=1, set_alpha_to_one=False) | settings
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, **settings
    )
    scheduler.set_timesteps(steps)
    if dtype == torch.float64:
        scheduler.alphas_cumprod = SCHEDULE.alphas_cumprod
        if not settings["set_alpha_to_one"]:
            scheduler.final_alpha_cumprod = SCHEDULE.alphas_cumprod[0]
    return scheduler


def predictor(x, t):
    """The right answer for data of standard deviation 1/2, which keeps a run in bounds, and something bent."""
    alpha_bar = SCHEDULE.alphas_cumprod[t].view(-1, 1, 1, 1)
    right = (1 - alpha_bar).sqrt() / (1 - 0.75 * alpha_bar) * x
    return right + 0.1 * torch.sin(3 * x + 0.01 * t.view(-1, 1, 1, 1))


def their_run(scheduler, x, eta, noises):
    states = []
    for t, noise in zip(scheduler.timesteps, noises, strict=True):
        output = scheduler.step(predictor(x, t.expand(len(x))), t, x, eta=eta, variance_noise=noise)
        x = output.prev_sample
        states.append((int(t), x, output.pred_original_sample))
    return states


def compare_runs(scheduler, dtype, atol, eta=0.0):
    steps = len(scheduler.timesteps)
    x, noises = normal(3, 4, 4, 4, dtype=dtype), normal(steps, 3, 4, 4, 4, dtype=dtype, seed=1)
    unused = iter(noises)
    ours = [(s.t, s.x_prev, s.pred_x0) for s in ddim_sample(predictor, x, SCHEDULE, steps, eta, lambda _: next(unused))]
    theirs = their_run(scheduler, x, eta, noises)
    assert [state[0] for state in ours] == [state[0] for state in theirs]
    for which in (1, 2):  # x_prev, pred_x0
        expected = torch.stack([state[which] for state in theirs])
        assert 0.1 < expected.std() < 3
        assert_close(torch.stack([state[which] for state in ours]), expected, rtol=0, atol=atol)


def test_the_schedule_equals_diffusers():
    assert_close(SCHEDULE.alphas_cumprod, their_scheduler(20).alphas_cumprod, rtol=2e-6, atol=0)


@PRECISIONS
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 50, 100, 250, 500])
def test_a_run_equals_diffusers(steps, dtype, atol):
    compare_runs(their_scheduler(steps, dtype), dtype, atol)


@PRECISIONS
def test_a_run_over_all_time_steps_equals_diffusers(dtype, atol):
    compare_runs(their_scheduler(1000, dtype, steps_offset=0, set_alpha_to_one=True), dtype, atol)


@PRECISIONS
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 5, 20, 100, 500])
def test_a_noisy_run_equals_diffusers_given_the_same_noises(steps, eta, dtype, atol):
    compare_runs(their_scheduler(steps, dtype), dtype, atol, eta)


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
@PRECISIONS
@torch.no_grad()
def test_a_guided_run_through_the_unet_equals_diffusers(scale, dtype, atol):
    config = UNetConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2, 1),
        context_dim=24,
        norm_groups=16,
    )
    unet, their_unet = unet_twins(config, dtype)
    for convolution in (unet.out[2], their_unet.conv_out):
        convolution.weight.mul_(0.2)  # random answers as large as the latent would carry it far away
        convolution.bias.mul_(0.2)
    x_T = normal(2, 4, 8, 8, dtype=dtype)
    cond, uncond = normal(2, 7, 24, dtype=dtype, seed=1), normal(2, 7, 24, dtype=dtype, seed=2)

    *_, last = ddim_sample(GuidedModel(unet, cond, uncond, scale), x_T, SCHEDULE, steps=20)

    scheduler, x = their_scheduler(20, dtype), x_T
    for t in scheduler.timesteps:
        eps_uncond, eps_cond = their_unet(x, t, uncond).sample, their_unet(x, t, cond).sample
        x = scheduler.step(eps_uncond + scale * (eps_cond - eps_uncond), t, x).prev_sample
    assert_close(last.x_prev, x, rtol=0, atol=atol)
