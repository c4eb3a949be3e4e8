"""Figures of chapter 3: one step and whole runs in a plane, steps against error, how much fresh noise."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from sd_teach.plots import ACCENT, BLUE, GREEN, GREY, INK, ROSE

_COLOURS = [ACCENT, BLUE, GREEN, ROSE, "#7a5fb0", "#9a9aa8"]
_VIEW = (-2.9, 2.9)  # of the plane, both axes


def steps_on_schedule(signal: Tensor, times: Mapping[str, Sequence[int]]) -> Figure:
    """Where runs stop on the schedule; signal: [T], its factor at each time step; label -> time steps."""
    figure, axis = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
    plt.close(figure)
    axis.plot(signal, color=INK, linewidth=1)
    for (label, steps), colour, size in zip(times.items(), (BLUE, ACCENT), (7, 4), strict=False):
        axis.plot(steps, [signal[t] for t in steps], "o", color=colour, markersize=size, label=label)
    axis.set_xlabel("time step $t$", fontsize=9)
    axis.set_ylabel(r"signal, $\sqrt{\bar\alpha_t}$", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    _quiet(axis)
    return figure


def one_step(data: Tensor, x: Tensor, pred_x0: Tensor, signal: Tensor, x_prev: Tensor) -> Figure:
    """A step in the plane. data: [n, 2]; x, pred_x0, signal (what is kept of pred_x0), x_prev: [2] each."""
    figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    plt.close(figure)
    axis.scatter(*data.T, s=4, color=GREY, linewidths=0)
    for start, end, colour, name in (
        ((0.0, 0.0), signal, BLUE, r"$\sqrt{\bar\alpha_{t-1}}\,\hat x_0$"),
        (signal, x_prev, ACCENT, r"$\sqrt{1 - \bar\alpha_{t-1}}\,\hat\epsilon$"),
    ):
        style = dict(arrowstyle="-|>", color=colour, linewidth=2, shrinkA=0, shrinkB=2)
        axis.annotate("", xy=tuple(end), xytext=tuple(start), arrowprops=style)
        axis.plot([], [], color=colour, linewidth=2, label=name)
    points = ((x, INK, "$x_t$"), (pred_x0, ROSE, r"$\hat x_0$"), (x_prev, GREEN, "$x_{t-1}$"))
    for point, colour, name in points:
        axis.plot(*point, "o", color=colour, markersize=8, label=name)
    axis.plot(0, 0, "+", color=INK)
    axis.legend(fontsize=10, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    _plane(axis)
    return figure


def clouds(rows: Mapping[str, Sequence[Tensor]], titles: Sequence[str], colours: Mapping[str, Sequence[int]]) -> Figure:
    """Clouds of points in the plane, [n, 2] each, one row a label; colours: label -> [n], each point's number."""
    figure, axes = plt.subplots(len(rows), len(titles), figsize=(1.7 * len(titles), 1.75 * len(rows)), squeeze=False)
    plt.close(figure)
    for (label, points), line in zip(rows.items(), axes, strict=True):
        for axis, cloud in zip(line, points, strict=True):
            # without antialiasing: few colours, a small file
            axis.scatter(*cloud.T, s=2, c=[_COLOURS[k] for k in colours[label]], linewidths=0, antialiaseds=False)
            _plane(axis)
        line[0].set_ylabel(label, fontsize=9)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9, pad=3)
    figure.subplots_adjust(0.04, 0.01, 0.995, 0.92, 0.05, 0.05)
    return figure


def trajectories(panels: Mapping[str, Tensor], data: Tensor, colours: Mapping[str, Sequence[int]]) -> Figure:
    """Paths through the plane from a ring to a dot, title -> [S + 1, n, 2]; colours: title -> [n]; data: [m, 2]."""
    figure, axes = plt.subplots(1, len(panels), figsize=(2.8 * len(panels), 3.0), squeeze=False)
    plt.close(figure)
    for (title, paths), axis in zip(panels.items(), axes[0], strict=True):
        axis.scatter(*data.T, s=1.5, color=GREY, linewidths=0)
        for k, colour in enumerate(colours[title]):
            axis.plot(*paths[:, k].T, color=_COLOURS[colour], linewidth=0.7, alpha=0.55)
            axis.plot(*paths[0, k], "o", markersize=3.5, color=_COLOURS[colour], fillstyle="none", markeredgewidth=0.8)
            axis.plot(*paths[-1, k], "o", markersize=4, color=_COLOURS[colour], zorder=3)  # above every line
        axis.set_title(title, fontsize=9, pad=3)
        _plane(axis)
    figure.subplots_adjust(0.005, 0.01, 0.995, 0.92, 0.03)
    return figure


def where_seeds_lead(labels: Tensor, extent: float, data: Tensor) -> Figure:
    """A map of starting points: labels [m, m], y first, the number of where each leads; data: [n, 2]."""
    figure, axis = plt.subplots(figsize=(3.6, 3.6))
    plt.close(figure)
    colours = ListedColormap(_COLOURS[: int(labels.max()) + 1])
    axis.imshow(
        labels.numpy(), origin="lower", extent=[-extent, extent] * 2, cmap=colours, alpha=0.45, interpolation="nearest"
    )
    axis.scatter(*data.T, s=1.5, color=INK, linewidths=0)
    _plane(axis)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99)
    return figure


def error_curves(steps: Mapping[str, Sequence[int]], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Errors against numbers of steps, both logarithmic; the same labels in both."""
    figure, axis = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
    plt.close(figure)
    for (label, values), colour in zip(errors.items(), (BLUE, ACCENT), strict=False):
        axis.loglog(steps[label], values, "o-", color=colour, markersize=4, label=label)
    ticks = sorted({count for counts in steps.values() for count in counts})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("steps", fontsize=9)
    axis.set_ylabel("distance to the end\nof a very fine run", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    _quiet(axis)
    return figure


def fresh_noise(times: Sequence[int], shares: Mapping[str, Sequence[float]]) -> Figure:
    """How much of the noise's variance after each step is fresh, 0 to 1, for some eta; label -> one a time step."""
    figure, axis = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
    plt.close(figure)
    for (label, values), colour in zip(shares.items(), (BLUE, GREEN, ACCENT), strict=False):
        axis.plot(times, values, "o-", color=colour, markersize=3, label=label)
    axis.set(ylim=(-0.03, 1.03))
    axis.set_xlabel("time step $t$", fontsize=9)
    axis.set_ylabel(r"fresh share, $\sigma_t^2 \,/\, (1 - \bar\alpha_{t-1})$", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    _quiet(axis)
    return figure


def _plane(axis: plt.Axes) -> None:
    axis.set(xlim=_VIEW, ylim=_VIEW, xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_color(GREY)


def _quiet(axis: plt.Axes) -> None:
    axis.tick_params(labelsize=8, colors=INK)
    axis.spines[["top", "right"]].set_visible(False)
