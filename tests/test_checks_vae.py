"""What the exercises of chapter 6 say of right answers and of the likeliest mistakes."""

import pytest
import torch
import torch.nn.functional as F

from sd_teach.checks import vae as check

EXERCISES = [check.fewer_numbers, check.upsample, check.fit_with_offset, check.to_decoder]
NUMBERS = ["6.1", "6.2", "6.3", "6.4"]


def conv(h, weight, bias, padding=1):
    return F.conv2d(h, weight, bias, padding=padding)


def both(h):
    return h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def fit(A, B):
    return torch.linalg.lstsq(A, B).solution


RIGHT = [
    lambda factor, channels: 3 * factor**2 / channels,
    lambda h, weight, bias: conv(both(h), weight, bias),
    lambda X, Y: fit(torch.cat([X, torch.ones(len(X), 1)], dim=1), Y),
    lambda x0, scale: x0 / scale,
]


@pytest.mark.parametrize(("exercise", "number"), list(zip(EXERCISES, NUMBERS, strict=True)))
def test_no_answer_is_asked_for(exercise, number):
    verdict = exercise(lambda *arguments: ...)
    assert (verdict.state, verdict.exercise) == ("open", number)


@pytest.mark.parametrize(("exercise", "answer"), list(zip(EXERCISES, RIGHT, strict=True)))
def test_the_right_answer_is_praised(exercise, answer):
    assert exercise(answer).state == "right"


MISTAKES = [
    (check.fewer_numbers, lambda factor, channels: 3 * factor / channels, "on both sides"),
    (check.fewer_numbers, lambda factor, channels: factor**2 / channels, "red, green and blue"),
    (check.fewer_numbers, lambda factor, channels: 3 * factor**2, "not one number"),
    (check.fewer_numbers, lambda factor, channels: 3 * factor**2 * channels, "divide by them"),
    (check.fewer_numbers, lambda factor, channels: channels / (3 * factor**2), "upside down"),
    (check.fewer_numbers, lambda factor, channels: factor**2, "16 is not it"),
    (check.upsample, lambda h, w, b: both(conv(h, w, b)), "convolve first"),
    (check.upsample, lambda h, w, b: conv(F.interpolate(h, scale_factor=2.0, mode="bilinear"), w, b), "bilinear"),
    (check.upsample, lambda h, w, b: conv(h.repeat(1, 1, 2, 2), w, b), "repeat_interleave"),
    (check.upsample, lambda h, w, b: both(h), "the convolution is missing"),
    (check.upsample, lambda h, w, b: conv(both(h), w, b, padding=0), "padding=1"),
    (check.upsample, lambda h, w, b: conv(h.repeat_interleave(2, dim=2), w, b), "only the rows"),
    (check.upsample, lambda h, w, b: conv(h.repeat_interleave(2, dim=3), w, b), "only the columns"),
    (check.fit_with_offset, lambda X, Y: fit(X, Y), "twelve numbers"),
    (check.fit_with_offset, lambda X, Y: fit(torch.cat([torch.ones(len(X), 1), X], dim=1), Y), "first row"),
    (check.fit_with_offset, lambda X, Y: fit(Y, X), "wrong way round"),
    (check.fit_with_offset, lambda X, Y: torch.cat([fit(X, Y - Y.mean(0)), Y.mean(0)[None]]), "mean of X is 0"),
    (check.fit_with_offset, lambda X, Y: torch.linalg.lstsq(X, Y), "a tensor is wanted"),
    (check.to_decoder, lambda x0, scale: x0 * scale, "you multiply"),
    (check.to_decoder, lambda x0, scale: x0, "nothing has happened"),
    (check.to_decoder, lambda x0, scale: x0 / scale**2, "twice"),
    (check.to_decoder, lambda x0, scale: x0 / scale**0.5, "root"),
    (check.to_decoder, lambda x0, scale: x0.div_(scale), "caller's latent has changed"),
]


@pytest.mark.parametrize(("exercise", "answer", "words"), MISTAKES)
def test_a_mistake_is_told_what_it_is(exercise, answer, words):
    verdict = exercise(answer)
    assert verdict.state == "wrong" and words in verdict.sentence


def test_every_mistake_has_a_sentence_of_its_own():
    assert len({exercise(answer).sentence for exercise, answer, _ in MISTAKES}) == len(MISTAKES)


def test_an_answer_is_wanted_as_a_tensor_of_the_right_shape():
    assert "[1, 5, 8, 12] is wanted" in check.upsample(lambda h, w, b: torch.zeros(1, 5, 4, 6)).sentence
