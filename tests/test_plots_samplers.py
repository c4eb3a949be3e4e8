"""The figures of chapter 10 show what they are given."""

import torch

from sd_teach.plots import samplers as figures


def test_paths_show_every_exact_path_and_name_the_coarse_ones():
    s = torch.tensor([10.0, 1.0, 0.3])
    axis = figures.paths((s, torch.zeros(3, 4)), {"Euler": (s, torch.ones(3, 1))}).axes[0]
    assert len(axis.lines) == 5
    assert [text.get_text() for text in axis.get_legend().texts] == ["Euler"]
    assert axis.get_yscale() == "asinh"  # of the two that pass through 0 and are logarithmic far away, the smooth one
    left, right = axis.get_xlim()
    assert left > right  # noise falls to the right


def test_errors_are_drawn_over_calls_on_logarithmic_axes():
    axis = figures.errors([4, 8], {"a": [0.2, 0.1], "b": [0.2, 0.05]}, "error").axes[0]
    assert (axis.get_xscale(), axis.get_yscale(), axis.get_ylabel()) == ("log", "log", "error")
    assert axis.lines[1].get_ydata().tolist() == [0.2, 0.05]


def test_errors_have_ticks_that_can_be_read_between_the_powers_of_ten():
    figure = figures.errors([5, 20], {"a": [0.6, 0.06]}, "error")
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {"0.1", "0.2", "0.5"} <= set(labels)
