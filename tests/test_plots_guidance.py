"""The figures of chapter 4 hold what they were given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from sd_teach.plots import guidance as plots


def test_arrows_end_where_they_should_and_scales_are_named():
    figure = plots.guidance_arrows((0.0, 2.0), (1.0, 2.0), {0: (0.0, 2.0), 1: (1.0, 2.0), 3: (3.0, 2.0)}, ("a", "b"))
    (axis,) = figure.axes
    arrows = {text.arrow_patch.get_edgecolor(): text.xy for text in axis.texts if text.arrow_patch}
    assert [tuple(map(float, xy)) for xy in arrows.values()] == [(3.0, 2.0), (0.0, 2.0), (1.0, 2.0)]
    assert len(arrows) == 3, "three colours"
    assert [text.get_text() for text in axis.texts if text.get_text()] == ["u", "c", "s = 0", "s = 1", "s = 3"]
    assert axis.get_aspect() == 1 and (axis.get_xlabel(), axis.get_ylabel()) == ("a", "b")


def test_densities_have_their_samples_or_arrows_over_them():
    densities = [torch.rand(5, 5, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    dots = [torch.tensor([[0.5, -0.5]]), torch.tensor([[1.0, 2.0], [0.0, 0.0]])]
    axes = plots.density_panels(densities, ["one", "two"], 3.0, points=dots).axes
    for axis, density, given, title in zip(axes, densities, dots, ["one", "two"], strict=True):
        assert np.allclose(axis.images[0].get_array(), density) and axis.images[0].origin == "lower"
        assert np.allclose(axis.lines[0].get_xydata(), given) and axis.get_title() == title
    arrows = dict(places=dots[1], arrows=[dots[1] + 1], names={"heap": (1.0, 2.0)})
    (axis,) = plots.density_panels(densities[:1], ["one"], 3.0, **arrows).axes
    assert [(text.get_text(), text.xy) for text in axis.texts] == [("heap", (1.0, 2.0))]
    (quiver,) = [artist for artist in axis.collections if hasattr(artist, "U")]
    assert np.allclose(quiver.XY, dots[1]) and np.allclose(quiver.V, dots[1][:, 1] + 1)
    arrows["arrows"] = [dots[1] + 1, 3 * dots[1] + 3]
    both = plots.density_panels(densities, ["one", "two"], 3.0, **arrows).axes
    scales = [artist.scale for axis in both for artist in axis.collections if hasattr(artist, "U")]
    assert scales == pytest.approx([6 * 117**0.5] * 2), "the longest of all is (6, 9)"


def test_densities_want_as_many_sets_of_samples():
    with pytest.raises(ValueError):
        plots.density_panels([torch.ones(2, 2)] * 2, ["one", "two"], 3.0, points=[torch.zeros(1, 2)])


def test_curves_and_bars_show_the_values_with_their_names():
    axes = plots.curves({"left": [1.0, 2.0], "right": [3.0, 5.0]}, [0, 10], "scale").axes
    assert [axis.get_ylabel() for axis in axes] == ["left", "right"] and axes[0].get_xlabel() == "scale"
    assert [axis.lines[0].get_ydata().tolist() for axis in axes] == [[1.0, 2.0], [3.0, 5.0]]
    (axis,) = plots.bars({"one": 1.0, "two": 2.5}, "levels", highlight=["two"]).axes
    assert [bar.get_width() for bar in axis.patches] == [1.0, 2.5]
    assert axis.patches[0].get_facecolor() != axis.patches[1].get_facecolor()
    assert [label.get_text() for label in axis.get_yticklabels()] == ["one", "two"] and axis.get_xlabel() == "levels"


def test_pyplot_keeps_no_figure():
    plots.guidance_arrows((0.0, 1.0), (1.0, 1.0), {2: (2.0, 1.0)})
    plots.density_panels([torch.ones(2, 2)], ["one"], 1.0)
    plots.curves({"y": [1.0]}, [0], "x"), plots.bars({"one": 1.0}, "x")
    assert plt.get_fignums() == []
