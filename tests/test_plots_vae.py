"""Figures of chapter 6 hold what they were given, and pyplot forgets them."""

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from sd_teach.plots import vae as plots

PICTURE = Image.new("RGB", (16, 16), (200, 0, 0))


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    assert plt.get_fignums() == []


def shown(axis) -> torch.Tensor:
    return torch.as_tensor(axis.images[0].get_array().data)


def test_error_maps_share_one_scale():
    errors = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    axes = plots.error_maps(errors, ["a", "b"]).axes
    assert [axis.get_title() for axis in axes[:2]] == ["a", "b"]
    assert_close(shown(axes[1]), errors[1])
    assert axes[0].images[0].get_clim() == axes[1].images[0].get_clim()


def test_the_photograph_stands_out_among_the_emoji():
    axis = plots.against_shrinking(torch.tensor([20.0, 24.0]), torch.tensor([30.0, 31.0]), 23.0, 24.5).axes[0]
    emoji, photo = axis.collections
    assert emoji.get_offsets().tolist() == [[20.0, 30.0], [24.0, 31.0]]
    assert photo.get_offsets().tolist() == [[23.0, 24.5]]
    assert list(axis.lines[0].get_xdata()) == list(axis.lines[0].get_ydata())


def test_channels_stand_beside_the_picture_on_one_scale_around_zero():
    latent = torch.arange(-3.0, 13.0).view(4, 2, 2)
    axes = plots.channel_maps(PICTURE, latent).axes
    assert [axis.get_title() for axis in axes[:5]] == ["picture", *(f"channel {c}" for c in range(4))]
    assert_close(shown(axes[4]), latent[3])
    assert {axis.images[0].get_clim() for axis in axes[1:5]} == {(-12.0, 12.0)}


def test_signal_to_noise_curves_carry_their_names():
    axis = plots.signal_to_noise({"one": torch.tensor([2.0, 1.0]), "two": torch.tensor([4.0, 3.0])}).axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["one", "two"]
    assert axis.lines[1].get_ydata().tolist() == [4.0, 3.0] and axis.get_yscale() == "log"


def test_kl_is_drawn_over_mean_and_deviation():
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    left, right = plots.kl_curves(x, y, y, x).axes
    assert left.lines[0].get_ydata().tolist() == [3.0, 4.0] and "mean" in left.get_xlabel()
    assert right.lines[0].get_xdata().tolist() == [3.0, 4.0] and "deviation" in right.get_xlabel()


def test_windows_lie_over_the_pixels_they_see():
    left, right = plots.padding_windows([0, 2], [-1, 1], pixels=4).axes
    assert [line.get_xdata()[0] for line in left.lines] == [-0.4, 1.6]
    assert [line.get_xdata()[0] for line in right.lines] == [-1.4, 0.6]
    assert [text.get_text() for text in left.texts[:5]] == ["0", "1", "2", "3", "pad"]  # none on the left
    assert [text.get_text() for text in right.texts[:6]] == ["pad", "0", "1", "2", "3", "pad"]
    assert [box.get_linestyle() for box in left.patches] == ["-"] * 4 + [":"]


def test_attention_is_marked_where_it_looks_from():
    weights = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    axes = plots.looking(PICTURE, [(1, 2), (3, 0)], weights).axes
    assert_close(shown(axes[2]), weights[1])
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes[0].lines] == [(2, 1), (0, 3)]
    assert axes[2].get_title() == "from row 3, column 0"
