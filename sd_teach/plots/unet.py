"""Figures of the chapter on the UNet: the U itself, the time embedding, attention over a picture, where the work is."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image
from torch import Tensor

from sd_teach.plots import ACCENT, BLUE, GREEN, INK, PALE, ROSE
from sd_teach.trace import LedgerRow

_KINDS = {"ResBlock": "#a9c2ee", "ResBlock, transformer": ACCENT, "convolution": PALE, "half the sides": "#b5d8bb"}


def u_diagram(rows: Sequence[LedgerRow]) -> Figure:
    """The U: a box a block in the order of the run, a row a side of the feature map, an arrow a skip connection.

    rows: the ledger of a UNetModel, at depth 2. In a box: what it puts out, in channels; an arrow where it enlarges.
    """
    down = [row for row in rows if row.block.startswith("input_blocks.")]
    middle = [row for row in rows if row.block.startswith("middle_block.")]
    up = [row for row in rows if row.block.startswith("output_blocks.")]
    sides = sorted({row.output[-2:] for row in down}, reverse=True)
    height, count = 1.55, 2 * len(down) + 2  # of a row; boxes from left to right, with the middle and the output
    figure, axis = plt.subplots(figsize=(max(7.0, 0.42 * count + 0.9), 0.62 * height * len(sides) + 0.5))
    plt.close(figure)
    axis.set(xlim=(-2.1, count), ylim=(-height * len(sides) + 0.7, 1.35))
    axis.axis("off")

    def box(x: float, side: tuple[int, ...], colour: str, text: str, below: str) -> float:
        y = -height * sides.index(side)
        axis.add_patch(Rectangle((x - 0.43, y - 0.3), 0.86, 0.6, facecolor=colour, edgecolor=INK, linewidth=0.8))
        axis.text(x, y, text, ha="center", va="center", fontsize=8, color=INK)
        axis.text(x, y - 0.36, below, ha="center", va="top", fontsize=8, color="#777788")
        return y

    def label(row: LedgerRow) -> str:
        return f"{row.output[1]}" + ("\n↑" if "Upsample" in row.type else "")

    heights = [box(i, row.output[-2:], _colour(row), label(row), str(i)) for i, row in enumerate(down)]
    box(len(down), sides[-1], _KINDS["ResBlock, transformer"], f"{middle[-1].output[1]}", "middle")
    for i, row in enumerate(up):
        box(len(down) + 1 + i, row.input[-2:], _colour(row), label(row), str(i))
    box(count - 1, sides[0], _KINDS["convolution"], f"{rows[-1].output[1]}", "out")
    for i, y in enumerate(heights):
        # brackets of one row lie inside each other: the last block in is the first to come back
        depth = sum(other == y for other in heights[i:]) - 1
        top, end = y + 0.42 + 0.2 * depth, len(down) + len(up) - i
        axis.plot([i, i, end, end], [y + 0.3, top, top, y + 0.42], color=BLUE, linewidth=1)
        tip = dict(arrowstyle="-|>", color=BLUE, shrinkA=0, shrinkB=0, mutation_scale=8)
        axis.annotate("", (end, y + 0.29), (end, y + 0.43), arrowprops=tip)
    for level, (h, w) in enumerate(sides):
        axis.text(-0.75, -height * level, f"{h} x {w}", ha="right", va="center", fontsize=9, color=INK)
    drawn = {to_hex(patch.get_facecolor()) for patch in axis.patches}
    patches = [Patch(facecolor=c, edgecolor=INK, label=name) for name, c in _KINDS.items() if to_hex(c) in drawn]
    patches.append(plt.Line2D([], [], color=BLUE, label="skip connection"))
    axis.legend(handles=patches, loc="lower center", bbox_to_anchor=(0.53, -0.06), ncols=5, fontsize=8, frameon=False)
    figure.subplots_adjust(0.01, 0.04, 0.99, 0.99)
    return figure


def _colour(row: LedgerRow) -> str:
    if "SpatialTransformer" in row.type:
        return _KINDS["ResBlock, transformer"]
    if "ResBlock" in row.type:
        return _KINDS["ResBlock"]
    return _KINDS["half the sides" if "Downsample" in row.type else "convolution"]


def time_embedding(embedding: Tensor, frequencies: Sequence[int]) -> Figure:
    """embedding: [T, dim], a row for each time step; frequencies: entries of the first half, to draw as curves.

    The field shows means of 10 steps: what turns faster than that is pale, not a moiré.
    """
    steps, dim = embedding.shape
    means = embedding[: steps // 10 * 10].unflatten(0, (-1, 10)).mean(dim=1)
    figure, (field, curves) = plt.subplots(1, 2, figsize=(8.6, 2.5), width_ratios=(1.25, 1))
    plt.close(figure)
    extent = (0, steps, dim - 0.5, -0.5)
    few = plt.get_cmap("PuOr", 21)  # colours, so that the stored figure is small
    shown = field.imshow(
        means.numpy().T, aspect="auto", cmap=few, vmin=-1, vmax=1, extent=extent, interpolation="nearest"
    )
    field.axhline(dim / 2 - 0.5, color=INK, linewidth=1)
    field.set(xlabel="time step t", ylabel="entry i", title="embedding of every t", yticks=[0, dim // 2, dim - 1])
    for row, name in ((dim / 4, "cos"), (3 * dim / 4, "sin")):
        field.text(
            steps * 0.97, row, name, ha="right", va="center", fontsize=10, color=INK, bbox=dict(facecolor="white")
        )
    figure.colorbar(shown, ax=field, ticks=[-1, 0, 1])
    for entry, colour in zip(frequencies, (BLUE, ACCENT, GREEN, ROSE), strict=False):
        curves.plot(embedding[:, entry].numpy(), color=colour, linewidth=1.2, label=f"i = {entry}")
    curves.set(xlabel="time step t", ylabel="cos(t f_i)", title="fast and slow clocks", ylim=(-1.1, 1.1))
    curves.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    return figure


def wrong_clocks(t: Tensor, errors: Mapping[int, Tensor]) -> Figure:
    """How far the UNet's answer is off when it is told a wrong time step, at each true one.

    t: [S], the true steps. errors: told step -> [S], 1 where the error is as long as the right answer.
    """
    figure, axis = plt.subplots(figsize=(5.8, 2.7))
    plt.close(figure)
    for (told, error), colour in zip(errors.items(), (BLUE, ACCENT, GREEN, ROSE), strict=False):
        axis.plot(t, 100 * error, "o-", color=colour, markersize=3, linewidth=1.4, label=f"always {told}")
    axis.set(xlabel="true time step t", ylabel="predicted noise off by, %")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def attention_over(image: Image.Image, weights: Tensor, place: tuple[float, float] | None = None) -> Image.Image:
    """The picture in grey, lit where attention is; brightest is the map's own largest weight, dark is 0.

    weights: [h, w], 0 or more. place: (row, column) in the map, to mark with a cross.
    """
    scaled = Image.fromarray(np.asarray(weights / weights.max().clamp(min=1e-12), dtype=np.float32))
    light = np.asarray(scaled.resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] / 255
    colour = plt.get_cmap("inferno")(light[..., 0])[..., :3]
    pixels = ((0.35 * grey + 0.65 * colour) * 255).round().astype(np.uint8)
    if place is not None:
        height, width = weights.shape
        y, x = (int((place[0] + 0.5) * image.height / height), int((place[1] + 0.5) * image.width / width))
        arm, thick = max(3, image.height // 20), max(1, image.height // 80)
        pixels[max(0, y - arm) : y + arm, max(0, x - thick) : x + thick] = (120, 220, 255)
        pixels[max(0, y - thick) : y + thick, max(0, x - arm) : x + arm] = (120, 220, 255)
    return Image.fromarray(pixels)


def peaked_softmax(dims: Sequence[int], plain: Sequence[float], scaled: Sequence[float], uniform: float) -> Figure:
    """Largest weight of a softmax over head widths: without and with the division; uniform: were all weights equal."""
    figure, axis = plt.subplots(figsize=(5.4, 2.6))
    plt.close(figure)
    axis.plot(dims, plain, "o-", color=ROSE, label="softmax(q k)")
    axis.plot(dims, scaled, "o-", color=BLUE, label="softmax(q k / sqrt(d))")
    axis.axhline(uniform, color=INK, linewidth=1, linestyle="--", label="all weights equal")
    axis.set(xscale="log", xlabel="d, width of a head", ylabel="largest weight", ylim=(0, 1.02))
    axis.set_xticks(dims, [str(dim) for dim in dims])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def channel_shifts(shifts: Tensor) -> Figure:
    """What the time embedding adds to each channel of a ResBlock. shifts: [T, c], a row for each time step."""
    limit = float(shifts.abs().max())
    figure, axis = plt.subplots(figsize=(6.0, 2.6))
    plt.close(figure)
    shown = axis.imshow(
        shifts.numpy().T, aspect="auto", cmap=plt.get_cmap("PuOr", 21), vmin=-limit, vmax=limit, interpolation="nearest"
    )
    axis.set(xlabel="time step t", ylabel="channel", title="added to every place of a channel")
    figure.colorbar(shown, ax=axis)
    figure.tight_layout()
    return figure


def shares(
    panels: Mapping[str, Mapping[str, tuple[float, float]]], names: tuple[str, str] = ("parameters", "operations")
) -> Figure:
    """Two bars a label, each in percent of all bars of its colour: panel's title -> label -> (first, second).

    names: what the two colours are.
    """
    longest = max(map(len, panels.values()))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.8 * len(panels), 0.46 * longest + 0.9), squeeze=False)
    plt.close(figure)
    for axis, (title, parts) in zip(axes[0], panels.items(), strict=True):
        totals = [sum(column) for column in zip(*parts.values(), strict=True)]
        for k, (name, colour) in enumerate(zip(names, (BLUE, ACCENT), strict=True)):
            values = [100 * part[k] / totals[k] for part in parts.values()]
            bars = axis.barh([i - 0.2 + 0.4 * k for i in range(len(parts))], values, 0.38, color=colour, label=name)
            axis.bar_label(bars, [f"{value:.0f} %" for value in values], fontsize=8, padding=2)
        axis.set_yticks(range(len(parts)), parts, fontsize=9)
        axis.invert_yaxis()
        axis.set(title=title, xlabel="share, %")
        axis.set_xlim(0, axis.get_xlim()[1] * 1.12)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    return figure
