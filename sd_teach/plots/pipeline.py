"""The figures of chapter 7, the pipeline."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from sd_teach.plots import ACCENT, BLUE, GREEN, INK, ROSE


def histograms(panels: Mapping[str, Tensor], xlabel: str, low: float, high: float, marks: tuple[float, ...]) -> Figure:
    """One histogram for each named set of values, side by side on the same axes; marks: dashed lines at these x.

    An odd number of bins: where low is -high, 0 lies in the middle of one.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(4.0 * len(panels), 2.3), sharey=True, squeeze=False)
    plt.close(figure)
    for axis, (name, values), colour in zip(axes[0], panels.items(), (BLUE, ROSE, GREEN), strict=False):
        axis.hist(values.flatten().numpy(), bins=61, range=(low, high), color=colour)
        for mark in marks:
            axis.axvline(mark, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(xlabel, fontsize=9)
        axis.set_yticks([])
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right", "left"]].set_visible(False)
    figure.tight_layout()
    return figure


def shares(models: Mapping[str, Mapping[str, float]], xlabel: str) -> Figure:
    """A bar for each model, cut into its parts' shares of the whole, in percent; models: name -> part -> amount."""
    figure, axis = plt.subplots(figsize=(8.2, 0.55 * len(models) + 1.0))
    plt.close(figure)
    parts = list(next(iter(models.values())))
    left = [0.0] * len(models)
    for part, colour in zip(parts, (GREEN, BLUE, ACCENT, ROSE), strict=False):
        widths = [100 * amounts[part] / sum(amounts.values()) for amounts in models.values()]
        drawn = axis.barh(list(models), widths, left=left, color=colour, height=0.62, label=part)
        texts = [f"{width:.1f} %" if width > 4 else "" for width in widths]
        axis.bar_label(drawn, texts, label_type="center", fontsize=8, color="white" if colour != ACCENT else INK)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set(xlim=(0, 100))
    axis.set_xlabel(xlabel, fontsize=9)
    axis.tick_params(labelsize=9, length=0)
    axis.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axis.legend(
        fontsize=8, frameon=False, ncols=len(parts), loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2
    )
    figure.tight_layout()
    return figure
