"""The figures of chapter 10: paths of a run in one dimension, and error against network calls."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
from torch import Tensor

from sd_teach.plots import ACCENT, BLUE, GREEN, INK, ROSE

_COLOURS = (ACCENT, BLUE, GREEN, ROSE)


def paths(exact: tuple[Tensor, Tensor], coarse: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Points u over the amount of noise s, noise falling to the right.

    exact: (s [m], u [m, k]), k paths in small steps. coarse: label -> (s [m], u [m, 1]), one path in few steps.
    """
    figure, axis = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    plt.close(figure)
    axis.plot(*exact, color=INK, alpha=0.4, linewidth=1.0)
    for (label, (s, u)), colour in zip(coarse.items(), _COLOURS, strict=False):
        axis.plot(s, u, color=colour, marker="o", markersize=4, linewidth=2, label=label)
    axis.set_xscale("log")
    axis.set(xlim=(16, 0.17), ylim=(-10, 10), xlabel="amount of noise $s$", ylabel="$u$")
    axis.set_yscale("asinh", linear_width=0.5)  # even near 0, where paths part, logarithmic far from it, and smooth
    ticks = [10, 3, 1, 0.3]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_yticks(levels := [-10, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 10], [str(level) for level in levels])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def errors(calls: Sequence[int], errors: Mapping[str, Sequence[float]], label: str) -> Figure:
    """Error over network calls, both axes logarithmic; errors: name of the sampler -> one error for each of calls."""
    figure, axis = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
    plt.close(figure)
    lowest, highest = (pick(pick(values) for values in errors.values()) for pick in (min, max))
    for (name, values), colour in zip(errors.items(), _COLOURS, strict=False):
        style = dict(linestyle="--", markerfacecolor="white") if "lambda" in name else {}
        axis.plot(calls, values, color=colour, marker="o", linewidth=2, label=name, **style)
    axis.set(xscale="log", yscale="log", xlabel="steps, one call of the network each", ylabel=label)
    axis.set_xticks(calls, [str(n) for n in calls])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if lowest > highest / 300 else (1,)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
