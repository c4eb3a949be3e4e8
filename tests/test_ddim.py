"""Step 3: DDIM against its equations, and where theory says what must come out."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from sd_teach.ddim import ddim_sample, ddim_sigma, ddim_step, ddim_timesteps, last_timesteps
from sd_teach.noise import NoiseSchedule, ScheduleConfig

SCHEDULE = NoiseSchedule()
ALPHA_BAR = SCHEDULE.alphas_cumprod.double().numpy()
DIVISORS = [s for s in range(1, 1000) if 1000 % s == 0]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fake_eps(x, t):
    """An eps_model that depends on both of its arguments."""
    return 0.5 * x + torch.sin(t.float()).view(-1, 1, 1, 1)


def fresh_noise(seed: int = 99):
    """A noise callable with a stream of its own."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def alphas_of_a_run(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """alpha_bar_t and alpha_bar_prev of every step in run order, float64, written down anew."""
    t = [i * 1000 // steps + 1 for i in range(steps)] if steps < 1000 else list(range(1000))
    previous = [ALPHA_BAR[0] if steps < 1000 else 1.0, *ALPHA_BAR[t[:-1]]]
    return ALPHA_BAR[t[::-1]], np.array(previous[::-1])


# time steps


def test_every_number_of_steps_gives_that_many_ascending_steps_of_the_table():
    for steps in range(1, 1001):
        t = ddim_timesteps(steps)
        assert t.dtype == torch.long and t.shape == (steps,)
        assert t[0] >= 0 and t[-1] <= 999 and (t.diff() > 0).all(), steps


@pytest.mark.parametrize("steps", DIVISORS)
def test_where_the_number_divides_1000_the_steps_are_those_of_ldm(steps):
    assert ddim_timesteps(steps).tolist() == list(range(1, 1001, 1000 // steps))


@pytest.mark.parametrize("steps", [s for s in DIVISORS if s <= 500])
def test_where_the_number_divides_1000_the_steps_are_those_of_diffusers(steps):
    twin = DDIMScheduler(steps_offset=1, timestep_spacing="leading")
    twin.set_timesteps(steps)
    assert ddim_timesteps(steps).flip(0).tolist() == twin.timesteps.tolist()


@pytest.mark.parametrize("steps", [3, 7, 30, 600, 999])
def test_other_numbers_of_steps_follow_the_formula(steps):
    assert ddim_timesteps(steps).tolist() == [i * 1000 // steps + 1 for i in range(steps)]


def test_all_1000_steps_are_0_to_999():
    assert ddim_timesteps(1000).tolist() == list(range(1000))


def test_time_steps_follow_the_length_of_the_schedule():
    assert ddim_timesteps(4, 10).tolist() == [1, 3, 6, 8]
    assert ddim_timesteps(10, 10).tolist() == list(range(10))


@pytest.mark.parametrize(("steps", "length"), [(0, 1000), (-1, 1000), (1001, 1000), (11, 10)])
def test_a_number_of_steps_out_of_range_is_refused(steps, length):
    with pytest.raises(ValueError, match=f"between 1 and {length}, got {steps}"):
        ddim_timesteps(steps, length)


@pytest.mark.parametrize(
    ("strength", "steps", "count"), [(1.0, 20, 20), (0.75, 20, 15), (0.05, 20, 1), (0.99, 20, 19), (0.5, 1000, 500)]
)
def test_a_strength_keeps_the_lowest_time_steps(strength, steps, count):
    """LDM: t_enc = int(strength * steps)."""
    assert last_timesteps(ddim_timesteps(steps), strength).tolist() == ddim_timesteps(steps).tolist()[:count]


@pytest.mark.parametrize(
    ("strength", "told"),
    [(-0.01, "between 0 and 1, got -0.01"), (1.5, "got 1.5"), (float("nan"), "got nan"), (0.04, "none of 20 steps")],
)
def test_a_strength_out_of_range_or_without_a_step_is_refused(strength, told):
    with pytest.raises(ValueError, match=told):
        last_timesteps(ddim_timesteps(20), strength)


# one step


@pytest.mark.parametrize(("alpha_bar_t", "alpha_bar_prev", "sigma"), [
    (0.3, 0.6, 0.0), (0.3, 0.6, 0.4), (0.0047, 0.02, 0.9), (0.998, 0.99915, 0.0), (0.9985, 1.0, 0.0),
])  # fmt: skip
def test_ddim_step_is_equation_12(alpha_bar_t, alpha_bar_prev, sigma):
    x, eps, noise = (randn(2, 4, 8, 8, seed=k).double() for k in range(3))
    scalars = [torch.tensor(value, dtype=torch.float64) for value in (alpha_bar_t, alpha_bar_prev, sigma)]
    x_prev, pred_x0 = ddim_step(x, eps, *scalars, noise)

    x, eps, noise = x.numpy(), eps.numpy(), noise.numpy()
    x0 = (x - np.sqrt(1 - alpha_bar_t) * eps) / np.sqrt(alpha_bar_t)
    towards_x = np.sqrt(1 - alpha_bar_prev - sigma**2) * eps
    np.testing.assert_allclose(pred_x0.numpy(), x0, rtol=1e-12)
    np.testing.assert_allclose(x_prev.numpy(), np.sqrt(alpha_bar_prev) * x0 + towards_x + sigma * noise, atol=1e-12)


def test_with_the_true_noise_a_step_goes_back_along_the_forward_process():
    x0, noise = randn(1, 4, 8, 8, seed=1).double(), randn(1, 4, 8, 8, seed=2).double()
    now, before = torch.tensor([0.2, 0.7], dtype=torch.float64)
    x_prev, pred_x0 = ddim_step(now.sqrt() * x0 + (1 - now).sqrt() * noise, noise, now, before)
    torch.testing.assert_close(pred_x0, x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(x_prev, before.sqrt() * x0 + (1 - before).sqrt() * noise, rtol=0, atol=1e-12)


def test_noise_is_not_needed_where_sigma_is_0():
    x, eps = randn(1, 4, 2, 2), randn(1, 4, 2, 2, seed=1)
    a, b = torch.tensor([0.3, 0.6])
    without = ddim_step(x, eps, a, b)[0]
    assert torch.equal(without, ddim_step(x, eps, a, b, 0.0, randn(1, 4, 2, 2, seed=2))[0])


def test_sigma_at_eta_1_is_the_ddpm_posterior():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0)
    now, before = alpha_bar[1:], alpha_bar[:-1]
    posterior = betas[1:] * (1 - before) / (1 - now)  # DDPM, equation 7
    torch.testing.assert_close(ddim_sigma(now, before, 1.0) ** 2, posterior, rtol=1e-10, atol=0)


@pytest.mark.parametrize("eta", [0.0, 0.25, 0.8])
def test_sigma_is_proportional_to_eta(eta):
    now, before = torch.tensor([0.2, 0.9]), torch.tensor([0.5, 0.99])
    torch.testing.assert_close(ddim_sigma(now, before, eta), eta * ddim_sigma(now, before, 1.0))


# a run


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 600, 999, 1000])
def test_every_step_of_a_run_goes_to_the_alpha_bar_of_the_next(steps, eta):
    """Also the last: to alphas_cumprod[0], with all 1000 steps to 1."""
    drawn, fresh = [], fresh_noise()

    def noise(x):
        drawn.append(fresh(x))
        return drawn[-1]

    states = list(ddim_sample(fake_eps, randn(1, 4, 2, 2).double(), SCHEDULE, steps, eta, noise))
    for state, now, before in zip(states, *alphas_of_a_run(steps), strict=True):
        sigma = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
        x0 = (state.x - np.sqrt(1 - now) * state.eps) / np.sqrt(now)
        x_prev = np.sqrt(before) * x0 + np.sqrt(1 - before - sigma**2) * state.eps
        if sigma > 0:
            x_prev += sigma * drawn.pop(0)
        # the coefficients are float32; those near 1 - alpha_bar = 0 lose digits
        torch.testing.assert_close(state.pred_x0, x0, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state.x_prev, x_prev, rtol=1e-5, atol=1e-4)
    assert not drawn


def test_the_last_step_of_all_1000_ends_at_the_prediction_itself():
    *_, state = ddim_sample(fake_eps, randn(1, 4, 2, 2), SCHEDULE, 1000)
    assert torch.equal(state.x_prev, state.pred_x0)


def test_the_last_step_of_fewer_leaves_the_noise_of_time_step_0():
    *_, state = ddim_sample(fake_eps, randn(1, 4, 2, 2), SCHEDULE, 20)
    alpha_bar = SCHEDULE.alphas_cumprod[0]
    torch.testing.assert_close(state.x_prev, alpha_bar.sqrt() * state.pred_x0 + (1 - alpha_bar).sqrt() * state.eps)


@pytest.mark.parametrize("steps", [1, 5, 20, 1000])
def test_states_come_in_order_and_each_takes_up_where_the_last_one_stopped(steps):
    x_T = randn(2, 4, 2, 2)
    states = list(ddim_sample(fake_eps, x_T, SCHEDULE, steps))
    assert [state.index for state in states] == list(range(steps))
    assert [state.t for state in states] == ddim_timesteps(steps).tolist()[::-1]
    assert torch.equal(states[0].x, x_T)
    assert all(torch.equal(after.x, before.x_prev) for before, after in pairwise(states))
    assert all(torch.equal(s.eps, fake_eps(s.x, torch.full((2,), s.t))) for s in states)


def test_eps_model_is_called_once_a_step_with_one_long_time_step_an_image():
    times = []

    def eps_model(x, t):
        times.append(t)
        return fake_eps(x, t)

    list(ddim_sample(eps_model, randn(3, 4, 2, 2), SCHEDULE, 5))
    assert [t.tolist() for t in times] == [[t] * 3 for t in (801, 601, 401, 201, 1)]
    assert all(t.dtype == torch.long for t in times)


def test_a_step_is_computed_only_when_it_is_asked_for():
    calls = []
    run = ddim_sample(lambda x, t: calls.append(t) or x, randn(1, 4, 2, 2), SCHEDULE, 5)
    assert len(calls) == 0
    next(run)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("steps", "eta", "calls"), [(20, 0.0, 0), (20, 1.0, 20), (1, 0.3, 1), (1000, 0.0, 0), (1000, 0.3, 999)]
)
def test_noise_is_drawn_only_in_steps_whose_sigma_is_above_0(steps, eta, calls):
    """With all 1000 steps the last one goes to alpha_bar 1, where nothing may be added."""
    shapes = []

    def noise(x):
        shapes.append(x.shape)
        return torch.zeros_like(x)

    list(ddim_sample(fake_eps, randn(2, 4, 2, 2), SCHEDULE, steps, eta, noise))
    assert shapes == [(2, 4, 2, 2)] * calls


def test_the_noise_that_was_drawn_is_the_noise_that_is_added():
    x_T = randn(1, 4, 2, 2)
    (quiet,) = ddim_sample(fake_eps, x_T, SCHEDULE, 1, 1.0, torch.zeros_like)
    (loud,) = ddim_sample(fake_eps, x_T, SCHEDULE, 1, 1.0, torch.ones_like)
    sigma = ddim_sigma(SCHEDULE.alphas_cumprod[1], SCHEDULE.alphas_cumprod[0], 1.0)
    torch.testing.assert_close(loud.x_prev - quiet.x_prev, sigma.expand(1, 4, 2, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [
    {"steps": 0}, {"steps": 1001}, {"eta": -0.1}, {"eta": 1.1}, {"eta": float("nan")}, {"eta": 0.5, "noise": None},
])  # fmt: skip
def test_bad_arguments_are_refused_when_called_not_at_the_first_step(options):
    options = {"noise": torch.randn_like} | options
    with pytest.raises(ValueError):
        ddim_sample(fake_eps, randn(1, 4, 2, 2), SCHEDULE, **options)


def test_nothing_is_changed_in_place():
    x_T = randn(1, 4, 2, 2)
    x_T_before, alphas_before = x_T.clone(), SCHEDULE.alphas_cumprod.clone()
    kept = []
    for state in ddim_sample(fake_eps, x_T, SCHEDULE, 10, 1.0, fresh_noise()):
        tensors = (state.x, state.eps, state.pred_x0, state.x_prev)
        kept.append((tensors, [tensor.clone() for tensor in tensors]))
    assert torch.equal(x_T, x_T_before) and torch.equal(SCHEDULE.alphas_cumprod, alphas_before)
    assert all(torch.equal(a, b) for tensors, copies in kept for a, b in zip(tensors, copies, strict=True))


def test_another_schedule_is_used_to_its_end():
    schedule = NoiseSchedule(ScheduleConfig(num_timesteps=10, beta_start=0.1, beta_end=0.5))
    assert [state.t for state in ddim_sample(fake_eps, randn(1, 4, 2, 2), schedule, 10)] == list(range(9, -1, -1))
    assert [state.t for state in ddim_sample(fake_eps, randn(1, 4, 2, 2), schedule, 5)] == [9, 7, 5, 3, 1]


# theory: latents from N(MEAN, STD^2), whose optimal noise prediction is a formula

MEAN, STD = 0.7, 0.5


def variance(alpha_bar):
    """Of x_t when x_0 is drawn from N(MEAN, STD^2)."""
    return alpha_bar * STD**2 + 1 - alpha_bar


def gaussian_eps(x, t):
    """E[noise | x_t]."""
    alpha_bar = torch.from_numpy(ALPHA_BAR)[t].view(-1, 1, 1, 1)
    return (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * MEAN) / variance(alpha_bar)


def error_of_ddim(steps: int) -> float:
    """How far DDIM's affine map of x_T is from the probability flow's, relative, at x_T = +-1, +-2."""
    x_T = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64).view(4, 1, 1, 1)
    *_, state = ddim_sample(gaussian_eps, x_T, SCHEDULE, steps)
    alphas, previous = alphas_of_a_run(steps)
    first, last = alphas[0], previous[-1]
    # the flow keeps (x - mean) / standard deviation
    flow = np.sqrt(last) * MEAN + (x_T - np.sqrt(first) * MEAN) * np.sqrt(variance(last) / variance(first))
    return float((state.x_prev - flow).abs().max() / (flow - np.sqrt(last) * MEAN).abs().max())


@pytest.mark.parametrize(("steps", "bound"), [(10, 0.2), (50, 0.05), (250, 0.0102), (1000, 0.0045)])
def test_ddim_on_a_gaussian_carries_x_T_to_the_end_of_the_probability_flow(steps, bound):
    assert error_of_ddim(steps) < bound


def test_the_error_of_ddim_on_a_gaussian_halves_when_the_steps_double():
    """A method of first order."""
    errors = [error_of_ddim(steps) for steps in (50, 100, 200, 400)]
    ratios = [a / b for a, b in pairwise(errors)]
    assert all(1.85 < ratio < 2.05 for ratio in ratios), ratios


def test_with_one_value_for_all_latents_every_number_of_steps_ends_at_it():
    def eps_model(x, t):
        alpha_bar = torch.from_numpy(ALPHA_BAR)[t].view(-1, 1, 1, 1)
        return (x - alpha_bar.sqrt() * MEAN) / (1 - alpha_bar).sqrt()

    for steps in (1, 3, 20, 999, 1000):
        *_, state = ddim_sample(eps_model, randn(2, 4, 2, 2).double(), SCHEDULE, steps)
        torch.testing.assert_close(state.pred_x0, torch.full_like(state.x, MEAN), rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("steps", [20, 100])
def test_fresh_noise_on_a_gaussian_gives_the_mean_and_variance_of_the_chain(steps, eta):
    """Every step is affine in x, so the moments of the chain follow from its coefficients."""
    n = 50_000
    mean, var = 0.0, 1.0
    for now, before in zip(*alphas_of_a_run(steps), strict=True):
        sigma2 = eta**2 * (1 - before) / (1 - now) * (1 - now / before)
        slope = (np.sqrt(before * now) * STD**2 + np.sqrt((1 - before - sigma2) * (1 - now))) / variance(now)
        mean = np.sqrt(before) * MEAN + slope * (mean - np.sqrt(now) * MEAN)
        var = slope**2 * var + sigma2
    *_, state = ddim_sample(gaussian_eps, randn(n, 1, 1, 1).double(), SCHEDULE, steps, eta, fresh_noise())
    # four standard errors each
    assert float(state.x_prev.mean()) == pytest.approx(mean, abs=4 * (var / n) ** 0.5)
    assert float(state.x_prev.var()) == pytest.approx(var, rel=4 * (2 / n) ** 0.5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_thousand_steps_draw_from_the_gaussian_itself(eta):
    n, first = 20_000, ALPHA_BAR[999]
    x_T = np.sqrt(first) * MEAN + np.sqrt(variance(first)) * randn(n, 1, 1, 1).double()
    *_, state = ddim_sample(gaussian_eps, x_T, SCHEDULE, 1000, eta, fresh_noise())
    # four standard errors, and what a thousand steps are short of infinitely many
    assert float(state.x_prev.mean()) == pytest.approx(MEAN, abs=4 * STD / n**0.5)
    assert float(state.x_prev.var()) == pytest.approx(STD**2, rel=4 * (2 / n) ** 0.5 + (0.01 if eta == 0 else 0.02))


# theory: latents that are one of a few points

POINTS = torch.tensor([[2.0, 0.0, 0.0, 1.0], [-1.0, 1.5, 0.0, 0.0], [0.0, -1.0, -2.0, 0.5]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def points_eps(x, t):
    """The noise towards E[x_0 | x_t]: the points' mean, weighted by how likely each one is behind x_t."""
    alpha_bar = torch.from_numpy(ALPHA_BAR)[t][:, None]
    flat = x.flatten(1)
    distances = (flat[:, None] - alpha_bar[..., None].sqrt() * POINTS).square().sum(-1)
    shares = torch.softmax(WEIGHTS.log() - distances / (2 * (1 - alpha_bar)), dim=1)
    return ((flat - alpha_bar.sqrt() * (shares @ POINTS)) / (1 - alpha_bar).sqrt()).view(x.shape)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("steps", "distance"), [(50, 0.15), (200, 0.15), (1000, 1e-3)])
def test_on_a_few_points_every_sample_ends_at_one_of_them_as_often_as_it_should(steps, distance, eta):
    n = 2000
    *_, state = ddim_sample(points_eps, randn(n, 4, 1, 1).double(), SCHEDULE, steps, eta, fresh_noise())
    ends = torch.cdist(state.x_prev.flatten(1), POINTS)
    # fewer than 1000 steps leave the noise of time step 0, of standard deviation 0.03 in four directions
    assert ends.amin(1).max() < distance
    assert torch.cdist(state.pred_x0.flatten(1), POINTS).amin(1).max() < 1e-3
    shares = torch.bincount(ends.argmin(1), minlength=3) / n
    torch.testing.assert_close(shares.double(), WEIGHTS, rtol=0, atol=4 * (0.25 / n) ** 0.5)
