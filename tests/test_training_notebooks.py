"""What a notebook stores of its figures."""

import base64
import io

import numpy as np
from PIL import Image

from sd_teach.training.notebooks import smaller


def encoded(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def test_a_stored_figure_is_smaller_and_no_level_moves_by_more_than_two():
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    levels[:2] = [[[0]], [[255]]]
    before = encoded(Image.fromarray(levels).convert("RGBA"))
    after = smaller(before)
    stored = np.asarray(Image.open(io.BytesIO(base64.b64decode(after))))
    assert len(after) < 0.75 * len(before)
    assert stored.shape == levels.shape and np.abs(stored.astype(int) - levels).max() == 2
    assert (stored[0] == 0).all() and (stored[1] == 255).all()


def test_storing_twice_changes_nothing():
    once = smaller(encoded(Image.linear_gradient("L").convert("RGBA")))
    assert smaller(once) == once
