"""The exercises of chapter 8."""

from collections.abc import Callable

import torch

from sd_teach.checks import Verdict, mark
from sd_teach.ddim import ddim_timesteps
from sd_teach.noise import NoiseSchedule


def middle(answer: Callable) -> Verdict:
    """8.1: (width, height) -> (left, top, right, bottom)."""

    def run() -> object:
        answers = [answer(451, 300), answer(300, 451)]
        return None if all(a is None or a is ... for a in answers) else answers

    return mark(
        "8.1", run,
        ask="return left, top, right and bottom of the largest square in the middle",
        expected=[(75, 0, 375, 300), (0, 75, 300, 375)],
        mistakes={
            "this is the corner, not the middle: leave as much on the left as on the right": [(0, 0, 300, 300)] * 2,
            "right and bottom are places, not widths: add left and top": [(75, 0, 300, 300), (0, 75, 300, 300)],
            "whole pixels are wanted: divide with //": [(75.5, 0.0, 375.5, 300.0), (0.0, 75.5, 300.0, 375.5)],
            "this is the whole picture; resized to a square it would be squeezed": [(0, 0, 451, 300), (0, 0, 300, 451)],
            "right for a wide picture, not for a high one: the side is the smaller of the two": [
                (75, 0, 375, 300), (-76, 0, 375, 451)
            ],
        },
        right="as much is cut on the left as on the right",
    )  # fmt: skip


def to_picture(answer: Callable) -> Verdict:
    """8.2: uint8 [h, w, 3] -> [1, 3, h, w] in [-1, 1]."""
    pixels = torch.randint(256, (8, 6, 3), generator=torch.Generator().manual_seed(8), dtype=torch.uint8)
    picture = pixels.permute(2, 0, 1)[None]
    return mark(
        "8.2", answer, pixels,
        ask="return a float tensor [1, 3, h, w] with values from -1 to 1",
        expected=picture / 127.5 - 1,
        mistakes={
            "these go from 0 to 1: the networks know pictures from -1 to 1": picture / 255,
            "128 is not the middle of 0 to 255: divide by 127.5, so that 255 becomes 1": picture / 128 - 1,
            "rows and columns have changed places: the order is channels, rows, columns": pixels.permute(2, 1, 0)[None]
            / 127.5 - 1,
            "reshape keeps the numbers in a row and mixes colours with places: use permute": pixels.reshape(1, 3, 8, 6)
            / 127.5 - 1,
            "the batch is missing: one picture is [1, 3, h, w]": picture[0] / 127.5 - 1,
        },
        right="what to_tensor of sd_teach.images does",
    )  # fmt: skip


def last_steps(answer: Callable) -> Verdict:
    """8.3: (timesteps [S], strength) -> the lowest int(strength · S) of them."""
    timesteps, count = ddim_timesteps(25), 15
    return mark(
        "8.3", answer, timesteps, 0.63,
        ask="return the time steps that are left, ascending",
        expected=timesteps[:count],
        mistakes={
            "these are the first steps of a run, where noise is high: a run ends with the lowest": timesteps[-count:],
            "at strength 0 nothing should change: you keep 1 - strength of the steps": timesteps[:9],
            "these are the right steps in the order of the run; ascending is asked for": timesteps[:count].flip(0),
            "one step too many: int(strength * S) steps, so that strength 1 is all of them": timesteps[: count + 1],
        },
        right="the lowest int(strength * S) of the time steps",
    )  # fmt: skip


def start(answer: Callable) -> Verdict:
    """8.4: (x0, noise, timesteps, alphas_cumprod) -> the first latent of the run."""
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    timesteps, table = ddim_timesteps(20)[:12], NoiseSchedule().alphas_cumprod

    def hidden(alpha_bar):
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise

    a = table[timesteps[-1]]
    return mark(
        "8.4", answer, x0, noise, timesteps, table,
        ask="return x0 hidden in as much noise as the first step of the run expects",
        expected=hidden(a),
        mistakes={
            "you hide it for the lowest time step, where the run ends: it begins at the last of the list": hidden(
                table[timesteps[0]]
            ),
            "the square roots are missing": a * x0 + (1 - a) * noise,
            "you add all the noise to all of the picture: both have their factors": x0 + noise,
            "picture and noise have changed their factors": (1 - a).sqrt() * x0 + a.sqrt() * noise,
            "that is the number of steps, not the time step: look it up in timesteps": hidden(table[len(timesteps)]),
        },
        right="q_sample at the last of the time steps",
    )  # fmt: skip
