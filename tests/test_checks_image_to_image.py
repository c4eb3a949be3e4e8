"""The exercises of chapter 8: what their checks say of right and of likely wrong answers."""

import numpy as np
import pytest
import torch
from PIL import Image

from sd_teach.checks import image_to_image as check
from sd_teach.ddim import last_timesteps
from sd_teach.images import to_tensor


def hide(x0, noise, a):
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def middle(w, h, side, half=lambda x: x // 2):
    return half(w - side), half(h - side), half(w - side) + side, half(h - side) + side


RIGHT = {
    check.middle: lambda w, h: middle(w, h, min(w, h)),
    check.to_picture: lambda pixels: to_tensor(Image.fromarray(np.asarray(pixels))),
    check.last_steps: last_timesteps,
    check.start: lambda x0, noise, steps, table: hide(x0, noise, table[steps[-1]]),
}
WRONG = [
    (check.middle, lambda w, h: (0, 0, min(w, h), min(w, h)), "corner"),
    (check.middle, lambda w, h: (*middle(w, h, min(w, h))[:2], min(w, h), min(w, h)), "not widths"),
    (check.middle, lambda w, h: middle(w, h, min(w, h), lambda x: x / 2), "//"),
    (check.middle, lambda w, h: middle(w, h, h), "not for a high one"),
    (check.middle, lambda w, h: (0, 0, w, h), "squeezed"),
    (check.to_picture, lambda p: p.permute(2, 0, 1)[None] / 255, "0 to 1"),
    (check.to_picture, lambda p: p.permute(2, 0, 1)[None] / 128 - 1, "127.5"),
    (check.to_picture, lambda p: p.permute(2, 1, 0)[None] / 127.5 - 1, "changed places"),
    (check.to_picture, lambda p: p.reshape(1, 3, *p.shape[:2]) / 127.5 - 1, "permute"),
    (check.to_picture, lambda p: p.permute(2, 0, 1) / 127.5 - 1, "batch"),
    (check.last_steps, lambda t, k: t[-int(k * len(t)) :], "noise is high"),
    (check.last_steps, lambda t, k: t[: round((1 - k) * len(t))], "1 - strength"),
    (check.last_steps, lambda t, k: t[: int(k * len(t))].flip(0), "ascending"),
    (check.last_steps, lambda t, k: t[: int(k * len(t)) + 1], "one step too many"),
    (check.last_steps, lambda t, k: t[: round(k * len(t))], "one step too many"),
    (check.start, lambda x0, noise, t, table: hide(x0, noise, table[t[0]]), "where the run ends"),
    (check.start, lambda x0, noise, t, table: table[t[-1]] * x0 + (1 - table[t[-1]]) * noise, "square roots"),
    (check.start, lambda x0, noise, t, table: x0 + noise, "all the noise"),
    (check.start, lambda x0, noise, t, table: hide(noise, x0, table[t[-1]]), "changed their factors"),
    (check.start, lambda x0, noise, t, table: hide(x0, noise, table[len(t)]), "number of steps"),
]


@pytest.mark.parametrize("exercise", RIGHT, ids=lambda exercise: exercise.__name__)
def test_a_right_answer_is_right_and_none_is_asked_for(exercise):
    assert exercise(RIGHT[exercise]).state == "right"
    assert exercise(lambda *_: ...).state == "open"


@pytest.mark.parametrize(("exercise", "answer", "words"), WRONG)
def test_a_likely_mistake_is_named(exercise, answer, words):
    said = exercise(answer)
    assert said.state == "wrong" and words in said.sentence


def test_the_first_latent_is_made_with_the_schedule_of_the_real_model():
    shapes = []
    check.start(lambda x0, noise, t, table: shapes.append((x0.shape, table.shape)))
    assert shapes == [(torch.Size([1, 4, 8, 8]), torch.Size([1000]))]
