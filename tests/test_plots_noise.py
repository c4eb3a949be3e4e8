"""The figures of chapter 2 show what they were given."""

import matplotlib.pyplot as plt
import numpy as np
import torch

from sd_teach.noise import NoiseSchedule
from sd_teach.plots import noise as figures


def line(axis, k: int) -> np.ndarray:
    return np.asarray(axis.lines[k].get_ydata(), dtype=float)


def test_schedule_curves_show_each_quantity_on_its_axis():
    a = NoiseSchedule().alphas_cumprod
    left, middle, right = figures.schedule_curves(1 - a, a.sqrt(), (1 - a).sqrt(), a / (1 - a)).axes
    assert np.array_equal(line(left, 0), 1 - a)
    assert np.array_equal(line(middle, 0), a.sqrt()) and np.array_equal(line(middle, 1), (1 - a).sqrt())
    assert np.array_equal(line(right, 0), a / (1 - a)) and right.get_yscale() == "log"


def test_loss_by_time_tells_the_two_curves_apart():
    (axis,) = figures.loss_by_time([0, 500], [0.8, 0.1], [1.0, 0.3]).axes
    named = dict(zip([text.get_text() for text in axis.get_legend().get_texts()], axis.lines, strict=True))
    assert list(named["the network"].get_ydata()) == [0.8, 0.1]


def test_length_histogram_has_every_seed_in_its_bin():
    (axis,) = figures.length_histogram({"n = 4": torch.full((10,), 1.005), "n = 9": torch.full((10,), 0.005)}).axes
    first, second = axis.containers
    assert [patch.get_x() for patch in first if patch.get_height()] == [1.0]
    assert [patch.get_x() for patch in second if patch.get_height()] == [0.0]


def test_lengths_between_draws_one_curve_a_label():
    (axis,) = figures.lengths_between([0, 0.5, 1], {"linear": [1, 0.7, 1], "spherical": [1, 1, 1]}).axes
    assert [list(curve.get_ydata()) for curve in axis.lines] == [[1, 0.7, 1], [1, 1, 1]]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["linear", "spherical"]
    assert plt.get_fignums() == []
