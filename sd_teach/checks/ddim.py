"""Exercises of chapter 3."""

from collections.abc import Callable

import torch

from sd_teach import ddim as reference
from sd_teach.checks import Verdict, mark
from sd_teach.noise import NoiseSchedule, draw_noise, image_generators


def time_steps(answer: Callable) -> Verdict:
    """3.1: steps -> the time steps of a run, ascending, LongTensor [steps]."""
    steps, count = 30, torch.arange(30)
    trap = torch.arange(0, 1000, 1000 // steps)
    expected = reference.ddim_timesteps(steps)
    said = mark(
        "3.1",
        answer,
        steps,
        ask="write my_time_steps: the formula for any number of steps below 1000",
        expected=expected,
        mistakes={
            "for 30 steps these are 31: range(0, 1000, 1000 // S) fits only where S divides 1000": trap + 1,
            "for 30 steps these are 31, and the 1 is not added": trap,
            "1000 // S is rounded too early, so the steps end too low: multiply by i first": count * (1000 // steps)
            + 1,
            "the 1 is not added: a run of fewer than 1000 steps ends at t = 1": expected - 1,
            "these are in the order of the run; ascending is asked for": expected.flip(0),
            "these are evenly spaced from end to end; a run does not start at 999": torch.linspace(1, 999, 30).long(),
            "round down, as i * 1000 // S does": (count * 1000 / steps).round() + 1,
            "a time step is a whole number: divide with //": count * 1000 / steps + 1,
        },
        right="30 steps are 30 steps",
        atol=0,
        dtype=(torch.int64, "a LongTensor is wanted"),
    )
    if said.state != "right":
        return said
    elsewhere = mark("3.1", answer, 206, ask="", expected=reference.ddim_timesteps(206), mistakes={}, right="", atol=0)
    if elsewhere.state != "right":
        return Verdict("3.1", "wrong", "right for 30 steps, not for 206: fractions get rounded; i * 1000 // S has none")
    return said


def x_prev(answer: Callable) -> Verdict:
    """3.2: (x, eps, alpha_bar_t, alpha_bar_prev) -> x_prev of a step without fresh noise."""
    x, eps, a, p = _step()
    x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
    return mark(
        "3.2",
        answer,
        x,
        eps,
        a,
        p,
        ask="write my_step: pred_x0 first, then x_prev from it and eps",
        expected=reference.ddim_step(x, eps, a, p)[0],
        mistakes={
            "your x_prev is scaled by alpha_bar_t, the equation wants alpha_bar_prev": a.sqrt() * x0
            + (1 - p).sqrt() * eps,
            "the noise you put back is that of t: it is sqrt(1 - alpha_bar_prev) of eps": p.sqrt() * x0
            + (1 - a).sqrt() * eps,
            "both square roots of x_prev are missing: alpha_bar counts variance": p * x0 + (1 - p) * eps,
            "pred_x0 is scaled by alpha_bar_prev itself: the square root is missing": p * x0 + (1 - p).sqrt() * eps,
            "the square root of 1 - alpha_bar_prev is missing": p.sqrt() * x0 + (1 - p) * eps,
            "in pred_x0 the square roots are missing": p.sqrt() * (x - (1 - a) * eps) / a + (1 - p).sqrt() * eps,
            "pred_x0 is not divided by sqrt(alpha_bar_t), so the picture is too faint": p.sqrt() * a.sqrt() * x0
            + (1 - p).sqrt() * eps,
            "no noise is put back: x_prev must still be as noisy as its time step says": p.sqrt() * x0,
            "this is pred_x0: go back to the noise of the time step before": x0,
            "alpha_bar_t and alpha_bar_prev have changed places: this step goes up": reference.ddim_step(x, eps, p, a)[
                0
            ],
        },
        right="all the noise out, then less of it back in, along the same direction",
    )


def noisy_x_prev(answer: Callable) -> Verdict:
    """3.3: (pred_x0, eps, alpha_bar_prev, sigma, noise) -> x_prev of a step with fresh noise."""
    x0, eps, a, p = _step()
    (noise,) = draw_noise(image_generators(50), (1, 4, 4, 4))
    sigma = reference.ddim_sigma(a, p, 0.8)
    kept, fresh = (1 - p - sigma**2).sqrt() * eps, sigma * noise
    return mark(
        "3.3",
        answer,
        x0,
        eps,
        p,
        sigma,
        noise,
        ask="write my_noisy_x_prev: signal, what is kept of eps, and fresh noise",
        expected=p.sqrt() * x0 + kept + fresh,
        mistakes={
            "the fresh noise comes on top of all the old: take sigma^2 out of 1 - alpha_bar_prev": p.sqrt() * x0
            + (1 - p).sqrt() * eps
            + fresh,
            "variances subtract, not standard deviations: 1 - alpha_bar_prev - sigma^2": p.sqrt() * x0
            + (1 - p - sigma).sqrt() * eps
            + fresh,
            "sigma^2 belongs under the root: sqrt(1 - alpha_bar_prev - sigma^2)": p.sqrt() * x0
            + ((1 - p).sqrt() - sigma**2) * eps
            + fresh,
            "room was made for fresh noise, but none is added": p.sqrt() * x0 + kept,
            "the fresh noise has variance 1: sigma is its factor": p.sqrt() * x0 + kept + noise,
            "sigma is a standard deviation already: it is the factor of the noise, not its square": p.sqrt() * x0
            + kept
            + sigma**2 * noise,
            "the square root of alpha_bar_prev is missing": p * x0 + kept + fresh,
        },
        right="the variances of old and fresh noise add up to 1 - alpha_bar_prev",
    )


def perfect_eps(answer: Callable) -> Verdict:
    """3.4: (x, alpha_bar, mean, variance) -> E[eps given x] where the data are N(mean, variance)."""
    x, _, a, _ = _step()
    m, v = 0.7, 0.25
    signal, noise, total = a.sqrt(), (1 - a).sqrt(), a * v + 1 - a
    x0 = m + signal * v / total * (x - signal * m)
    return mark(
        "3.4",
        answer,
        x,
        a,
        m,
        v,
        ask="write my_perfect_eps: the formula above for a single heap, as noise",
        expected=(x - signal * x0) / noise,
        mistakes={
            "this is the picture, E[x_0 given x_t]; solve the jump for the noise": x0,
            "in x_t the mean is shrunk as well: the heap lies around sqrt(alpha_bar) mean": noise * (x - m) / total,
            "the variance of x_t is alpha_bar v + 1 - alpha_bar: the heap's share is missing": (x - signal * m) / noise,
            "the heap's variance shrinks by alpha_bar on the way to x_t": noise * (x - signal * m) / (v + 1 - a),
            "the sign is turned: noise is what lies between x_t and the signal": -(x - signal * x0) / noise,
            "divide by sqrt(1 - alpha_bar), the factor of the noise in x_t": x - signal * x0,
            "in x_t the picture is shrunk by sqrt(alpha_bar); take that much of it away": (x - x0) / noise,
        },
        right="a perfect network, in one line",
    )


def _step() -> tuple[torch.Tensor, ...]:
    """x, eps: [1, 4, 4, 4], alpha_bar_t, alpha_bar_prev of a step in the middle of a run."""
    x, eps = (draw_noise(image_generators(seed), (4, 4, 4)) for seed in (1, 2))
    return x, eps, *NoiseSchedule().alphas_cumprod[[501, 401]]
