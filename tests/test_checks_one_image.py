"""Right, missing and wrong answers to the exercises of chapter 0, and what is said of each."""

import itertools

import pytest
import torch

from sd_teach.checks import one_image as check
from sd_teach.ddim import DDIMState


@pytest.fixture(scope="module")
def states():
    generator = torch.Generator().manual_seed(0)
    x, pred_x0 = torch.randn(2, 5, 1, 4, 8, 8, generator=generator)
    return [DDIMState(i, 900 - i, x[i], x[i], pred_x0[i], x[i]) for i in range(5)]


def by(difference):
    """An answer to 0.3: `difference` of each pair of neighbouring states."""
    return lambda states: [difference(a, b) for a, b in itertools.pairwise(states)]


def right_changes(a, b):
    return (a.pred_x0 - b.pred_x0).abs().mean().item()


def test_right_answers_are_right(states):
    assert check.seed_of_the_third(102).state == "right"
    assert check.latent_shape(lambda width, height: (4, height // 8, width // 8)).state == "right"
    assert check.latent_shape(lambda width, height: torch.zeros(4, height // 8, width // 8).shape).state == "right"
    assert check.changes(by(right_changes), states).state == "right"
    assert check.changes(by(lambda a, b: (b.pred_x0 - a.pred_x0).abs().mean()), states).state == "right"


def test_without_an_answer_they_ask(states):
    verdicts = (
        check.seed_of_the_third(None),
        check.latent_shape(lambda w, h: None),
        check.changes(lambda s: None, states),
    )
    assert [verdict.state for verdict in verdicts] == ["open"] * 3
    assert [verdict.exercise for verdict in verdicts] == ["0.1", "0.2", "0.3"]


@pytest.mark.parametrize(
    ("seed", "words"), [(103, "counts from 0"), (100, "first picture"), (2, "adds to"), (3, "which picture"), (7, "7")]
)
def test_a_wrong_seed(seed, words):
    verdict = check.seed_of_the_third(seed)
    assert verdict.state == "wrong" and words in verdict.sentence


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda w, h: (4, w // 8, h // 8), "swapped"),
        (lambda w, h: (3, h // 8, w // 8), "4 of its own"),
        (lambda w, h: (4, h, w), "8 times smaller"),
        (lambda w, h: (h // 8, w // 8, 4), "channels come first"),
        (lambda w, h: (h // 8, w // 8), "3 values are wanted"),
        (lambda w, h: (4, h / 8, w / 8), "/ makes floats"),
    ],
)
def test_a_wrong_shape(answer, words):
    verdict = check.latent_shape(answer)
    assert verdict.state == "wrong" and words in verdict.sentence


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (by(lambda a, b: (b.pred_x0 - a.pred_x0).mean().item()), "cancel"),
        (by(lambda a, b: (b.x - a.x).abs().mean().item()), "noise and all"),
        (by(lambda a, b: (b.pred_x0 - a.pred_x0).square().mean().item()), "squared"),
        (lambda states: by(right_changes)(states)[::-1], "order"),
        (lambda states: [right_changes(state, states[-1]) for state in states], "4 values are wanted, these are 5"),
    ],
)
def test_wrong_changes(states, answer, words):
    verdict = check.changes(answer, states)
    assert verdict.state == "wrong" and words in verdict.sentence
