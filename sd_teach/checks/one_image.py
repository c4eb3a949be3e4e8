"""Marks the exercises of chapter 0, one image."""

import itertools
from collections.abc import Callable, Sequence

from sd_teach.checks import Verdict, mark
from sd_teach.ddim import DDIMState


def seed_of_the_third(answer: int | None) -> Verdict:
    """0.1: which seed makes the third picture of a batch of four with seed 100."""
    return mark(
        "0.1",
        answer,
        ask="set seed to the number that makes the third picture of the batch again",
        expected=102,
        mistakes={
            "103 makes the fourth picture: image k has seed + k, and k counts from 0": 103,
            "100 is the seed of the call and so of its first picture; each picture after it has one of its own": 100,
            "2 is what the third picture adds to the seed of the call": 2,
            "3 is which picture it is; its seed is the call's plus the number of pictures before it": 3,
        },
        right="image k of a batch is the image of seed + k, so this is the third one, alone",
    )


def latent_shape(answer: Callable[[int, int], object]) -> Verdict:
    """0.2: (width, height) in pixels -> the latent's (channels, rows, columns)."""
    kinds: list[object] = []

    def watched(width: int, height: int) -> object:
        answered = answer(width, height)
        kinds.extend(map(type, answered) if isinstance(answered, (list, tuple)) else ())
        return answered

    said = mark(
        "0.2",
        watched,
        512,
        768,
        ask="return three numbers for a picture of width x height pixels: channels, rows, columns",
        expected=(4, 96, 64),
        mistakes={
            "rows and columns are swapped: rows are what the height is divided into, and they come first": (4, 64, 96),
            "3 channels are a picture's, red, green and blue; the latent has 4 of its own": (3, 96, 64),
            "these are the picture's sides: the latent is 8 times smaller on each": (4, 768, 512),
            "the channels come first in PyTorch, then rows, then columns": (96, 64, 4),
        },
        right="48 times fewer numbers than the picture has, and every step of the run works on these alone",
    )
    if said.state == "right" and float in kinds:
        return Verdict(
            "0.2", "wrong", "the numbers are right, but a shape is made of whole ones, and / makes floats: //"
        )
    return said


def changes(answer: Callable[[Sequence[DDIMState]], object], states: Sequence[DDIMState]) -> Verdict:
    """0.3: the states of a run -> mean absolute change of pred_x0 from each to the next, a list."""
    pairs = list(itertools.pairwise(states))
    difference = [b.pred_x0 - a.pred_x0 for a, b in pairs]
    expected = [d.abs().mean().item() for d in difference]
    return mark(
        "0.3",
        answer,
        states,
        ask="return one number for each pair of neighbouring states: how much pred_x0 changes between them",
        expected=expected,
        mistakes={
            "differences of both signs cancel in a mean: take their absolute values first": [
                d.mean().item() for d in difference
            ],
            "this is how much x changes, noise and all; what the model has in mind is pred_x0": [
                (b.x - a.x).abs().mean().item() for a, b in pairs
            ],
            "these are the squared differences: the absolute ones were asked for": [
                d.square().mean().item() for d in difference
            ],
            "the numbers are right, their order is not: begin with the first two states, where there is most noise": (
                expected[::-1]
            ),
        },
        right="look at them: the early steps decide most, and the picture settles as the noise goes",
    )
