"""The exercises of chapter 5, the UNet."""

from collections.abc import Callable

import torch
from torch import Tensor

from sd_teach import unet
from sd_teach.checks import Verdict, mark
from sd_teach.unet import ResBlock, UNetConfig


def time_embedding(answer: Callable[[Tensor, int], Tensor]) -> Verdict:
    """5.1: answer(t [b], dim) -> the sinusoidal embedding [b, dim]."""
    t, dim = torch.tensor([1, 250, 999]), 8
    i = torch.arange(dim // 2)

    def embed(frequencies: Tensor) -> Tensor:
        angles = t[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    expected = unet.timestep_embedding(t, dim)
    cos, sin = expected.chunk(2, dim=-1)
    sines_first, alternating = torch.cat([sin, cos], dim=-1), torch.stack([cos, sin], dim=-1).flatten(1)
    return mark(
        "5.1",
        answer,
        t,
        dim,
        ask="return [b, dim]: dim / 2 cosines of t f_i, then dim / 2 sines",
        expected=expected,
        mistakes={
            "your sines come first: LDM has the cosines first (diffusers' bare function does as you)": sines_first,
            "your cosines and sines alternate, as in the transformers paper: here all cosines come first": alternating,
            "your last frequency is 1/10000, which the formula never reaches: the exponent is -i / half, "
            "not -i / (half - 1)": embed(10000.0 ** (-i / (dim // 2 - 1))),
            "your frequencies fall too slowly: the exponent is -2i / dim": embed(10000.0 ** (-i / dim)),
            "your frequencies grow: the exponent is negative, f_0 = 1 is the fastest": embed(10000.0 ** (2 * i / dim)),
        },
        right="the fast clocks tell t from t + 1, the slow ones tell early from late",
        atol=1e-3,  # at t = 999 an angle is rounded to 1e-4
    )


def res_block(answer: Callable[[ResBlock, Tensor, Tensor], Tensor]) -> Verdict:
    """5.2: answer(block, x [b, c, h, w], emb [b, e]) -> what the ResBlock gives, from its parts."""
    generator = torch.Generator().manual_seed(5)
    block = ResBlock(8, 16, 12, 4).requires_grad_(False)
    for parameter in block.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    x, emb = torch.randn(2, 8, 4, 4, generator=generator), torch.randn(2, 16, generator=generator)
    first, shortcut, second = block.in_layers(x), block.skip_connection(x), block.out_layers
    time, no_silu = (layer(emb)[:, :, None, None] for layer in (block.emb_layers, block.emb_layers[1]))
    return mark(
        "5.2",
        answer,
        block,
        x,
        emb,
        ask="return the block's output from in_layers, emb_layers, out_layers and skip_connection",
        expected=shortcut + second(first + time),
        mistakes={
            "the time is missing: emb_layers(emb) is added after in_layers": shortcut + second(first),
            "you add the time at the end, where nothing can use it: it belongs between in_layers and out_layers": (
                shortcut + second(first) + time
            ),
            "the shortcut is missing: without it this is no residual block": second(first + time),
            "you add the shortcut before out_layers: it goes past everything": second(first + time + shortcut),
            "the second half is missing: out_layers": shortcut + first + time,
            "you left out the SiLU before the linear layer: call emb_layers as a whole": shortcut
            + second(first + no_silu),
            "you multiply by the time: here it is added": shortcut + second(first * time),
        },
        right="one number a channel, the same at every place: so the time reaches the whole picture",
    )


def attention(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """5.3: answer(q [b, heads, l, d], k [b, heads, n, d], v [b, heads, n, d]) -> [b, heads, l, d]."""
    generator = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(2, 3, length, 16, generator=generator) for length in (5, 7, 7))
    d, n = k.shape[-1], k.shape[-2]

    def attend(scale: float, dim: int = -1) -> Tensor:
        return (scale * q @ k.mT).softmax(dim) @ v

    return mark(
        "5.3",
        answer,
        q,
        k,
        v,
        ask="return softmax(q kᵀ / sqrt(d)) v, [b, heads, l, d]",
        expected=attend(d**-0.5),
        mistakes={
            "you did not divide by sqrt(d): sums of d products spread sqrt(d) times as far, and the softmax puts "
            "nearly everything on one slot": attend(1.0),
            "you divided by d: it is the square root, as sums of d random products spread as sqrt(d)": attend(1 / d),
            "you multiplied by sqrt(d): it divides": attend(d**0.5),
            "your d is the number of slots: it is the width of a head, q.shape[-1]": attend(n**-0.5),
            "your weights sum to 1 over the places that ask: each place shares itself out over the slots, "
            "dim=-1": attend(d**-0.5, dim=-2),
            "the softmax is missing: these are scores, not weights": q @ k.mT / d**0.5 @ v,
            "these are the weights: they still have to mix the values v": (q @ k.mT / d**0.5).softmax(dim=-1),
        },
        right="this line is both attentions of the UNet: k and v come from the picture, or from the text",
    )


def skip_channels(answer: Callable[[UNetConfig], list[int]]) -> Verdict:
    """5.4: answer(config) -> channels of each skip connection, in the order in which the output blocks take them."""
    config = UNetConfig(model_channels=10, channel_mult=(1, 2, 5), num_res_blocks=3)
    widths = [config.model_channels * mult for mult in config.channel_mult]
    n, last = config.num_res_blocks, len(widths) - 1

    def pile(first: bool = True, halving: bool = True, after_last: bool = False, widen: bool = False) -> list[int]:
        channels = [config.model_channels] if first else []
        for level, width in enumerate(widths):
            channels += [width] * n
            if halving and (level < last or after_last):
                channels.append(widths[min(level + 1, last)] if widen else width)
        return channels

    return mark(
        "5.4",
        answer,
        config,
        ask="return a list: the channels of each skip, the one that output_blocks.0 takes first",
        expected=pile()[::-1],
        mistakes={
            "that is the order in which they are put down: the last one down is the first to be taken": pile(),
            "the blocks that halve the sides are missing: their outputs are kept as well": pile(halving=False)[::-1],
            "the first convolution is missing: what input_blocks.0 puts out is the last skip to be taken": pile(
                first=False
            )[::-1],
            "no block halves the sides after the lowest level": pile(after_last=True)[::-1],
            "halving the sides does not change the channels: the next ResBlock does": pile(widen=True)[::-1],
        },
        right="one for each output block; a level has one more of them than ResBlocks on the way down",
    )
