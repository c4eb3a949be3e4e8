"""The figures of chapter 3 show what they were given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from sd_teach.noise import NoiseSchedule
from sd_teach.plots import ddim as figures

DATA = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


def labels(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_steps_on_schedule_puts_every_stop_on_the_curve():
    signal = NoiseSchedule().alphas_cumprod.sqrt()
    (axis,) = figures.steps_on_schedule(signal, {"2 steps": [1, 501]}).axes
    curve, stops = axis.lines
    assert np.array_equal(curve.get_ydata(), signal)
    assert list(stops.get_xdata()) == [1, 501] and list(stops.get_ydata()) == signal[[1, 501]].tolist()


def test_one_step_marks_its_points_and_joins_them_with_two_arrows():
    x, pred_x0, signal, x_prev = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.5, 0.5], [1.5, 0.0]])
    (axis,) = figures.one_step(DATA, x, pred_x0, signal, x_prev).axes
    dots = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axis.lines if len(line.get_xdata())]
    assert {(2.0, 0.0), (1.0, 1.0), (1.5, 0.0)} <= set(dots)
    assert [tuple(map(float, text.xy)) for text in axis.texts] == [(0.5, 0.5), (1.5, 0.0)]


def test_clouds_have_a_row_a_label_and_a_colour_a_point():
    rows = {"up": [DATA, DATA + 1], "down": [DATA - 1, DATA]}
    axes = figures.clouds(rows, ["first", "last"], {"up": [0, 1], "down": [1, 1]}).axes
    drawn = [axis.collections[0] for axis in axes]
    assert np.array_equal(drawn[1].get_offsets(), DATA + 1) and np.array_equal(drawn[2].get_offsets(), DATA - 1)
    up, down = drawn[0].get_facecolors(), drawn[2].get_facecolors()
    assert (up[0] != up[1]).any() and np.array_equal(down[0], up[1])


def test_trajectories_go_through_the_points_of_every_path():
    paths = torch.arange(12.0).view(3, 2, 2)
    (axis,) = figures.trajectories({"3 steps": paths}, DATA, {"3 steps": [0, 1]}).axes
    curves = [line for line in axis.lines if len(line.get_xdata()) == 3]
    assert [list(curve.get_xdata()) for curve in curves] == [[0, 4, 8], [2, 6, 10]]
    assert axis.get_title() == "3 steps"


def test_where_seeds_lead_has_y_upwards():
    (axis,) = figures.where_seeds_lead(torch.tensor([[0, 0], [1, 2]]), 2.0, DATA).axes
    (image,) = axis.images
    assert image.origin == "lower" and image.get_array().tolist() == [[0, 0], [1, 2]]


def test_error_curves_are_logarithmic_with_the_steps_as_ticks():
    (axis,) = figures.error_curves({"a": [5, 10]}, {"a": [0.2, 0.1]}).axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["5", "10"]
    assert list(axis.lines[0].get_ydata()) == [0.2, 0.1] and labels(axis) == ["a"]


def test_fresh_noise_draws_every_eta_on_an_axis_from_none_to_all():
    (axis,) = figures.fresh_noise([1, 501], {"0": [0.0, 0.0], "1": [0.1, 0.5]}).axes
    assert [list(line.get_ydata()) for line in axis.lines] == [[0.0, 0.0], [0.1, 0.5]]
    assert axis.get_ylim() == (-0.03, 1.03) and labels(axis) == ["0", "1"]


@pytest.fixture(autouse=True)
def forgotten():
    yield
    assert plt.get_fignums() == []


def test_paths_go_from_a_ring_to_a_dot():
    paths = torch.arange(12.0).view(3, 2, 2)
    (axis,) = figures.trajectories({"3 steps": paths}, DATA, {"3 steps": [0, 1]}).axes
    ends = [(line.get_fillstyle(), float(line.get_xdata()[0])) for line in axis.lines if len(line.get_xdata()) == 1]
    assert ends == [("none", 0.0), ("full", 8.0), ("none", 2.0), ("full", 10.0)]
