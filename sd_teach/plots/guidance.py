"""The figures of chapter 4, guidance."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from sd_teach.plots import ACCENT, BLUE, GREEN, GREY, INK, ROSE


def guidance_arrows(
    u: Sequence[float], c: Sequence[float], guided: Mapping[float, Sequence[float]], axes: tuple[str, str] = ("", "")
) -> Figure:
    """Two predictions as arrows from the origin, the line through them, and the guided predictions on it.

    u, c: (x, y), without and with the prompt. guided: scale -> (x, y). axes: what x and y are. Equal units on both.
    """
    points = np.array([(0.0, 0.0), u, c, *guided.values()])
    low, high = points.min(axis=0), points.max(axis=0)
    room = 0.12 * (high - low).max()
    width, height = high - low + 2 * room
    figure, axis = plt.subplots(figsize=(7.2, np.clip(7.2 * height / width, 2.6, 4.6)))
    plt.close(figure)
    ends = points[3:][np.argsort(list(guided))]
    axis.plot(*np.array([u, c, *ends]).T, color=GREY, linewidth=1.5, zorder=1)
    farthest = ends[-1]
    for end, colour, name in ((farthest, ACCENT, ""), (u, BLUE, "u"), (c, GREEN, "c")):
        arrow = dict(arrowstyle="-|>", color=colour, linewidth=2, shrinkA=0, shrinkB=0, mutation_scale=14)
        axis.annotate("", xy=end, xytext=(0, 0), arrowprops=arrow, zorder=2)
        middle = 0.62 * np.array(end)
        if name:
            side = -1 if name == "u" else 1  # the label of u left of its arrow, of c right
            axis.annotate(
                name, middle, (9 * side, 0), textcoords="offset points", color=colour, fontsize=13, ha="center"
            )
    for scale, point in guided.items():
        axis.plot(*point, "o", color=INK, markersize=4, zorder=3)
        # left of c the text leans left, so that s = 0 and s = 1 do not touch where u and c nearly agree
        ha = "right" if scale < 1 else "left"
        axis.annotate(f"s = {scale:g}", point, (0, 7), textcoords="offset points", fontsize=8, color=INK, ha=ha)
    axis.set(xlim=(low[0] - room, high[0] + room), ylim=(low[1] - room, high[1] + room), aspect="equal")
    axis.set_xlabel(axes[0], fontsize=9)
    axis.set_ylabel(axes[1], fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def density_panels(
    densities: Sequence[Tensor],
    titles: Sequence[str],
    extent: float,
    points: Sequence[Tensor] = (),
    places: Tensor | None = None,
    arrows: Sequence[Tensor] = (),
    side: float = 1.9,
    names: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Densities over a square, side by side, darker where there is more; over them samples, or arrows.

    densities: [n, n] each, rows from y = -extent upwards. points: [k, 2] samples for each density, drawn as dots.
    places: [m, 2], where arrows start; arrows: [m, 2] for each density, the longest of all a sixth of a panel.
    side: inches of a panel.
    names: text -> (x, y), where the first panel says it.
    """
    figure, axes = plt.subplots(1, len(densities), figsize=(side * len(densities), side + 0.3), sharey=True)
    plt.close(figure)
    axes = np.atleast_1d(axes)
    for axis, density, title in zip(axes, densities, titles, strict=True):
        box = (-extent, extent, -extent, extent)
        axis.imshow(density.numpy(), origin="lower", extent=box, cmap="Blues", vmax=1.25 * float(density.max()))
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        ticks = np.linspace(-extent, extent, 7)[1:-1:2]  # none at the ends, where panels meet
        axis.set(xlim=(-extent, extent), ylim=(-extent, extent), xticks=ticks, yticks=ticks)
    for name, place in (names or {}).items():
        box = dict(facecolor="white", edgecolor="none", pad=1.5)
        axes[0].annotate(name, place, fontsize=8, color=INK, ha="center", va="center", bbox=box)
    for axis, dots in zip(axes, points, strict=bool(points)):
        axis.plot(*dots.numpy().T, ".", color=ROSE, markersize=2.5, alpha=0.6, markeredgewidth=0)
    longest = max((float(each.norm(dim=1).max()) for each in arrows), default=0.0)  # one scale, so that panels compare
    for axis, vectors in zip(axes, arrows, strict=bool(arrows)):
        style = dict(color=INK, angles="xy", width=0.006, scale=6 * longest, scale_units="width")
        axis.quiver(*places.numpy().T, *vectors.numpy().T, **style)
    figure.tight_layout(pad=0.4)
    return figure


def curves(panels: Mapping[str, Sequence[float]], x: Sequence[float], xlabel: str) -> Figure:
    """Panels side by side, each a curve over x, named on its y axis."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 2.7))
    plt.close(figure)
    for axis, (ylabel, y), colour in zip(np.atleast_1d(axes), panels.items(), (BLUE, ROSE, GREEN), strict=False):
        axis.plot(x, y, "o-", color=colour, markersize=4, linewidth=1.6)
        axis.set_xlabel(xlabel, fontsize=9)
        axis.set_ylabel(ylabel, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e8ef", linewidth=0.8)
    figure.tight_layout()
    return figure


def bars(values: Mapping[str, float], xlabel: str, highlight: Sequence[str] = ()) -> Figure:
    """A named horizontal bar for each value, the first on top; highlight: the names to colour."""
    figure, axis = plt.subplots(figsize=(7.2, 0.34 * len(values) + 0.6))
    plt.close(figure)
    colours = [ACCENT if name in highlight else GREY for name in values]
    drawn = axis.barh(list(values), list(values.values()), color=colours, height=0.66)
    axis.bar_label(drawn, fmt="%.1f", fontsize=8, padding=3, color=INK)
    axis.invert_yaxis()
    axis.set_xlabel(xlabel, fontsize=9)
    axis.tick_params(labelsize=9, length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.margins(x=0.1)
    figure.tight_layout()
    return figure
