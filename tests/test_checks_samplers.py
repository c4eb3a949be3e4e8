"""The exercises of chapter 10: what their checks say of right and of likely wrong answers."""

import math

import pytest
import torch

from sd_teach.checks import samplers as check
from sd_teach.samplers import euler_step

RIGHT = {
    check.to_u_and_s: lambda x, a: (x / a.sqrt(), ((1 - a) / a).sqrt()),
    check.euler_step: lambda u, eps, s, s_prev: u + (s_prev - s) * eps,
    check.middle: lambda x0, last, l0, l1, l2: x0 + (x0 - last) * (l2 - l1) / (2 * (l1 - l0)),
    check.order: lambda n, e, m, f: math.log(e / f) / math.log(m / n),
}
WRONG = [
    (check.to_u_and_s, lambda x, a: (((1 - a) / a).sqrt(), x / a.sqrt()), "u first"),
    (check.to_u_and_s, lambda x, a: (x / a, ((1 - a) / a).sqrt()), "square root"),
    (check.to_u_and_s, lambda x, a: (x / a.sqrt(), (1 - a) / a), "standard deviation"),
    (check.to_u_and_s, lambda x, a: (x / a.sqrt(), (1 - a).sqrt()), "noise in x"),
    (check.euler_step, lambda u, eps, s, s_prev: u + (s - s_prev) * eps, "adds noise"),
    (check.euler_step, lambda u, eps, s, s_prev: u - s * eps, "all the way"),
    (check.euler_step, lambda u, eps, s, s_prev: u - s_prev * eps, "should be left"),
    (check.euler_step, lambda u, eps, s, s_prev: s_prev / s * u + (s_prev - s) * eps, "no factor"),
    (check.middle, lambda x0, last, l0, l1, l2: x0 - (x0 - last) * (l2 - l1) / (2 * (l1 - l0)), "backwards"),
    (check.middle, lambda x0, last, l0, l1, l2: x0 + (x0 - last) * (l2 - l1) / (l1 - l0), "whole step"),
    (check.middle, lambda x0, last, l0, l1, l2: x0 + (x0 - last) * (l1 - l0) / (2 * (l2 - l1)), "upside down"),
    (check.middle, lambda x0, last, l0, l1, l2: x0 + (x0 - last) / 2, "equally long"),
    (check.order, lambda n, e, m, f: math.log(f / e) / math.log(m / n), "sign"),
    (check.order, lambda n, e, m, f: math.log(m / n) / math.log(e / f), "wrong way round"),
    (check.order, lambda n, e, m, f: e / f, "how many times"),
    (check.order, lambda n, e, m, f: math.log2(e / f), "log 2"),
]


@pytest.mark.parametrize("exercise", RIGHT, ids=lambda exercise: exercise.__name__)
def test_a_right_answer_is_right_and_none_is_asked_for(exercise):
    assert exercise(RIGHT[exercise]).state == "right"
    assert exercise(lambda *_: ...).state == "open"


@pytest.mark.parametrize(("exercise", "answer", "words"), WRONG)
def test_a_likely_mistake_is_named(exercise, answer, words):
    said = exercise(answer)
    assert said.state == "wrong" and words in said.sentence


def test_the_exercise_is_the_references_step():
    def answer(u, eps, s, s_prev):
        a, a_prev = 1 / (1 + s**2), 1 / (1 + s_prev**2)
        return euler_step(u * a.sqrt(), eps, a, a_prev)[0] / a_prev.sqrt()

    assert check.euler_step(answer).state == "right"


def test_answers_that_work_in_place_do_not_change_the_exercise():
    before = check._X.clone()
    assert check.to_u_and_s(lambda x, a: (x.div_(a.sqrt()), ((1 - a) / a).sqrt())).state == "right"
    assert check.euler_step(lambda u, eps, s, s_prev: u.add_(eps.mul_(s_prev - s))).state == "right"
    assert torch.equal(check._X, before)
