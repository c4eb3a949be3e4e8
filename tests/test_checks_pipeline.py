"""What the exercises of chapter 7 say of right answers, of none, and of the likeliest mistakes."""

import pytest

from sd_teach.checks import pipeline as check


@pytest.mark.parametrize("exercise", [check.pixels, check.settings, check.compare_names])
def test_no_answer_is_asked_for(exercise):
    assert exercise(lambda *arguments: ...).state == "open"
    assert exercise(lambda *arguments: None).state == "open"


@pytest.mark.parametrize("answer", [..., None, ""])
def test_no_order_of_the_lines_is_asked_for(answer):
    assert check.whiteboard(answer).state == "open"


def scaled(p):
    return (p.clamp(-1, 1) + 1) * 127.5


def test_pixels_are_right():
    assert check.pixels(lambda p: scaled(p).round().byte().permute(0, 2, 3, 1)).state == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda p: scaled(p).byte().permute(0, 2, 3, 1), "not rounded"),
        (lambda p: ((p + 1) * 127.5).round().int().byte().permute(0, 2, 3, 1), "wrapped around"),
        (lambda p: (p.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1), "as if from 0 to 1"),
        (lambda p: scaled(p).round().byte().reshape(2, 4, 5, 3), "view or reshape"),
        (lambda p: scaled(p).round().byte().permute(0, 3, 2, 1), "width and height"),
        (lambda p: scaled(p).round().byte().permute(0, 2, 3, 1).flip(-1), "blue first"),
        (lambda p: scaled(p).round().byte(), "channels are still in front"),
        (lambda p: scaled(p).round().permute(0, 2, 3, 1), "not bytes yet"),
    ],
)
def test_pixels_gone_wrong(answer, words):
    said = check.pixels(answer)
    assert said.state == "wrong" and words in said.sentence


KINDS = {"steps": int, "guidance_scale": float, "seed": int, "eta": float}


def settings(text, kinds=KINDS):
    return {key: kinds.get(key, str)(value) for key, value in text.items()}


def test_settings_are_right():
    assert check.settings(settings).state == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda text: text, "strings still"),
        (lambda text: settings(text, dict.fromkeys(KINDS, float)), "whole numbers: int, not float"),
        (lambda text: settings(text, KINDS | {"steps": float}), "steps is a whole number"),
        (lambda text: settings(text, KINDS | {"seed": float}), "seed is a whole number"),
        (lambda text: settings(text, KINDS | dict.fromkeys(("guidance_scale", "eta"), lambda v: int(float(v)))), "eta"),
        (lambda text: settings(text, KINDS | {"prompt": int}), "this prompt is the text 7"),
        (lambda text: {key: value for key, value in settings(text).items() if value != ""}, "empty negative prompt"),
        (lambda text: list(text), "a dict is wanted, this is a list"),
    ],
)
def test_settings_gone_wrong(answer, words):
    said = check.settings(answer)
    assert said.state == "wrong" and words in said.sentence


def test_names_are_right():
    assert check.compare_names(lambda w, f: (sorted(w - f), sorted(f - w))).state == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda w, f: (sorted(f - w), sorted(w - f)), "changed places"),
        (lambda w, f: (w - f, f - w), "sort them"),
        (lambda w, f: (sorted(w - f)[::-1], sorted(f - w)), "not sorted"),
        (lambda w, f: (sorted(w ^ f), sorted(w ^ f)), "symmetric difference"),
        (lambda w, f: (sorted(w & f), sorted(w & f)), "difference of sets"),
        (lambda w, f: (sorted(w - f), []), "a name too many"),
        (lambda w, f: sorted(w - f)[:1], "two lists are wanted"),
    ],
)
def test_names_gone_wrong(answer, words):
    said = check.compare_names(answer)
    assert said.state == "wrong" and words in said.sentence


@pytest.mark.parametrize("answer", ["FCEAGHDB", "CFEAGHDB", "f c e a g h d b", "F, C, E, A, G, H, D, B"])
def test_the_whiteboard_is_right(answer):
    assert check.whiteboard(answer).state == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("CEFAGHDB", "reads the text states"),
        ("FECAGHDB", "no x yet"),
        ("FCAEGHDB", "two predictions"),
        ("FCEGAHDB", "guided eps"),
        ("FCEAHGDB", "starts at x0"),
        ("FCEAGDHB", "the decoder comes once"),
        ("FCEAGHBD", "bytes are made"),
        ("ABCDEFG", "each of the letters"),
        (7, "7 is not it"),
    ],
)
def test_whiteboards_gone_wrong(answer, words):
    said = check.whiteboard(answer)
    assert said.state == "wrong" and words in said.sentence
