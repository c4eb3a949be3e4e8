"""The figures of chapter 7 hold what they were given."""

import matplotlib.pyplot as plt
import pytest
import torch

from sd_teach.plots import pipeline as plots


def test_histograms_count_the_values_between_the_ends():
    values = {"one": torch.tensor([[-0.5, 0.5], [0.5, 9.0]]), "two": torch.zeros(5)}
    axes = plots.histograms(values, "error", -1.0, 1.0, marks=(-1, 1)).axes
    assert [axis.get_title() for axis in axes] == ["one", "two"]
    assert [sum(bar.get_height() for bar in axis.patches) for axis in axes] == [3, 5]
    assert [[line.get_xdata()[0] for line in axis.lines] for axis in axes] == [[-1, 1], [-1, 1]]
    assert axes[0].get_xlabel() == "error"
    assert axes[0].patches[30].get_center()[0] == pytest.approx(0)  # what is 0 is neither left nor right of the mark


def test_shares_fill_a_bar_for_each_model():
    (axis,) = plots.shares({"small": {"a": 1.0, "b": 3.0}, "large": {"a": 90.0, "b": 10.0}}, "share (%)").axes
    widths = [[round(bar.get_width(), 3) for bar in drawn] for drawn in axis.containers]
    assert widths == [[25.0, 90.0], [75.0, 10.0]]
    assert [bar.get_x() for bar in axis.containers[1]] == pytest.approx([25.0, 90.0])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["small", "large"]
    assert "75.0 %" in [text.get_text() for text in axis.texts]


def test_pyplot_keeps_no_figure():
    plots.histograms({"one": torch.zeros(2)}, "x", -1, 1, marks=()), plots.shares({"m": {"a": 1.0}}, "x")
    assert plt.get_fignums() == []
