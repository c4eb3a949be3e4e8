"""What the exercises call to mark an answer: a module a chapter, a function an exercise.

A check knows the right answer and what the likeliest mistakes give, so that it can say which one was made.
"""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_COLOURS = {"open": "#e8eaf2", "wrong": "#fde2c8", "right": "#d9f0dc"}
_MARKS = {"open": "…", "wrong": "✗", "right": "✓"}


@dataclass(frozen=True)
class Verdict:
    """What a check says; a notebook shows it as a coloured line."""

    exercise: str  # "3.2"
    state: str  # "open": nothing to mark yet; "wrong"; "right"
    sentence: str

    def __repr__(self) -> str:
        return f"{_MARKS[self.state]} {self.exercise}: {self.sentence}"

    def _repr_html_(self) -> str:
        style = f"background:{_COLOURS[self.state]};color:#222;padding:6px 10px;border-radius:4px"
        return f'<div style="{style}">{html.escape(repr(self))}</div>'


def mark(
    exercise: str,
    answer: object,
    *arguments: object,
    ask: str,
    expected: object,
    mistakes: Mapping[str, object],
    right: str,
    atol: float = 1e-5,
    dtype: tuple[torch.dtype, str] | None = None,
) -> Verdict:
    """Compare an answer with what is expected, then with what the likeliest mistakes give.

    answer: a value, or a function to call with the arguments: a Tensor, number, string, or a list or tuple of them.
    ask: what to do, said while there is no answer (None or ...). right: said of the right one.
    mistakes: sentence -> the answer to which it belongs. atol: absolute tolerance of numbers.
    dtype: of a right tensor, where that matters, and what is said of another.
    """
    if callable(answer):
        try:
            answer = answer(*arguments)
        except Exception as error:
            return Verdict(exercise, "wrong", f"your function stops with {type(error).__name__}: {error}")
    if answer is None or answer is ...:
        return Verdict(exercise, "open", ask)
    if _same(answer, expected, atol):
        if dtype and answer.dtype != dtype[0]:
            return Verdict(exercise, "wrong", f"the numbers are right, but they are {answer.dtype}, {dtype[1]}")
        return Verdict(exercise, "right", right)
    for sentence, wrong in mistakes.items():
        if _same(answer, wrong, atol):
            return Verdict(exercise, "wrong", sentence)
    return Verdict(exercise, "wrong", _difference(answer, expected, atol))


def _plain(a: object) -> object:
    """A tensor or array of one number as that number, anything else as it is."""
    return a.item() if isinstance(a, (Tensor, np.ndarray, np.generic)) and math.prod(a.shape) == 1 else a


def _same(a: object, b: object, atol: float) -> bool:
    if isinstance(b, Tensor):
        if b.ndim == 0 and isinstance(_plain(a), (int, float)) and not isinstance(a, Tensor):
            a = torch.tensor(float(_plain(a)))
        if not isinstance(a, Tensor) or a.shape != b.shape:
            return False
        return torch.allclose(a.double(), b.double(), rtol=0.0, atol=atol)
    if isinstance(b, (list, tuple)):
        return isinstance(a, (list, tuple)) and len(a) == len(b) and all(map(_same, a, b, [atol] * len(b)))
    if isinstance(b, (int, float)) and not isinstance(b, bool):
        a = _plain(a)
        return isinstance(a, (int, float)) and math.isclose(a, b, rel_tol=0.0, abs_tol=atol)
    return type(a) is type(b) and a == b


def _difference(answer: object, expected: object, atol: float) -> str:
    if isinstance(expected, Tensor):
        if not isinstance(answer, Tensor):
            return f"a tensor is wanted, this is a {type(answer).__name__}"
        if answer.shape != expected.shape:
            return f"the shape is {list(answer.shape)}, {list(expected.shape)} is wanted"
        if not answer.isfinite().all():
            return "the shape is right, but some of the numbers are not finite: look for a division by 0 or a root"
        off = answer.double() - expected.double()
        return f"the shape is right, the numbers are not: they are off by up to {off.abs().max():.3g}"
    if isinstance(expected, (list, tuple)):
        if not isinstance(answer, (list, tuple)):
            return f"{len(expected)} values are wanted, this is a {type(answer).__name__}"
        if len(answer) != len(expected):
            return f"{len(expected)} values are wanted, these are {len(answer)}"
        place = [_same(a, b, atol) for a, b in zip(answer, expected, strict=True)].index(False)
        return f"value {place + 1} of {len(expected)}: {_difference(answer[place], expected[place], atol)}"
    return f"not yet: {answer!r} is not it"
