"""What the checks of chapter 3 say of right answers, of none, and of the likeliest wrong ones."""

import pytest
import torch

from sd_teach.checks import ddim as check
from sd_teach.ddim import ddim_step, ddim_timesteps


def x0(x, eps, a):
    return (x - (1 - a).sqrt() * eps) / a.sqrt()


def step(signal, noise):
    """An answer to 3.2 with these factors of pred_x0 and eps, functions of alpha_bar_t and alpha_bar_prev."""
    return lambda x, eps, a, p: signal(a, p) * x0(x, eps, a) + noise(a, p) * eps


def noisy(kept, fresh, signal=lambda p: p.sqrt()):
    """An answer to 3.3 with these factors of eps, of fresh noise and of pred_x0."""
    return lambda x0, eps, p, s, noise: signal(p) * x0 + kept(p, s) * eps + fresh(s) * noise


def kept(p, s):
    return (1 - p - s**2).sqrt()


def itself(s):
    return s


def perfect(x, a, m, v):
    return (1 - a).sqrt() * (x - a.sqrt() * m) / (a * v + 1 - a)


def posterior(x, a, m, v):
    return m + a.sqrt() * v / (a * v + 1 - a) * (x - a.sqrt() * m)


RIGHT = {
    check.time_steps: lambda steps: torch.arange(steps) * 1000 // steps + 1,
    check.x_prev: step(lambda a, p: p.sqrt(), lambda a, p: (1 - p).sqrt()),
    check.noisy_x_prev: noisy(kept, itself),
    check.perfect_eps: perfect,
}
WRONG = [
    (check.time_steps, lambda steps: torch.arange(0, 1000, 1000 // steps) + 1, "these are 31: range"),
    (check.time_steps, lambda steps: torch.arange(0, 1000, 1000 // steps), "31, and the 1"),
    (check.time_steps, lambda steps: torch.arange(steps) * (1000 // steps) + 1, "too early"),
    (check.time_steps, lambda steps: torch.arange(steps) * 1000 // steps, "the 1 is not added: a run"),
    (check.time_steps, lambda steps: ddim_timesteps(steps).flip(0), "ascending is asked"),
    (check.time_steps, lambda steps: torch.arange(steps) * 1000 / steps + 1, "a whole number"),
    (check.time_steps, lambda steps: torch.linspace(1, 999, steps).long(), "does not start at 999"),
    (check.time_steps, lambda steps: (torch.arange(steps) * 1000 / steps).floor() + 1, "LongTensor"),
    (check.time_steps, lambda steps: torch.arange(0, 1000, 1000 / steps).long() + 1, "not for 206"),
    (check.time_steps, lambda steps: torch.linspace(0, 1000, steps + 1)[:-1].long() + 1, "not for 206"),
    (check.time_steps, lambda steps: torch.tensor([int(i * (1000 / steps)) + 1 for i in range(steps)]), "not for 206"),
    (check.time_steps, lambda steps: (torch.arange(steps) * 1000 / steps).round().long() + 1, "round down"),
    (check.x_prev, step(lambda a, p: a.sqrt(), lambda a, p: (1 - p).sqrt()), "scaled by alpha_bar_t"),
    (check.x_prev, step(lambda a, p: p.sqrt(), lambda a, p: (1 - a).sqrt()), "put back is that of t"),
    (check.x_prev, step(lambda a, p: p, lambda a, p: 1 - p), "both square roots"),
    (check.x_prev, step(lambda a, p: p, lambda a, p: (1 - p).sqrt()), "alpha_bar_prev itself"),
    (check.x_prev, step(lambda a, p: p.sqrt(), lambda a, p: 1 - p), "root of 1 - alpha_bar_prev"),
    (
        check.x_prev,
        lambda x, eps, a, p: p.sqrt() * (x - (1 - a) * eps) / a + (1 - p).sqrt() * eps,
        "in pred_x0 the square roots",
    ),
    (check.x_prev, step(lambda a, p: (p * a).sqrt(), lambda a, p: (1 - p).sqrt()), "too faint"),
    (check.x_prev, step(lambda a, p: p.sqrt(), lambda a, p: 0), "no noise is put back"),
    (check.x_prev, step(lambda a, p: 1, lambda a, p: 0), "this is pred_x0"),
    (check.x_prev, lambda x, eps, a, p: ddim_step(x, eps, p, a)[0], "goes up"),
    (check.noisy_x_prev, noisy(lambda p, s: (1 - p).sqrt(), itself), "on top of all the old"),
    (check.noisy_x_prev, noisy(lambda p, s: (1 - p - s).sqrt(), itself), "variances subtract"),
    (check.noisy_x_prev, noisy(lambda p, s: (1 - p).sqrt() - s**2, itself), "belongs under the root"),
    (check.noisy_x_prev, noisy(kept, lambda s: 0), "none is added"),
    (check.noisy_x_prev, noisy(kept, lambda s: 1), "has variance 1"),
    (check.noisy_x_prev, noisy(kept, lambda s: s**2), "not its square"),
    (check.noisy_x_prev, noisy(kept, itself, lambda p: p), "root of alpha_bar_prev is missing"),
    (check.perfect_eps, posterior, "this is the picture"),
    (check.perfect_eps, lambda x, a, m, v: (1 - a).sqrt() * (x - m) / (a * v + 1 - a), "mean is shrunk"),
    (check.perfect_eps, lambda x, a, m, v: (x - a.sqrt() * m) / (1 - a).sqrt(), "heap's share"),
    (check.perfect_eps, lambda x, a, m, v: (1 - a).sqrt() * (x - a.sqrt() * m) / (v + 1 - a), "shrinks by alpha_bar"),
    (check.perfect_eps, lambda x, a, m, v: -perfect(x, a, m, v), "sign is turned"),
    (check.perfect_eps, lambda x, a, m, v: (1 - a).sqrt() * perfect(x, a, m, v), "divide by"),
    (check.perfect_eps, lambda x, a, m, v: (x - posterior(x, a, m, v)) / (1 - a).sqrt(), "that much of it"),
]


@pytest.mark.parametrize(("function", "answer"), RIGHT.items(), ids=lambda value: value.__name__)
def test_a_right_answer_is_right_and_no_answer_is_asked_for(function, answer):
    assert function(answer).state == "right"
    assert function(lambda *arguments: ...).state == "open"


@pytest.mark.parametrize(("function", "answer", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_a_likely_mistake_is_told_apart_from_all_others(function, answer, words):
    said = function(answer)
    assert said.state == "wrong" and words in said.sentence
