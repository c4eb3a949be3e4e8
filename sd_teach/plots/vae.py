"""Figures of chapter 6: what the autoencoder keeps, what it loses, and how it pads."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image
from torch import Tensor

from sd_teach.plots import ACCENT, BLUE, GREEN, INK, ROSE

_CURVES = (BLUE, GREEN, ROSE, ACCENT)


def error_maps(errors: Tensor, titles: Sequence[str], side: float = 1.05) -> Figure:
    """Where pictures came back different; errors: [n, h, w] in grey levels, on one scale."""
    figure, axes = plt.subplots(
        1, len(errors), figsize=(len(errors) * side + 1.0, side + 0.3), squeeze=False, layout="compressed"
    )
    plt.close(figure)
    top = float(errors.flatten().sort().values[int(0.995 * (errors.numel() - 1))])  # a few pixels may go beyond it
    for axis, error, title in zip(axes[0], errors, titles, strict=True):
        heat = axis.imshow(error.numpy(), cmap="magma", vmin=0, vmax=top)
        axis.set_title(title, fontsize=8, pad=3)
    _bare(*axes.flat)
    _bar(figure, heat, axes, "grey levels", extend="max")
    return figure


def against_shrinking(shrunk: Tensor, decoded: Tensor, photo_shrunk: float, photo_decoded: float) -> Figure:
    """Decibels of the autoencoder over those of shrinking to as many numbers; shrunk, decoded: [n], one per emoji."""
    figure, axis = plt.subplots(figsize=(5.0, 3.2), layout="constrained")
    plt.close(figure)
    values = [*shrunk.tolist(), *decoded.tolist(), photo_shrunk, photo_decoded]
    ends = [min(values) - 1, max(values) + 1]
    axis.plot(ends, ends, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    point = (ends[0] + 0.58 * (ends[1] - ends[0]),) * 2  # of the line
    axis.annotate("no better than shrinking", point, (8, -8), textcoords="offset points", fontsize=8, va="top")
    axis.scatter(shrunk, decoded, s=28, color=BLUE, label="emoji it never saw")
    axis.scatter(photo_shrunk, photo_decoded, s=70, marker="D", color=ACCENT, edgecolor=INK, label="the photograph")
    axis.set(xlabel="shrunk and enlarged, PSNR in dB", ylabel="encoded and decoded, PSNR in dB", xlim=ends, ylim=ends)
    axis.legend(fontsize=8, loc="lower right")
    return figure


def channel_maps(picture: Image.Image, latent: Tensor, side: float = 1.15) -> Figure:
    """A picture beside every channel of its latent; latent: [c, h, w], one scale for all."""
    figure, axes = plt.subplots(
        1, len(latent) + 1, figsize=((len(latent) + 1) * side + 0.9, side + 0.2), layout="compressed"
    )
    plt.close(figure)
    limit = float(latent.abs().max())
    axes[0].imshow(picture, interpolation="lanczos")
    axes[0].set_title("picture", fontsize=8, pad=3)
    for number, (axis, channel) in enumerate(zip(axes[1:], latent, strict=True)):
        heat = axis.imshow(channel.numpy(), cmap="PuOr_r", vmin=-limit, vmax=limit)
        axis.set_title(f"channel {number}", fontsize=8, pad=3)
    _bare(*axes)
    _bar(figure, heat, axes, "scaled latent")
    return figure


def signal_to_noise(curves: Mapping[str, Tensor]) -> Figure:
    """Signal-to-noise ratio over the time steps on a logarithmic axis; curves: name -> [T]."""
    figure, axis = plt.subplots(figsize=(6.0, 2.7), layout="constrained")
    plt.close(figure)
    for (name, curve), colour in zip(curves.items(), _CURVES, strict=False):
        axis.plot(curve, color=colour, label=name, linewidth=1.8)
    axis.axhline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.text(12, 0.8, "as much noise as signal", fontsize=8, va="top", color=INK)
    axis.set(yscale="log", xlabel="time step t", ylabel="signal / noise (variance)", xlim=(0, len(curve) - 1))
    axis.legend(fontsize=8)
    return figure


def kl_curves(means: Tensor, kl_of_mean: Tensor, stds: Tensor, kl_of_std: Tensor) -> Figure:
    """KL of one latent value in nats: over its mean at standard deviation 1, and over its deviation at mean 0."""
    figure, axes = plt.subplots(1, 2, figsize=(6.6, 2.3), sharey=True, layout="constrained")
    plt.close(figure)
    axes[0].plot(means, kl_of_mean, color=BLUE, linewidth=1.8)
    axes[0].set(xlabel="mean (standard deviation 1)", ylabel="KL in nats")
    axes[1].plot(stds, kl_of_std, color=ROSE, linewidth=1.8)
    axes[1].set(xlabel="standard deviation (mean 0)", xscale="log")
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure


def padding_windows(asymmetric: Sequence[int], symmetric: Sequence[int], pixels: int) -> Figure:
    """Which pixels of a row each output of a 3-wide convolution of stride 2 sees, by the first pixel of its window.

    "pad" stands where a zero is added: on the right, and on the left if the first window begins there.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 2.2), layout="constrained")
    plt.close(figure)
    for axis, starts, name in zip(
        axes, (asymmetric, symmetric), ("the VAE: padded on the right", "as usual: padded on both sides"), strict=True
    ):
        for pixel in range(starts[0], pixels + 1):
            padded = not 0 <= pixel < pixels
            box = dict(facecolor="none" if padded else "#dfe3ee", edgecolor=INK, linestyle=":" if padded else "-")
            axis.add_patch(plt.Rectangle((pixel - 0.45, 0), 0.9, 0.9, **box))
            axis.text(pixel, 0.45, "pad" if padded else str(pixel), ha="center", va="center", fontsize=9, color=INK)
        for output, (start, colour) in enumerate(zip(starts, _CURVES, strict=False)):
            height = 1.25 + 0.55 * (output % 2)
            axis.plot([start - 0.4, start + 2.4], [height, height], color=colour, linewidth=5, solid_capstyle="butt")
            axis.text(start + 1, height + 0.12, f"output {output}", ha="center", va="bottom", fontsize=8, color=INK)
        axis.set(xlim=(-1.6, pixels + 0.6), ylim=(-0.1, 2.4))
        axis.set_title(name, fontsize=9)
        axis.axis("off")
    return figure


def looking(picture: Image.Image, places: Sequence[tuple[int, int]], weights: Tensor, side: float = 1.4) -> Figure:
    """The picture with some places marked, (row, column) of the latent, and where attention looks from each.

    weights: [places, h, w], 1 where a place gets as much as it would if all got the same.
    """
    figure, axes = plt.subplots(
        1, len(places) + 1, figsize=((len(places) + 1) * side + 1.0, side + 0.3), layout="compressed"
    )
    plt.close(figure)
    height, width = weights.shape[1:]
    axes[0].imshow(picture, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="lanczos")
    for axis, (row, column), weight, colour in zip(axes[1:], places, weights, _CURVES, strict=False):
        heat = axis.imshow(weight.numpy(), cmap="magma", vmin=0, vmax=float(weights.max()))
        axis.set_title(f"from row {row}, column {column}", fontsize=8, pad=3)
        for marked in (axes[0], axis):
            marked.plot(column, row, marker="s", markersize=9, markerfacecolor="none", markeredgecolor=colour, mew=2.5)
    _bare(*axes)
    _bar(figure, heat, axes, "times an even share")
    return figure


def _bare(*axes: Axes) -> None:
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)


def _bar(figure: Figure, heat: AxesImage, axes: np.ndarray, label: str, **options: str) -> None:
    bar = figure.colorbar(heat, ax=axes, fraction=0.03, pad=0.02, **options)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
