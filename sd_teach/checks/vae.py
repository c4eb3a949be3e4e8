"""Marks the exercises of chapter 6."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_teach.checks import Verdict, mark


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fewer_numbers(answer: object) -> Verdict:
    """6.1: (factor, channels) -> how many times fewer numbers a latent has than its RGB picture."""
    factor, channels = 4, 3
    pixels = factor**2  # of the picture, for one place of the latent
    return mark(
        "6.1",
        answer,
        factor,
        channels,
        ask="return how many numbers of an RGB picture there are for each number of its latent",
        expected=3 * pixels / channels,
        mistakes={
            "the picture shrinks on both sides: a place of the latent stands for factor x factor pixels": 3
            * factor
            / channels,
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


def sample(answer: object) -> Verdict:
    """6.3: (mean, logvar, noise) -> mean + exp(logvar / 2) noise."""
    mean, logvar, noise = (_normal(2, 4, 3, 5, seed=seed) for seed in range(3))
    return mark(
        "6.3",
        answer,
        mean,
        logvar,
        noise,
        ask="return a latent drawn from the Gaussian: its mean, and noise as large as its standard deviation",
        expected=mean + (0.5 * logvar).exp() * noise,
        mistakes={
            "your noise is multiplied by the variance; a Gaussian's noise is as large as its standard deviation, the "
            "root: exp(logvar / 2)": mean + logvar.exp() * noise,
            "your noise is multiplied by logvar itself, a logarithm: exp() comes before it is a size": mean
            + logvar * noise,
            "logvar / 2 is the logarithm of the standard deviation: exp() is still missing": mean
            + 0.5 * logvar * noise,
            "halve the logarithm, not the variance: exp(logvar / 2), not exp(logvar) / 2": mean
            + 0.5 * logvar.exp() * noise,
            "this is noise of the right size around 0: the mean is missing": (0.5 * logvar).exp() * noise,
            "this is the mode: the noise is missing": mean,
        },
        right="mean + std x noise: gradients reach both mean and logvar, so an encoder can learn them",
    )


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
