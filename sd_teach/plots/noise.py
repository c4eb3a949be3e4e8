"""Figures of chapter 2: how much noise there is, how long it is, and what the network makes of it."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from sd_teach.plots import ACCENT, BLUE, INK


def schedule_curves(betas: Tensor, signal: Tensor, noise: Tensor, snr: Tensor) -> Figure:
    """Over the time steps: variance added, factors of signal and noise in x_t, signal-to-noise ratio; all [T]."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.0, 2.4), layout="constrained")
    plt.close(figure)
    left.plot(betas, color=INK)
    left.set_title(r"variance added, $\beta_t$", fontsize=9)
    middle.plot(signal, color=ACCENT, label=r"signal, $\sqrt{\bar\alpha_t}$")
    middle.plot(noise, color=BLUE, label=r"noise, $\sqrt{1 - \bar\alpha_t}$")
    middle.set_title("what $x_t$ is made of", fontsize=9)
    middle.legend(fontsize=8, frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.62))
    right.semilogy(snr, color=INK)
    right.axhline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    right.set_title(r"signal to noise, $\bar\alpha_t / (1 - \bar\alpha_t)$", fontsize=9)
    for axis in (left, middle, right):
        axis.set_xlabel("time step $t$", fontsize=9)
        _quiet(axis)
    return figure


def loss_by_time(times: Sequence[int], network: Sequence[float], ignorant: Sequence[float]) -> Figure:
    """Mean squared error of the predicted noise at some time steps: a network's, and without any knowledge."""
    figure, axis = plt.subplots(figsize=(5.2, 2.8), layout="constrained")
    plt.close(figure)
    axis.plot(times, ignorant, color=INK, linestyle=(0, (4, 3)), label=r"knows nothing of pictures, $\bar\alpha_t$")
    axis.plot(times, network, color=ACCENT, marker="o", markersize=4, label="the network")
    axis.set_xlabel("time step $t$", fontsize=9)
    axis.set_ylabel(r"mean of $(\epsilon_\theta - \epsilon)^2$", fontsize=9)
    axis.set_ylim(0, 1.05)
    axis.legend(fontsize=8, frameon=False)
    _quiet(axis)
    return figure


def length_histogram(lengths: Mapping[str, Tensor]) -> Figure:
    """Lengths of noise, each divided by the root of its size; label -> [seeds]."""
    figure, axis = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
    plt.close(figure)
    for (label, values), colour in zip(lengths.items(), (BLUE, INK, ACCENT), strict=False):
        axis.hist(values, bins=80, range=(0.0, 2.0), density=True, color=colour, alpha=0.85, label=label)
    axis.set_xlabel(r"length of the noise / $\sqrt{n}$", fontsize=9)
    axis.set_ylabel("share of seeds", fontsize=9)
    axis.set_yticks([])
    axis.legend(fontsize=8, frameon=False)
    _quiet(axis)
    return figure


def lengths_between(weights: Sequence[float], lengths: Mapping[str, Sequence[float]]) -> Figure:
    """Lengths, in units of the root of n, on the way from one seed's noise to another's; label -> one a weight."""
    figure, axis = plt.subplots(figsize=(5.2, 2.4), layout="constrained")
    plt.close(figure)
    for (label, values), colour in zip(lengths.items(), (ACCENT, BLUE), strict=False):
        axis.plot(weights, values, color=colour, label=label)
    axis.set_xlabel("weight $w$ of the second seed", fontsize=9)
    axis.set_ylabel(r"length / $\sqrt{n}$", fontsize=9)
    axis.set_ylim(0, 1.15)
    axis.legend(fontsize=8, frameon=False, loc="lower left")
    _quiet(axis)
    return figure


def _quiet(axis: plt.Axes) -> None:
    axis.tick_params(labelsize=8, colors=INK)
    axis.spines[["top", "right"]].set_visible(False)
