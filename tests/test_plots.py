"""Figures hold what they were given, and pyplot forgets them."""

import matplotlib.colors
import matplotlib.pyplot as plt
import pytest
from PIL import Image

from sd_teach import plots

IMAGES = [Image.new("RGB", (8, 8), (40 * k, 0, 0)) for k in range(5)]


def shown(axis) -> int:
    """The red of the image on an axis."""
    return int(axis.images[0].get_array()[0, 0, 0])


def test_a_grid_shows_the_images_in_reading_order_with_their_titles():
    axes = plots.image_grid(IMAGES, [f"image {k}" for k in range(5)], columns=3).axes
    assert [shown(axis) for axis in axes[:5]] == [0, 40, 80, 120, 160]
    assert [axis.get_title() for axis in axes[:5]] == [f"image {k}" for k in range(5)]
    assert not axes[5].images and not axes[5].axison


def test_a_film_strip_shows_the_same_moments_below_each_other():
    axes = plots.film_strip({"above": IMAGES[:2], "below": IMAGES[2:4]}, ["first", "last"]).axes
    assert [shown(axis) for axis in axes] == [0, 40, 80, 120]
    assert [axis.get_title() for axis in axes] == ["first", "last", "", ""]
    assert [axes[0].get_ylabel(), axes[2].get_ylabel()] == ["above", "below"]


def test_a_film_strip_with_a_moment_too_few_is_refused():
    with pytest.raises(ValueError):
        plots.film_strip({"above": IMAGES[:1]}, ["first", "last"])


@pytest.mark.parametrize("step", range(1, 7))
def test_the_map_colours_the_step_it_is_told_and_no_other(step):
    figure = plots.pipeline_map(step)
    accent = matplotlib.colors.to_rgba("#ffb43a")
    boxes = [text for text in figure.axes[0].texts if text.get_bbox_patch()]
    coloured = [text.get_text() for text in boxes if text.get_bbox_patch().get_facecolor() == accent]
    assert len(boxes) == 6
    assert [text[0] for text in coloured] == [str(step)]


def test_the_map_from_a_picture_has_the_encoder_and_colours_only_the_way_in():
    axis = plots.pipeline_map(from_picture=True).axes[0]
    accent = matplotlib.colors.to_rgba("#ffb43a")
    boxes = [text for text in axis.texts if text.get_bbox_patch()]
    coloured = [text.get_text() for text in boxes if text.get_bbox_patch().get_facecolor() == accent]
    assert len(boxes) == 8 and coloured == ["VAE encoder\n4 x 64 x 64", "+"]
    assert "once for each step that is left" in [text.get_text() for text in axis.texts]


def test_pyplot_keeps_no_figure():
    plots.pipeline_map(), plots.pipeline_map(from_picture=True)
    plots.image_grid(IMAGES), plots.film_strip({"row": IMAGES}, "abcde")
    assert plt.get_fignums() == []
