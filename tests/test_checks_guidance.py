"""What the exercises of chapter 4 say of right answers, of none, and of the likeliest mistakes."""

import pytest
import torch

from sd_teach.checks import guidance as check
from sd_teach.guidance import classifier_free_guidance


@pytest.mark.parametrize("exercise", [check.guide, check.batch_order, check.interval, check.rescale])
def test_no_answer_is_asked_for(exercise):
    answer = ... if exercise is check.batch_order else lambda *arguments: ...
    assert exercise(answer).state == "open"


def test_guidance_is_right():
    assert check.guide(classifier_free_guidance).state == "right"
    assert check.guide(lambda u, c, s: (1 - s) * u + s * c).state == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda u, c, s: c + s * (c - u), "w is s - 1"),
        (lambda u, c, s: c + s * (u - c), "swapped"),
        (lambda u, c, s: u + s * (u - c), "it is eps_cond - eps_uncond"),
        (lambda u, c, s: s * (c - u), "where it starts"),
        (lambda u, c, s: u + s * c, "no direction"),
        (lambda u, c, s: c, "where is the scale"),
    ],
)
def test_guidance_gone_wrong(answer, words):
    said = check.guide(answer)
    assert said.state == "wrong" and words in said.sentence


def test_the_order_is_right():
    assert check.batch_order(["a blue background", "", "a cat", "a pizza"]).state == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (["a cat", "a pizza", "a blue background", ""], "first half"),
        (["a blue background", "a cat", "", "a pizza"], "beside its negative"),
        (["a cat", "a blue background", "a pizza", ""], "beside its negative"),
        (["", "a blue background", "a cat", "a pizza"], "changed places"),
        (["a blue background", "a cat", "a pizza"], "4 values are wanted, these are 3"),
    ],
)
def test_orders_gone_wrong(answer, words):
    said = check.batch_order(answer)
    assert said.state == "wrong" and words in said.sentence


def choose(condition):
    return lambda x, t, guided, plain: guided(x, t) if condition(t[0]) else plain(x, t)


def test_the_interval_is_right():
    assert check.interval(choose(lambda t: 300 <= t < 700)).state == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (choose(lambda t: not 300 <= t < 700), "other way round"),
        (choose(lambda t: 300 <= t <= 700), "t = 700 is guided"),
        (choose(lambda t: 300 < t < 700), "t = 300 is not guided"),
        (choose(lambda t: 300 < t <= 700), "both ends"),
        (choose(lambda t: t < 700), "t < 300"),
        (choose(lambda t: t >= 300), "t >= 700"),
        (choose(lambda t: True), "every t"),
        (choose(lambda t: False), "never guide"),
        (
            lambda x, t, guided, plain: torch.where((t[0] >= 300) & (t[0] < 700), guided(x, t), plain(x, t)),
            "no time is saved",
        ),
        (
            lambda x, t, guided, plain: (plain(x, t), choose(lambda t: 300 <= t < 700)(x, t, guided, plain))[1],
            "only one",
        ),
        (lambda x, t, guided, plain: guided(x, t) if 300 <= t < 700 else plain(x, t), "stops with RuntimeError"),
        (lambda x, t, guided, plain: guided(x), "stops with TypeError"),
    ],
)
def test_intervals_gone_wrong(answer, words):
    said = check.interval(answer)
    assert said.state == "wrong" and words in said.sentence


def spread(eps, dim=(1, 2, 3)):
    return eps.std(dim=dim, keepdim=True)


def test_rescaling_is_right():
    assert check.rescale(lambda g, c, phi: phi * g * spread(c) / spread(g) + (1 - phi) * g).state == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda g, c, phi: phi * g * c.std() / g.std() + (1 - phi) * g, "whole batch"),
        (lambda g, c, phi: phi * g * spread(g) / spread(c) + (1 - phi) * g, "upside down"),
        (lambda g, c, phi: g * spread(c) / spread(g), "phi is missing"),
        (lambda g, c, phi: (1 - phi) * g * spread(c) / spread(g) + phi * g, "changed places"),
        (lambda g, c, phi: phi * g * spread(c) / spread(g) + (1 - phi) * c, "mixed with eps_cond"),
        (lambda g, c, phi: phi * c * spread(c) / spread(g) + (1 - phi) * g, "rescaled eps_cond"),
        (lambda g, c, phi: phi * g * g.std((1, 2, 3)) + (1 - phi) * g, "stops with RuntimeError"),
    ],
)
def test_rescaling_gone_wrong(answer, words):
    said = check.rescale(answer)
    assert said.state == "wrong" and words in said.sentence
