"""Euler and DPM-Solver++(2M) against their equations and against theory; diffusers is asked in parity/."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from test_ddim import ALPHA_BAR, MEAN, SCHEDULE, fake_eps, gaussian_eps, randn, variance
from torch.testing import assert_close

from sd_teach.ddim import ddim_sample, ddim_step, ddim_timesteps, run_steps
from sd_teach.noise import NoiseSchedule, ScheduleConfig
from sd_teach.samplers import (
    SAMPLERS,
    dpmpp_2m_sample,
    dpmpp_2m_step,
    euler_sample,
    euler_step,
    log_snr_timesteps,
    sampler_timesteps,
)

EVERY = pytest.mark.parametrize("sample", SAMPLERS.values(), ids=SAMPLERS)


def f64(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def half_log_snr(alpha_bar: float) -> float:
    return np.log(np.sqrt(alpha_bar) / np.sqrt(1 - alpha_bar))


# one step


@pytest.mark.parametrize("step", [euler_step, dpmpp_2m_step])
@pytest.mark.parametrize(("now", "before"), [(0.3, 0.6), (0.0047, 0.02), (0.998, 0.99915), (0.9985, 1.0)])
def test_a_first_step_is_the_step_of_ddim(step, now, before):
    x, eps = randn(2, 4, 8, 8).double(), randn(2, 4, 8, 8, seed=1).double()
    assert_close(step(x, eps, *f64(now, before)), ddim_step(x, eps, *f64(now, before)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("last", "now", "before"), [(0.1, 0.3, 0.6), (0.0047, 0.02, 0.05), (0.9, 0.998, 0.99915)])
def test_a_later_step_of_dpm_solver_is_its_paper_s(last, now, before):
    x, eps, x0_last = (randn(2, 4, 8, 8, seed=k).double() for k in range(3))
    x_prev, pred_x0 = dpmpp_2m_step(x, eps, *f64(now, before, last), x0_last)

    h, h_last = half_log_snr(before) - half_log_snr(now), half_log_snr(now) - half_log_snr(last)
    x0 = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
    target = (1 + h / (2 * h_last)) * x0 - h / (2 * h_last) * x0_last
    expected = np.sqrt(1 - before) / np.sqrt(1 - now) * x - np.sqrt(before) * (np.exp(-h) - 1) * target
    assert_close(pred_x0, x0, rtol=0, atol=1e-12)
    assert_close(x_prev, expected, rtol=0, atol=1e-12)
    assert (x_prev - ddim_step(x, eps, *f64(now, before))[0]).std() > 0.01


def test_a_later_step_of_dpm_solver_to_no_noise_ends_at_the_prediction():
    x, eps, x0_last = (randn(2, 4, 8, 8, seed=k).double() for k in range(3))
    x_prev, pred_x0 = dpmpp_2m_step(x, eps, *f64(0.9985, 1.0, 0.9), x0_last)
    assert torch.equal(x_prev, pred_x0)


# a run


@pytest.mark.parametrize("steps", [1, 5, 20, 999, 1000])
def test_euler_is_ddim_in_other_coordinates(steps):
    x_T = randn(2, 4, 2, 2).double()
    ours, ddim = (list(sample(fake_eps, x_T, SCHEDULE, steps)) for sample in (euler_sample, ddim_sample))
    assert_close([s.x_prev for s in ours], [s.x_prev for s in ddim], rtol=1e-5, atol=1e-5)  # coefficients are float32


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 5, 20, 1000])
def test_states_come_in_order_and_each_takes_up_where_the_last_one_stopped(name, steps):
    x_T = randn(2, 4, 2, 2)
    states = list(SAMPLERS[name](fake_eps, x_T, SCHEDULE, steps))
    assert [state.index for state in states] == list(range(steps))
    assert [state.t for state in states] == sampler_timesteps(name, steps, SCHEDULE).tolist()[::-1]
    assert torch.equal(states[0].x, x_T)
    assert all(torch.equal(after.x, before.x_prev) for before, after in pairwise(states))
    assert all(torch.equal(s.eps, fake_eps(s.x, torch.full((2,), s.t))) for s in states)


@EVERY
def test_a_run_over_all_time_steps_ends_at_the_prediction_itself(sample):
    """LDM's use_original_steps."""
    *_, state = sample(gaussian_eps, randn(1, 4, 2, 2).double(), SCHEDULE, 1000)
    assert_close(state.x_prev, state.pred_x0, rtol=0, atol=1e-12)


@EVERY
def test_the_end_of_such_a_run_ends_there_too(sample):
    """Image to image with 1000 steps."""
    *_, state = sample(gaussian_eps, randn(1, 4, 2, 2).double(), SCHEDULE, timesteps=torch.arange(3))
    assert_close(state.x_prev, state.pred_x0, rtol=0, atol=1e-12)
    assert not torch.allclose(state.x_prev, state.x)


@EVERY
def test_a_number_of_steps_out_of_range_is_refused_when_called(sample):
    with pytest.raises(ValueError, match="between 1 and 1000, got 0"):
        sample(fake_eps, randn(1, 4, 2, 2), SCHEDULE, 0)


@EVERY
def test_the_second_half_of_a_run_is_the_run_from_its_middle(sample):
    """Exactly for DDIM and Euler; DPM-Solver++ has forgotten the step before the first."""
    whole = list(sample(fake_eps, randn(2, 4, 2, 2).double(), SCHEDULE, timesteps=ddim_timesteps(20)))
    half = list(sample(fake_eps, whole[10].x, SCHEDULE, timesteps=ddim_timesteps(20)[:10]))
    assert [state.t for state in half] == [state.t for state in whole[10:]]
    same = torch.equal(half[-1].x_prev, whole[-1].x_prev)
    assert same == (sample is not dpmpp_2m_sample)
    assert_close(half[-1].x_prev, whole[-1].x_prev, rtol=0, atol=0.1)


@EVERY
def test_blend_is_called_before_each_step_and_the_step_starts_from_its_answer(sample):
    seen = []

    def blend(x, t):
        seen.append((x, t.tolist()))
        return x + 1

    states = list(sample(fake_eps, randn(2, 4, 2, 2), SCHEDULE, 5, blend=blend))
    assert [t for _, t in seen] == [[state.t] * 2 for state in states]
    assert all(torch.equal(state.x, x + 1) for state, (x, _) in zip(states, seen, strict=True))
    assert all(torch.equal(x, state.x_prev) for state, (x, _) in zip(states, seen[1:], strict=False))
    assert all(torch.equal(s.eps, fake_eps(s.x, torch.full((2,), s.t))) for s in states)


def test_any_step_of_this_form_can_be_run():
    """A sampler is a step: this one never moves."""
    states = list(
        run_steps(lambda x, eps, now, before: (x, eps), fake_eps, randn(1, 4, 2, 2), SCHEDULE, torch.arange(3))
    )
    assert [state.t for state in states] == [2, 1, 0]
    assert all(torch.equal(state.x_prev, states[0].x) for state in states)


# time steps even in log SNR


def test_every_number_of_steps_even_in_log_snr_gives_that_many_ascending_steps_up_to_the_last():
    for steps in range(1, 1001):
        t = log_snr_timesteps(steps, SCHEDULE)
        assert t.dtype == torch.long and t.shape == (steps,)
        assert t[0] >= (steps < 1000) and t[-1] == 999 and (t.diff() > 0).all(), steps


@pytest.mark.parametrize("steps", [2, 5, 10])
def test_they_are_even_in_log_snr(steps):
    values = half_log_snr(ALPHA_BAR[[0, *log_snr_timesteps(steps, SCHEDULE)]])
    even = np.linspace(values[0], values[-1], steps + 1)
    nearest = abs(half_log_snr(ALPHA_BAR)[:, None] - even).min(axis=0)  # time steps are whole
    np.testing.assert_allclose(abs(values - even), nearest, atol=1e-6)
    assert nearest.max() < 0.1


def test_they_follow_the_schedule_they_are_for():
    schedule = NoiseSchedule(ScheduleConfig(num_timesteps=10, beta_start=0.1, beta_end=0.5))
    assert log_snr_timesteps(10, schedule).tolist() == list(range(10))
    assert log_snr_timesteps(9, schedule).tolist() == list(range(1, 10))
    assert log_snr_timesteps(3, schedule)[-1] == 9


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_refused_for_them_too(steps):
    with pytest.raises(ValueError, match=f"between 1 and 1000, got {steps}"):
        log_snr_timesteps(steps, SCHEDULE)


# theory: on a Gaussian the end of the path is known, as in test_ddim


def error(sample, timesteps) -> float:
    x_T = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64).view(4, 1, 1, 1)
    *_, state = sample(gaussian_eps, x_T, SCHEDULE, timesteps=timesteps)
    first, last = ALPHA_BAR[timesteps[-1]], ALPHA_BAR[0]
    flow = np.sqrt(last) * MEAN + (x_T - np.sqrt(first) * MEAN) * np.sqrt(variance(last) / variance(first))
    return float((state.x_prev - flow).abs().max() / (flow - np.sqrt(last) * MEAN).abs().max())


def test_the_error_of_euler_halves_when_the_steps_double():
    errors = [error(euler_sample, ddim_timesteps(steps)) for steps in (50, 100, 200, 400)]
    assert all(1.85 < a / b < 2.05 for a, b in pairwise(errors)), errors


def test_the_error_of_dpm_solver_falls_to_a_quarter_when_the_steps_double():
    """A method of second order, until whole time steps are too coarse for it."""
    ten, twenty, forty = (error(dpmpp_2m_sample, log_snr_timesteps(steps, SCHEDULE)) for steps in (10, 20, 40))
    assert 3.0 < ten / twenty < 5.0 and 3.0 < twenty / forty < 5.0
    assert ten < error(euler_sample, ddim_timesteps(100))


def test_dpm_solver_gains_little_over_time_steps_even_in_t():
    even_in_t, even_in_log_snr = ddim_timesteps(20), log_snr_timesteps(20, SCHEDULE)
    assert error(dpmpp_2m_sample, even_in_t) > 0.8 * error(euler_sample, even_in_t)
    assert error(dpmpp_2m_sample, even_in_log_snr) < 0.1 * error(euler_sample, even_in_log_snr)
