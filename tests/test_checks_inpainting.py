"""The exercises of chapter 9: what their checks say of right and of likely wrong answers."""

import pytest
import torch.nn.functional as F

from sd_teach.checks import inpainting as check


def hide(x0, noise, a):
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


RIGHT = {
    check.latent_mask: lambda white: (F.avg_pool2d(white, 8) == 0).float(),
    check.blend: lambda x, x0, noise, keep, a: hide(x0, noise, a).where(keep == 1, x),
    check.paste_back: lambda drawn, original, white: drawn.where(white == 1, original),
}
WRONG = [
    (check.latent_mask, lambda white: F.max_pool2d(white, 8), "LDM's mask"),
    (check.latent_mask, lambda white: 1 - F.avg_pool2d(white, 8), "greys"),
    (check.latent_mask, lambda white: F.max_pool2d(1 - white, 8), "black"),
    (check.latent_mask, lambda white: 1 - white[:, :, ::8, ::8], "decides for all"),
    (check.latent_mask, lambda white: 1 - white, "picture's size"),
    (check.blend, lambda x, x0, noise, keep, a: keep * x + (1 - keep) * hide(x0, noise, a), "should be redrawn"),
    (check.blend, lambda x, x0, noise, keep, a: keep * x0 + (1 - keep) * x, "no noise"),
    (check.blend, lambda x, x0, noise, keep, a: keep * hide(x0, noise, a) + x, "added"),
    (check.blend, lambda x, x0, noise, keep, a: keep * (a * x0 + (1 - a) * noise) + (1 - keep) * x, "square roots"),
    (check.paste_back, lambda drawn, original, white: white * original + (1 - white) * drawn, "changed places"),
    (check.paste_back, lambda drawn, original, white: drawn, "alone"),
    (check.paste_back, lambda drawn, original, white: white * drawn, "black"),
    (check.paste_back, lambda drawn, original, white: (drawn + original) / 2, "mean"),
]


@pytest.mark.parametrize("exercise", RIGHT, ids=lambda exercise: exercise.__name__)
def test_a_right_answer_is_right_and_none_is_asked_for(exercise):
    assert exercise(RIGHT[exercise]).state == "right"
    assert exercise(lambda *_: ...).state == "open"


@pytest.mark.parametrize(("exercise", "answer", "words"), WRONG)
def test_a_likely_mistake_is_named(exercise, answer, words):
    said = exercise(answer)
    assert said.state == "wrong" and words in said.sentence
