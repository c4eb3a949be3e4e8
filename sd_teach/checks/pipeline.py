"""The exercises of chapter 7, the pipeline."""

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sd_teach.checks import Verdict, mark


def pixels(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """7.1: answer(pictures [b, 3, h, w], about -1..1) -> bytes [b, h, w, 3], clamped, scaled, rounded."""
    pictures = torch.linspace(-1.3, 1.3, 2 * 3 * 4 * 5).view(2, 3, 4, 5)
    exact = (pictures.clamp(-1, 1) + 1) * 127.5

    def last(values: Tensor) -> Tensor:
        return values.byte().permute(0, 2, 3, 1)

    right = last(exact.round())
    return mark(
        "7.1",
        answer,
        pictures,
        ask="clamp to -1..1, scale to 0..255, round, make bytes of it, and move the channels to the end",
        expected=right,
        mistakes={
            "the numbers are right but not rounded: byte() cuts the fraction off, and every picture gets half a grey "
            "level darker": last(exact),
            "some bytes have wrapped around: what lies beyond -1 or 1 must be clamped before it becomes a byte": last(
                ((pictures + 1) * 127.5).round().int()
            ),
            "you scaled as if from 0 to 1, pictures reach from -1: everything darker than middle grey is black": last(
                (pictures.clamp(0, 1) * 255).round()
            ),
            "you scaled before you clamped to 1, so that nothing but black and almost black is left": last(
                ((pictures + 1) * 127.5).clamp(-1, 1).round().abs()
            ),
            "that is view or reshape, which only cuts the same row of numbers elsewhere: channels move by permute": (
                exact.round().byte().reshape(2, 4, 5, 3)
            ),
            "width and height have changed places: permute(0, 2, 3, 1)": exact.round().byte().permute(0, 3, 2, 1),
            "the channels are in reverse order, blue first: that is OpenCV's order, not this one's": right.flip(-1),
            "the bytes are right, the channels are still in front: permute(0, 2, 3, 1)": exact.round().byte(),
        },
        right="clamped, scaled, rounded: no picture can be nearer to what the decoder said in eight bits",
        atol=0.0,
        dtype=(torch.uint8, "not bytes yet: byte()"),
    )


def settings(answer: Callable[[Mapping[str, str]], Mapping[str, object]]) -> Verdict:
    """7.2: answer(text) -> the keyword arguments of text_to_image, from a PNG's text chunks, which are all strings."""
    text = {"prompt": "7", "negative_prompt": "", "steps": "10", "guidance_scale": "3.0", "seed": "12345", "eta": "0.0"}
    expected = {"prompt": "7", "negative_prompt": "", "steps": 10, "guidance_scale": 3.0, "seed": 12345, "eta": 0.0}

    def typed(answer: object) -> object:
        # 10 == 10.0 in Python, but no run has 10.0 steps
        return {key: (type(value).__name__, value) for key, value in sorted(answer.items())}

    def run() -> object:
        answered = answer(dict(text))
        if answered is None or answered is ...:
            return None
        if not isinstance(answered, Mapping):
            raise TypeError(f"a dict is wanted, this is a {type(answered).__name__}")
        return typed(answered)

    def but(**changes: object) -> object:
        return typed(expected | changes)

    numbers = {key: float(expected[key]) for key in ("steps", "guidance_scale", "seed", "eta")}
    return mark(
        "7.2",
        run,
        ask="return a dict: steps and seed as int, guidance_scale and eta as float, the prompts as they are",
        expected=typed(expected),
        mistakes={
            "these are all strings still: a run wants int and float": typed(text),
            "a seed and a number of steps are whole numbers: int, not float": but(**numbers),
            "steps is a whole number: int, not float": but(steps=10.0),
            "seed is a whole number: int, not float": but(seed=12345.0),
            "the scale and eta are not whole numbers in general: float, not int": but(guidance_scale=3, eta=0),
            "you turned whatever looks like a number into one; this prompt is the text 7": but(prompt=7),
            "the empty negative prompt is lost: an empty text is a text": typed(
                {key: value for key, value in expected.items() if key != "negative_prompt"}
            ),
        },
        right="a picture that says how it was made can be made again",
    )


def compare_names(answer: Callable[[set[str], set[str]], tuple[list[str], list[str]]]) -> Verdict:
    """7.3: answer(wanted, found) -> (missing, unexpected), both sorted."""
    both = {"conv.bias", "conv.weight"}  # of the others so many that no set has them in order by chance
    missing = [f"{part}.{kind}" for part in ("down", "mid", "out", "up") for kind in ("bias", "weight")]
    unexpected = ["alpha", "beta", "ema", "epoch", "loss", "rng", "step", "time"]
    wanted, found = both.union(missing), both.union(unexpected)
    unsorted: list[bool] = []

    def run() -> object:
        answered = answer(set(wanted), set(found))
        if answered is None or answered is ...:
            return None
        if not isinstance(answered, (tuple, list)) or len(answered) != 2:
            raise TypeError("two lists are wanted: missing, unexpected")
        lists = all(isinstance(names, list) for names in answered)
        unsorted.append(lists and [sorted(names) for names in answered] == [missing, unexpected])
        return tuple(tuple(names) if isinstance(names, list) else names for names in answered)

    said = mark(
        "7.3",
        run,
        ask="return two sorted lists: the names that are wanted and not found, and those found and not wanted",
        expected=(tuple(missing), tuple(unexpected)),
        mistakes={
            "the two have changed places: missing is what the network wants and the file lacks": (
                tuple(unexpected),
                tuple(missing),
            ),
            "these are sets: a message that names names should name them in the same order every time, sort them": (
                set(missing),
                set(unexpected),
            ),
            "both lists hold both kinds: that is the symmetric difference ^, it does not say whose name it is": (
                tuple(sorted(wanted ^ found)),
                tuple(sorted(wanted ^ found)),
            ),
            "you return the names on both sides: the difference of sets is -": (
                tuple(sorted(wanted & found)),
                tuple(sorted(wanted & found)),
            ),
            "the missing ones are right; a name too many is a warning as well, that the file is of another model": (
                tuple(missing),
                (),
            ),
        },
        right="a loader that says both by name would have saved many evenings",
    )
    if said.state == "wrong" and unsorted == [True]:
        return Verdict("7.3", "wrong", "the right names, but not sorted: a set has another order in every run")
    return said


def whiteboard(answer: str) -> Verdict:
    """7.4: the letters of a run's eight lines, in the order in which they have to stand."""
    a_right, b_right = "FCEAGHDB", "CFEAGHDB"  # texts and noise do not need each other
    if isinstance(answer, str):
        answer = "".join(letter for letter in answer.upper() if letter.isalpha())
        if not answer:
            answer = None
        elif sorted(answer) != sorted(a_right):
            return Verdict("7.4", "wrong", "each of the letters A to H is needed, and once")
    after = {first + second: sentence for first, second, sentence in _ORDER}
    if isinstance(answer, str) and answer not in (a_right, b_right):
        for first, second in itertools.combinations(answer, 2):
            if second + first in after:
                return Verdict("7.4", "wrong", after[second + first])
    return mark(
        "7.4",
        b_right if answer == a_right else answer,
        ask="give a string of the letters A to H, in the order of the lines",
        expected=b_right,
        mistakes={},
        right="that is text-to-image: E, A, G and H are done in every step, the others once",
    )


# (line, a line that needs it, what to say when the second stands before the first)
_ORDER = (
    ("F", "E", "the UNet reads the text states: F must come before E"),
    ("C", "E", "there is no x yet for the UNet to look at: C must come before E"),
    ("E", "A", "guidance joins two predictions, and they are made in E: it must come before A"),
    ("A", "G", "pred_x0 takes away the guided eps: A must come before G"),
    ("G", "H", "the step back to less noise starts at x0: G must come before H"),
    ("H", "D", "the decoder comes once, after the last step: H must come before D"),
    ("D", "B", "bytes are made of what the decoder gives: D must come before B"),
)
