"""What every notebook must be; that each cell still gives what is stored, nbval checks beside this file."""

import itertools
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
CHAPTERS = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
NOTEBOOKS = CHAPTERS + SOLUTIONS
BANNED = re.compile(r"clear_output|display_id|\binteract\(|interactive_output|with .*Output\(\)")


def name(path: Path) -> str:
    return str(path.relative_to(FOLDER).with_suffix(""))


def cells(path: Path, kind: str = "") -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if kind in ("", cell.cell_type)]


def exercises(path: Path, kind: str) -> dict[str, object]:
    """Tag -> cell, of the cells that carry an exercise's tag; two cells of one kind must not share one."""
    tagged = [
        (tag, cell)
        for cell in cells(path, kind)
        for tag in cell.metadata.get("tags", ())
        if tag.startswith("exercise-")
    ]
    assert len(dict(tagged)) == len(tagged)
    return dict(tagged)


def said(cell) -> str:
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=name)


def test_every_chapter_has_its_solutions():
    assert CHAPTERS and [path.name for path in CHAPTERS] == [path.name for path in SOLUTIONS]


@every_notebook
def test_a_notebook_is_valid_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.nbformat_minor >= 5 and "widgets" not in notebook.metadata
    assert path.stat().st_size <= 500_000


@every_notebook
def test_every_cell_was_run_in_order_without_an_error(path):
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    raised = [c for c in code if any(output.output_type == "error" for output in c.outputs)]
    assert not [cell.source for cell in raised if "raises-exception" not in cell.metadata.get("tags", ())]


@every_notebook
def test_code_cells_are_short_and_show_nothing_that_changes(path):
    code = [cell.source for cell in cells(path, "code")]
    assert max(len(source.splitlines()) for source in code) <= 25
    assert not [source for source in code if BANNED.search(source) or source.rstrip().endswith(";")]


@every_chapter
def test_most_code_cells_have_five_lines_or_fewer(path):
    lengths = [len(cell.source.splitlines()) for cell in cells(path, "code")]
    assert sum(length <= 5 for length in lengths) > len(lengths) / 2


@every_notebook
def test_every_cell_has_its_place_in_the_slides(path):
    assert all(cell.metadata.get("slideshow", {}).get("slide_type") for cell in cells(path))


@every_notebook
def test_a_notebook_begins_with_its_number_and_name(path):
    number, title = path.stem.split("_", 1)
    first = cells(path)[0].source.splitlines()[0].lower()
    assert first.removesuffix(": solutions") == f"# {int(number)} · {title.replace('_', ' ')}"


@every_chapter
def test_headings_go_down_one_level_at_a_time(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    levels = [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"(?ms)^```.*?^```", "", text), re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@every_chapter
def test_a_chapter_has_every_part_that_chapters_have(path):
    text = "\n".join(cell.source for cell in cells(path))
    parts = ["*You need:*", "pipeline_map(", "## Predict", "## Break it", "## The real one", "## What we left out"]
    assert not [part for part in [*parts, "*Read on:*", "show_source(", "assert "] if part not in text]


@every_notebook
def test_links_within_the_repository_lead_somewhere(path):
    links = [link for cell in cells(path, "markdown") for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", cell.source)]
    local = [link for link in links if "://" not in link and not link.startswith("attachment:")]
    assert not [link for link in local if not (path.parent / link).exists()]


@every_chapter
def test_a_chapter_has_exercises_and_the_solutions_have_the_same(path):
    solutions = path.parent / "solutions" / path.name
    asked, answered = (exercises(notebook, "markdown") for notebook in (path, solutions))
    number = int(path.stem[:2])
    assert list(asked) == [f"exercise-{number}.{i + 1}" for i in range(len(asked))] and 3 <= len(asked) <= 4
    assert {tag: cell.source for tag, cell in asked.items()} == {tag: cell.source for tag, cell in answered.items()}
    assert list(asked) == list(exercises(path, "code")) == list(exercises(solutions, "code"))


@every_chapter
def test_exercises_ask_and_solutions_are_right(path):
    for tag, cell in exercises(path, "code").items():
        assert said(cell).startswith(f"… {tag.removeprefix('exercise-')}: "), tag
    for tag, cell in exercises(path.parent / "solutions" / path.name, "code").items():
        assert said(cell).startswith(f"✓ {tag.removeprefix('exercise-')}: "), tag
