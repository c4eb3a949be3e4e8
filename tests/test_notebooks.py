"""What every notebook must be; that each cell still gives what is stored, nbval checks beside this file."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").rglob("*.ipynb"))
BANNED = re.compile(r"clear_output|display_id|\binteract\(|interactive_output|with .*Output\(\)")


@pytest.fixture(params=NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def path(request) -> Path:
    return request.param


@pytest.fixture
def cells(path):
    return nbformat.read(path, as_version=4).cells


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_a_notebook_is_valid_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.nbformat_minor >= 5 and "widgets" not in notebook.metadata
    assert path.stat().st_size <= 500_000


def test_every_cell_was_run_in_order_without_an_error(cells):
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]


def test_code_cells_are_short_and_show_nothing_that_changes(cells):
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    lengths = sorted(len(source.splitlines()) for source in code)
    assert lengths[-1] <= 25 and lengths[len(lengths) // 2] <= 5
    assert not [source for source in code if BANNED.search(source) or source.rstrip().endswith(";")]


def test_every_cell_has_its_place_in_the_slides(cells):
    assert all(cell.metadata.get("slideshow", {}).get("slide_type") for cell in cells)


def test_a_notebook_begins_with_its_number_and_name(path, cells):
    number, name = path.stem.split("_", 1)
    first = cells[0].source.splitlines()[0].lower()
    assert first.removesuffix(": solutions") == f"# {int(number)} · {name.replace('_', ' ')}"
