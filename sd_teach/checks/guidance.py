"""The exercises of chapter 4, guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from sd_teach.checks import Verdict, mark
from sd_teach.guidance import classifier_free_guidance

_SCALE = 5.0


def _predictions() -> tuple[Tensor, Tensor]:
    """Two stand-ins for noise predictions [2, 4, 4, 4], the second image's twice as large as the first's."""
    uncond, cond = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(4))
    sizes = torch.tensor([0.1, 0.2]).view(2, 1, 1, 1)
    return uncond * sizes, cond * sizes


def guide(answer: Callable[[Tensor, Tensor, float], Tensor]) -> Verdict:
    """4.1: answer(eps_uncond, eps_cond, scale) -> the guided prediction."""
    u, c = _predictions()
    s = _SCALE
    return mark(
        "4.1",
        answer,
        u,
        c,
        s,
        ask="return the guided prediction: start at eps_uncond, go scale times the way to eps_cond",
        expected=classifier_free_guidance(u, c, s),
        mistakes={
            "you start at eps_cond: that is Ho & Salimans' formula, whose w is s - 1, so you guide by one too much": c
            + s * (c - u),
            "your two predictions are swapped: this walks away from the prompt": c + s * (u - c),
            "your difference points from the prompt to no prompt: it is eps_cond - eps_uncond": u + s * (u - c),
            "that is the way alone: it has to be added to where it starts, eps_uncond": s * (c - u),
            "eps_cond itself is no direction: scale the difference of the two predictions": u + s * c,
            "you return the prediction for the prompt, as at scale 1: where is the scale?": c,
        },
        right="at scale 1 this gives eps_cond, at 0 eps_uncond, and everything else lies on the line through both",
    )


def batch_order(answer: list[str]) -> Verdict:
    """4.2: the four prompts of one network call, for two pictures with a negative prompt each."""
    cat, pizza, blue, empty = "a cat", "a pizza", "a blue background", ""
    return mark(
        "4.2",
        answer,
        ask="give a list of four prompts, in the order in which the text encoder gets them",
        expected=[blue, empty, cat, pizza],
        mistakes={
            "the prompts stand in the first half, so chunk(2) takes them for the unconditional predictions: the run "
            "would move away from what you asked for": [cat, pizza, blue, empty],
            "each prompt stands beside its negative one, but chunk(2) cuts the batch in the middle: it would take the "
            "first picture for the unconditional half of the second": [blue, cat, empty, pizza],
            "each prompt stands beside its negative one, and chunk(2) cuts the batch in the middle": [
                cat,
                blue,
                pizza,
                empty,
            ],
            "the halves are right, but the negative prompts have changed places: picture k is row k of both halves": [
                empty,
                blue,
                cat,
                pizza,
            ],
        },
        right="negative prompts first, then prompts, and each half in the order of the pictures",
    )


def interval(answer: Callable[[Tensor, Tensor, Callable, Callable], Tensor]) -> Verdict:
    """4.3: answer(x, t, guided, plain) -> guided(x, t) where 300 <= t < 700, else plain(x, t), calling only one."""
    x, times = torch.zeros(2, 4, 2, 2), (100, 299, 300, 500, 699, 700, 900)
    asked: list[int] = []
    idle: list[int] = []

    def guided(x: Tensor, t: Tensor) -> Tensor:
        asked.append(int(t[0]))
        return torch.ones_like(x)

    def plain(x: Tensor, t: Tensor) -> Tensor:
        idle.append(int(t[0]))
        return torch.zeros_like(x)

    def run() -> list[Tensor] | None:
        answers = [answer(x, torch.full((2,), t), guided, plain) for t in times]
        return None if all(a is None or a is ... for a in answers) else answers

    def where(condition: Callable[[int], bool]) -> list[Tensor]:
        return [torch.full_like(x, float(condition(t))) for t in times]

    said = mark(
        "4.3",
        run,
        ask="return what guided(x, t) says where 300 <= t < 700, and what plain(x, t) says elsewhere",
        expected=where(lambda t: 300 <= t < 700),
        mistakes={
            "the other way round: you guide outside the interval, and leave the middle plain": where(
                lambda t: not 300 <= t < 700
            ),
            "t = 700 is guided, and must not be: the interval is 300 <= t < 700": where(lambda t: 300 <= t <= 700),
            "t = 300 is not guided, and must be: the interval is 300 <= t < 700": where(lambda t: 300 < t < 700),
            "both ends are off by one: 300 belongs to the interval, 700 does not": where(lambda t: 300 < t <= 700),
            "you guide below 700 all the way down: what about t < 300?": where(lambda t: t < 700),
            "you guide from 300 all the way up: what about t >= 700?": where(lambda t: t >= 300),
            "you guide at every t: look at t before you call": where(lambda t: True),
            "you never guide: t is a tensor [b] of equal time steps, look at t[0]": where(lambda t: False),
        },
        right="outside the interval one prediction is enough, and that is where the time is saved",
    )
    if said.state == "right" and asked != [300, 500, 699]:
        return Verdict(
            "4.3", "wrong", "the predictions are right, but guided is called where it is not needed: no time is saved"
        )
    if said.state == "right" and idle != [100, 299, 700, 900]:
        return Verdict(
            "4.3", "wrong", "the predictions are right, but plain is called where guided is: only one is needed"
        )
    return said


def rescale(answer: Callable[[Tensor, Tensor, float], Tensor]) -> Verdict:
    """4.4: answer(guided, eps_cond, phi) -> guided, phi of it brought back to eps_cond's spread, image by image."""
    u, c = _predictions()
    guided, phi = classifier_free_guidance(u, c, _SCALE), 0.7

    def spread(eps: Tensor) -> Tensor:
        return eps.std(dim=(1, 2, 3), keepdim=True)

    ratio = spread(c) / spread(guided)
    whole = c.std() / guided.std()
    return mark(
        "4.4",
        answer,
        guided,
        c,
        phi,
        ask="give guided the standard deviation of eps_cond, then mix: phi of that and 1 - phi of guided as it was",
        expected=phi * guided * ratio + (1 - phi) * guided,
        mistakes={
            "you took one standard deviation over the whole batch, so that one picture changes another: "
            "take it over dim=(1, 2, 3), with keepdim=True": phi * guided * whole + (1 - phi) * guided,
            "your ratio is upside down: guided has to shrink to the spread of eps_cond": phi * guided / ratio
            + (1 - phi) * guided,
            "that is fully rescaled: phi is missing": guided * ratio,
            "phi and 1 - phi have changed places: phi = 0 must leave guided as it was": (1 - phi) * guided * ratio
            + phi * guided,
            "you mixed with eps_cond: the rest, 1 - phi, is guided as it was": phi * guided * ratio + (1 - phi) * c,
            "you rescaled eps_cond: it only says how large the spread should be": phi * c * ratio + (1 - phi) * guided,
        },
        right="the direction is guided, the size is what the network is used to",
    )
