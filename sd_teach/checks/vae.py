"""Marks the exercises of chapter 6."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_teach.checks import Verdict, mark


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fewer_numbers(answer: object) -> Verdict:
    """6.1: (factor, channels) -> how many times fewer numbers a latent has than its RGB picture."""
    factor, channels = 4, 5
    pixels = factor**2  # of the picture, for one place of the latent
    return mark(
        "6.1",
        answer,
        factor,
        channels,
        ask="return how many numbers of an RGB picture there are for each number of its latent",
        expected=3 * pixels / channels,
        mistakes={
            "the picture shrinks on both sides: a place stands for factor x factor pixels": 3 * factor / channels,
            "a pixel is three numbers: red, green and blue": pixels / channels,
            "a place of the latent is not one number but `channels` of them": 3 * pixels,
            "more channels, more numbers kept, less compression: divide by them": 3 * pixels * channels,
            "upside down: this is the latent's share of the picture's numbers": channels / (3 * pixels),
        },
        right="3 x 8 x 8 / 4 = 48 in Stable Diffusion; with 16 channels, as its successors have, it would be 12",
    )


def upsample(answer: object) -> Verdict:
    """6.2: (h, weight, bias) -> each place repeated twice on both sides, then a convolution padded by 1."""
    h, weight, bias = _normal(1, 3, 4, 6, seed=0), _normal(5, 3, 3, 3, seed=1), _normal(5, seed=2)

    def conv(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=1)

    nearest = F.interpolate(h, scale_factor=2.0, mode="nearest")
    return mark(
        "6.2",
        answer,
        h,
        weight,
        bias,
        ask="repeat every place twice on each side, then convolve with padding 1",
        expected=conv(nearest),
        mistakes={
            "you convolve first and repeat afterwards: every 2 x 2 places are then alike, and nothing can smooth "
            "the blocks": F.interpolate(conv(h), scale_factor=2.0, mode="nearest"),
            "you interpolate between places (bilinear); the VAE repeats each one (nearest) and lets the convolution "
            "do the smoothing": conv(F.interpolate(h, scale_factor=2.0, mode="bilinear")),
            "you repeat the whole map side by side (`repeat`); each place has to stand beside its own copy "
            "(`repeat_interleave`)": conv(h.repeat(1, 1, 2, 2)),
            "this is only the repetition: the convolution is missing": nearest,
            "the convolution lost a place at every edge: it needs padding=1": F.conv2d(nearest, weight, bias),
            "only the rows are repeated: the columns need it too (dim=3)": conv(h.repeat_interleave(2, dim=2)),
            "only the columns are repeated: the rows need it too (dim=2)": conv(h.repeat_interleave(2, dim=3)),
        },
        right="the decoder does this three times: 2 x 2 x 2 = 8",
    )


def fit_with_offset(answer: object) -> Verdict:
    """6.3: (X, Y) -> the least-squares solution of [X 1] M = Y, [5, 3]."""
    X = _normal(60, 4, seed=0) + 0.5
    Y = X @ _normal(4, 3, seed=1) + torch.tensor([0.3, -0.6, 0.9]) + 0.2 * _normal(60, 3, seed=2)
    expected = _fit(torch.cat([X, torch.ones(60, 1)], dim=1), Y)
    return mark(
        "6.3",
        answer,
        X,
        Y,
        ask="put a column of ones to the right of X, solve for Y, return the solution",
        expected=expected,
        mistakes={
            "these are the twelve numbers: without the column of ones a latent of zeros stays mid-grey": _fit(X, Y),
            "the offset stands in the first row: put the ones to the right of X, not to its left": expected.roll(1, 0),
            "the wrong way round, this makes latents of colours: lstsq(A, B) solves A M = B": _fit(Y, X),
            "the mean of Y is the offset only where the mean of X is 0: let lstsq find it, by a column of ones": (
                torch.cat([_fit(X, Y - Y.mean(dim=0)), Y.mean(dim=0, keepdim=True)])
            ),
        },
        right="fifteen numbers; programs that preview Stable Diffusion's latents carry just such a table",
        atol=1e-4,
    )


def _fit(A: Tensor, B: Tensor) -> Tensor:
    return torch.linalg.lstsq(A, B).solution


def to_decoder(answer: object) -> Verdict:
    """6.4: (z, scale) -> z / scale, and z stays as it was."""
    z, scale = _normal(1, 4, 2, 3, seed=0), 0.25
    handed = z.clone()
    verdict = mark(
        "6.4",
        answer,
        handed,
        scale,
        ask="undo the scaling of a latent of unit variance, and leave the caller's tensor alone",
        expected=z / scale,
        mistakes={
            "you multiply: the encoder's latents were multiplied by the scale factor, so the way back divides": z
            * scale,
            "nothing has happened to the latent: the decoder would see it too small": z,
            "divided twice": z / scale**2,
            "the scale factor is 1 / standard deviation already: divide by it, not by its root": z / scale**0.5,
        },
        right="the right numbers, and the caller's latent is untouched",
    )
    if verdict.state == "right" and not torch.equal(handed, z):
        sentence = "the numbers are right, but the caller's latent has changed too: /= and div_() write into it. Use /"
        return Verdict("6.4", "wrong", sentence)
    return verdict
