"""A student's copy of the notebooks."""

import nbformat
import pytest

from sd_teach.__main__ import main
from sd_teach.course import NOTEBOOKS, write_course


def test_the_course_is_every_notebook_without_outputs(tmp_path, capsys):
    assert main(["course", str(tmp_path / "mine")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mine' / '00_one_image.ipynb'}\n"
    sources = sorted(NOTEBOOKS.rglob("*.ipynb"))
    assert sources
    for source in sources:
        copy = nbformat.read(tmp_path / "mine" / source.relative_to(NOTEBOOKS), as_version=4)
        original = nbformat.read(source, as_version=4)
        assert [cell.source for cell in copy.cells] == [cell.source for cell in original.cells]
        code = [cell for cell in copy.cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in code)


def test_a_students_work_is_never_overwritten(tmp_path):
    (tmp_path / "00_one_image.ipynb").write_text("mine")
    with pytest.raises(ValueError, match="may hold your work"):
        write_course(tmp_path)
    assert (tmp_path / "00_one_image.ipynb").read_text() == "mine"
    assert len(list(tmp_path.rglob("*"))) == 1


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write the course"):
        write_course(tmp_path / "file" / "course")
