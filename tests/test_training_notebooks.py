"""What stays in a notebook that was run in place."""

import base64
import io

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from sd_teach.training.notebooks import run_in_place, smaller

SHADES = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((128, 128))
FLAT = Image.new("RGBA", (64, 64), (255, 180, 58, 255))


def png(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


@pytest.mark.parametrize(("image", "kind", "apart"), [(SHADES, "image/jpeg", 3), (FLAT, "image/png", 0)])
def test_a_diagram_is_stored_with_a_palette_and_pictures_as_jpeg(image, kind, apart):
    ((stored, data),) = smaller(png(image)).items()
    back = Image.open(io.BytesIO(base64.b64decode(data)))
    assert stored == kind and back.format == kind.removeprefix("image/").upper()
    assert len(data) <= len(png(image))
    assert np.abs(np.asarray(back.convert("RGB"), int) - np.asarray(image.convert("RGB"), int)).mean() <= apart


def test_widgets_and_timings_do_not_stay(tmp_path):
    source = "import ipywidgets\nfrom IPython.display import display\ndisplay(ipywidgets.IntSlider())\n1 + 1"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), tmp_path / "x.ipynb")
    run_in_place(tmp_path / "x.ipynb")
    notebook = nbformat.read(tmp_path / "x.ipynb", as_version=4)
    assert "widgets" not in notebook.metadata and "execution" not in notebook.cells[0].metadata
    assert [list(output["data"]) for output in notebook.cells[0].outputs] == [["text/plain"], ["text/plain"]]


def test_what_is_printed_in_pieces_is_stored_as_one(tmp_path):
    source = "import sys, time\nfor line in 'ab':\n    print(line)\n    sys.stdout.flush()\n    time.sleep(0.5)"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), tmp_path / "x.ipynb")
    run_in_place(tmp_path / "x.ipynb")
    (cell,) = nbformat.read(tmp_path / "x.ipynb", as_version=4).cells
    assert [output["text"] for output in cell.outputs] == ["a\nb\n"]
