"""The exercises of chapter 10."""

import math
from collections.abc import Callable

import torch

from sd_teach.checks import Verdict, mark

_GENERATOR = torch.Generator().manual_seed(10)
_X, _EPS, _LAST = torch.randn(3, 1, 4, 8, 8, generator=_GENERATOR)


def to_u_and_s(answer: Callable) -> Verdict:
    """10.1: (x, alpha_bar_t) -> (u, s)."""
    a = torch.tensor(0.3)
    u, s = _X / a.sqrt(), ((1 - a) / a).sqrt()
    return mark(
        "10.1", answer, _X.clone(), a,
        ask="return u and s, in this order, from x and alpha_bar_t",
        expected=(u, s),
        mistakes={
            "u and s are in the wrong order: u first": (s, u),
            "u is divided by alpha_bar_t: the signal was shrunk by its square root": (_X / a, s),
            "s is a ratio of variances here; the amount of noise is a standard deviation, its square root": (u, s**2),
            "s is sqrt(1 - alpha_bar_t): that is the noise in x, and u is x divided by sqrt(alpha_bar_t)": (
                u, (1 - a).sqrt(),
            ),
        },
        right="u is the picture plus s times the noise",
    )  # fmt: skip


def euler_step(answer: Callable) -> Verdict:
    """10.2: (u, eps, s, s_prev) -> u_prev."""
    s, s_prev = torch.tensor(2.0), torch.tensor(1.5)
    return mark(
        "10.2", answer, _X.clone(), _EPS.clone(), s, s_prev,
        ask="return u after a step from s to s_prev",
        expected=_X + (s_prev - s) * _EPS,
        mistakes={
            "your step adds noise: s falls during a run, so the step s_prev - s is negative": _X + (s - s_prev) * _EPS,
            "you go all the way to no noise: this is the predicted x0, not a step": _X - s * _EPS,
            "you take away s_prev of the noise, but s_prev is what should be left": _X - s_prev * _EPS,
            "u already has its signal at full size: no factor belongs before it": s_prev / s * _X
            + (s_prev - s) * _EPS,
        },
        right="a tangent of slope eps, followed from s to s_prev",
    )  # fmt: skip


def middle(answer: Callable) -> Verdict:
    """10.3: (pred_x0, x0_last, lam_last, lam_t, lam_prev) -> D."""
    last, now, then = -0.8, -0.5, 0.1
    h, before = then - now, now - last
    moved = _X - _LAST
    return mark(
        "10.3", answer, _X.clone(), _LAST.clone(), last, now, then,
        ask="return the x0 expected half of the coming step ahead",
        expected=_X + moved * h / (2 * before),
        mistakes={
            "you extrapolate backwards: x0 moved from x0_last to pred_x0, and goes on": _X - moved * h / (2 * before),
            "you look a whole step ahead; the middle is half of it": _X + moved * h / before,
            "r is upside down: it is the last step's length over the coming one's": _X + moved * before / (2 * h),
            "you took both steps to be equally long; their ratio r belongs in": _X + moved / 2,
        },
        right="half a step ahead, at the pace of the last step",
    )  # fmt: skip


def order(answer: Callable) -> Verdict:
    """10.4: (n, error_n, m, error_m) -> p."""
    n, m, p = 10, 30, 1.7
    errors = 5.0 * n**-p, 5.0 * m**-p
    return mark(
        "10.4", answer, n, errors[0], m, errors[1],
        ask="return p, given that the error is C / n^p",
        expected=p,
        mistakes={
            "the sign: the error falls as the steps grow, and p is positive": -p,
            "the logarithms are the wrong way round: errors above, steps below": 1 / p,
            "this is how many times the error shrinks; p is its logarithm over that of the steps": errors[0]
            / errors[1],
            "you divided by log 2, which is right only where m is twice n": math.log2(errors[0] / errors[1]),
        },
        right="the slope of the line in the figure",
        atol=1e-6,
    )  # fmt: skip
