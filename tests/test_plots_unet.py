"""The figures of chapter 5 show what they were given, and pyplot forgets them."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from sd_teach.plots import unet as plots
from sd_teach.trace import shape_ledger
from sd_teach.unet import UNetModel


@pytest.fixture(scope="module")
def rows():
    with torch.device("meta"):
        return shape_ledger(UNetModel(), torch.empty(1, 4, 64, 96), torch.empty(1), torch.empty(1, 77, 768))


def test_the_u_has_a_box_for_each_block_a_row_for_each_side_and_an_arrow_for_each_skip(rows):
    axis = plots.u_diagram(rows).axes[0]
    boxes = [(box.get_x() + 0.43, box.get_y() + 0.3) for box in axis.patches]
    assert len(boxes) == 12 + 1 + 12 + 1
    sides = [text.get_text() for text in axis.texts if " x " in text.get_text()]
    assert sides == ["64 x 96", "32 x 48", "16 x 24", "8 x 12"]
    heights = {round(y, 6) for _, y in boxes}
    assert len(heights) == 4
    # every bracket starts at an input block and ends at the output block of the same sides that takes it
    brackets = [(line.get_xdata()[0], line.get_xdata()[-1]) for line in axis.lines]
    assert sorted(brackets) == [(i, 24 - i) for i in range(12)]
    place = {round(x): y for x, y in boxes}
    assert all(place[start] == pytest.approx(place[end]) for start, end in brackets)


def test_the_u_says_how_many_channels_come_out_and_where_sides_grow(rows):
    texts = [text.get_text() for text in plots.u_diagram(rows).axes[0].texts]
    channels = [text for text in texts if text.split("\n")[0].isdigit() and int(text.split("\n")[0]) >= 320]
    down = [320, 320, 320, 320, 640, 640, 640, 1280, 1280, 1280, 1280, 1280]
    up = ["1280", "1280", "1280\n↑", "1280", "1280", "1280\n↑", "640", "640", "640\n↑", "320", "320", "320"]
    assert channels == [*map(str, down), "1280", *up]


def test_the_legend_names_the_kinds_of_boxes_that_are_drawn(rows):
    def told(rows):
        return [text.get_text() for text in plots.u_diagram(rows).axes[0].get_legend().get_texts()]

    kinds = ["ResBlock", "ResBlock, transformer", "convolution", "half the sides", "skip connection"]
    assert told(rows) == kinds
    # the lowest level is the only one where ResBlocks stand alone
    attending = [replace(row, type=row.type.replace("ResBlock", "SpatialTransformer")) for row in rows]
    assert told(attending) == kinds[1:]


def test_the_time_embedding_is_drawn_whole_and_in_curves():
    embedding = torch.rand(10, 8).repeat_interleave(10, dim=0)  # the field shows means of 10 steps
    field, curves, _ = plots.time_embedding(embedding, [1, 3]).axes
    np.testing.assert_allclose(field.images[0].get_array(), embedding[::10].numpy().T, atol=1e-6)
    assert [line.get_label() for line in curves.lines] == ["i = 1", "i = 3"]
    assert np.array_equal(curves.lines[1].get_ydata(), embedding[:, 3].numpy())


def test_every_lie_about_the_time_has_its_curve_in_percent():
    axis = plots.wrong_clocks(torch.tensor([9, 1]), {1: torch.tensor([0.5, 0.0]), 9: torch.tensor([0.0, 2.0])}).axes[0]
    assert [line.get_label() for line in axis.lines] == ["always 1", "always 9"]
    assert [line.get_ydata().tolist() for line in axis.lines] == [[50.0, 0.0], [0.0, 200.0]]
    assert axis.lines[0].get_xdata().tolist() == [9, 1]


def test_attention_lights_the_place_it_falls_on():
    image, weights = Image.new("RGB", (64, 64), (90, 90, 90)), torch.zeros(4, 4)
    weights[1, 2] = 0.02  # its own largest weight is brightest, however small
    light = np.asarray(plots.attention_over(image, weights)).astype(int).sum(-1)
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert 16 <= row < 32 and 32 <= column < 48
    assert light[24, 40] > 2 * light[60, 4]
    marked = np.asarray(plots.attention_over(image, weights, place=(3, 0)))
    assert tuple(marked[56, 8]) == (120, 220, 255)


def test_attention_that_is_nowhere_is_dark():
    image = plots.attention_over(Image.new("RGB", (8, 8)), torch.zeros(2, 2))
    assert np.asarray(image).max() < 10


def test_shares_are_of_each_colours_total():
    axes = plots.shares({"one": {"a": (1, 3), "b": (3, 1)}, "two": {"c": (5, 5)}}, names=("x", "y")).axes
    bars = [bar.get_width() for bar in axes[0].patches]
    assert bars == [25, 75, 75, 25]
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["x", "y"]
    assert [bar.get_width() for bar in axes[1].patches] == [100, 100]


def test_pyplot_keeps_no_figure(rows):
    plots.u_diagram(rows), plots.time_embedding(torch.zeros(9, 4), [0]), plots.channel_shifts(torch.ones(9, 4))
    plots.wrong_clocks(torch.tensor([9, 1]), {1: torch.zeros(2)})
    plots.peaked_softmax([8, 16], [0.5, 0.6], [0.1, 0.1], 0.01), plots.shares({"one": {"a": (1, 1)}})
    assert plt.get_fignums() == []


def test_curves_carry_the_name_of_what_they_are():
    axis = plots.peaked_softmax([8, 16], [0.5, 0.6], [0.1, 0.2], 0.01).axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert drawn["softmax(q k)"] == [0.5, 0.6] and drawn["softmax(q k / sqrt(d))"] == [0.1, 0.2]


def test_the_field_says_which_half_is_cosines():
    field = plots.time_embedding(torch.zeros(10, 8), [0]).axes[0]
    assert {text.get_text(): text.get_position()[1] for text in field.texts} == {"cos": 2, "sin": 6}
