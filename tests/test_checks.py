"""The marking of answers; what each exercise's check says of its likeliest mistakes is in test_checks_<chapter>.py."""

import numpy as np
import pytest
import torch

from sd_teach.checks import Verdict, mark


def verdict(answer, *arguments, expected=2.0, mistakes=None, atol=1e-5) -> Verdict:
    return mark(
        "1.1", answer, *arguments, ask="double it", expected=expected, mistakes=mistakes or {}, right="yes", atol=atol
    )


@pytest.mark.parametrize("answer", [None, ..., lambda: None, lambda: ...])
def test_no_answer_yet_is_asked_for(answer):
    assert verdict(answer) == Verdict("1.1", "open", "double it")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (2.0, 2.0),
        (torch.tensor(2.0), 2.0),
        (np.float32(2.0), 2.0),
        (2.0, torch.tensor(2.0)),
        (torch.ones(3), torch.ones(3)),
        ("cat", "cat"),
        ([1, torch.ones(2)], (1, torch.ones(2))),
        (lambda: 2.0, 2.0),
    ],
)
def test_a_right_answer_is_praised(answer, expected):
    assert verdict(answer, expected=expected) == Verdict("1.1", "right", "yes")


def test_a_function_is_called_with_the_arguments():
    assert verdict(lambda x, y: x * y, 2.0, 3.0, expected=6.0).state == "right"


def test_a_known_mistake_is_named():
    said = verdict(torch.tensor([4.0]), expected=torch.tensor([2.0]), mistakes={"squared": torch.tensor([4.0])})
    assert said == Verdict("1.1", "wrong", "squared")


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (3.0, 2.0, "3.0 is not it"),
        ("dog", "cat", "'dog' is not it"),
        (True, "cat", "True is not it"),
        (3.0, torch.ones(2), "this is a float"),
        (torch.ones(3), torch.ones(1, 3), "[3], [1, 3] is wanted"),
        (torch.tensor([torch.nan]), torch.ones(1), "not finite"),
        (torch.tensor([1.5]), torch.ones(1), "up to 0.5"),
        ([1], [1, 2], "2 values are wanted, these are 1"),
        (torch.ones(2), [1, 2], "2 values are wanted, this is a Tensor"),
        ((1, torch.zeros(256)), (1, torch.ones(256)), "value 2 of 2: the shape is right, the numbers are not"),
        (torch.tensor([False]), torch.tensor([True]), "up to 1"),
        (torch.tensor([0], dtype=torch.uint8), torch.tensor([1], dtype=torch.uint8), "up to 1"),
        (torch.tensor([1.4]), torch.tensor([1]), "up to 0.4"),
    ],
)
def test_any_other_answer_is_told_how_it_differs(answer, expected, words):
    said = verdict(answer, expected=expected)
    assert said.state == "wrong" and words in said.sentence


def test_a_function_that_stops_is_told_why():
    said = verdict(lambda x: x.nothing, 1.0)
    assert said.state == "wrong" and "AttributeError" in said.sentence and "nothing" in said.sentence


def test_tolerance_is_absolute():
    assert verdict(2.0009, atol=1e-3).state == "right"
    assert verdict(2.0011, atol=1e-3).state == "wrong"
    assert verdict(2000.1, expected=2000.0).state == "wrong"


def test_a_notebook_shows_a_verdict_as_one_escaped_line():
    said = Verdict("3.2", "wrong", "x < y")
    assert repr(said) == "✗ 3.2: x < y"
    assert "x &lt; y" in said._repr_html_()
