"""The exercises of chapter 9."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from sd_teach.checks import Verdict, mark

_GENERATOR = torch.Generator().manual_seed(9)


def latent_mask(answer: Callable) -> Verdict:
    """9.1: white [1, 1, h, w] -> keep [1, 1, h/8, w/8]."""
    white = torch.zeros(1, 1, 32, 24)
    white[:, :, 5:19, 6:17] = 1
    redrawn = F.max_pool2d(white, 8)
    return mark(
        "9.1", answer, white,
        ask="return 1 where a place of the latent is kept, 0 where any of its 8 x 8 pixels is white",
        expected=1 - redrawn,
        mistakes={
            "this is 1 where the latent is redrawn; LDM's mask is 1 where it is kept": redrawn,
            "a mean gives greys at the edge of the mask: a place is redrawn if any of its pixels is": 1
            - F.avg_pool2d(white, 8),
            "you keep a place if any of its pixels is black; then white pixels stay as they were": F.max_pool2d(
                1 - white, 8
            ),
            "one pixel of each place decides for all 64: look at all of them": 1 - white[:, :, ::8, ::8],
            "the mask still has the picture's size": 1 - white,
        },
        right="all that is white is redrawn, and a little beside it",
    )  # fmt: skip


def blend(answer: Callable) -> Verdict:
    """9.2: (x, x0, noise, keep, alpha_bar_t) -> the latent to go on with."""
    x, x0, noise = torch.randn(3, 1, 4, 6, 6, generator=_GENERATOR)
    keep, a = torch.zeros(1, 1, 6, 6), torch.tensor(0.4)
    keep[:, :, :, :3] = 1
    hidden = a.sqrt() * x0 + (1 - a).sqrt() * noise
    return mark(
        "9.2", answer, x, x0, noise, keep, a,
        ask="return the picture, hidden in noise, where keep is 1, and x where it is 0",
        expected=keep * hidden + (1 - keep) * x,
        mistakes={
            "you keep what should be redrawn: keep is 1 where the picture stays": keep * x + (1 - keep) * hidden,
            "the known part has no noise: the network expects as much everywhere as t says": keep * x0
            + (1 - keep) * x,
            "the known part is added to x instead of taking its place: x belongs where keep is 0": keep * hidden + x,
            "the square roots are missing": keep * (a * x0 + (1 - a) * noise) + (1 - keep) * x,
        },
        right="one latent in which everything is equally noisy",
    )  # fmt: skip


def paste_back(answer: Callable) -> Verdict:
    """9.3: (drawn, original, white) -> the picture with its own pixels outside the mask."""
    drawn, original = torch.rand(2, 3, 16, 16, generator=_GENERATOR)
    white = torch.zeros(1, 16, 16)
    white[:, 4:12, 4:12] = 1
    return mark(
        "9.3", answer, drawn, original, white,
        ask="return what was drawn where white is 1, and the original elsewhere",
        expected=white * drawn + (1 - white) * original,
        mistakes={
            "inside and outside have changed places: white is where it was redrawn": white * original
            + (1 - white) * drawn,
            "that is the drawn picture alone: outside the mask the original's pixels are wanted": drawn,
            "outside the mask this is black: the original is missing": white * drawn,
            "a mean of both is neither": (drawn + original) / 2,
        },
        right="not a pixel outside the mask has changed",
    )  # fmt: skip
