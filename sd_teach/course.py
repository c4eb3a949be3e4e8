"""A student's own copy of the notebooks, without their outputs: `python -m sd_teach course DIR`.

A prediction then comes before its answer, and an update of this repository never touches the student's work.
"""

from pathlib import Path

import nbformat

from sd_teach import ASSETS

NOTEBOOKS = ASSETS.parent / "notebooks"


def write_course(folder: Path) -> list[Path]:
    """Copy every chapter and its solutions, outputs cleared, into a folder; returns the new files, in reading order.

    Raises ValueError where a file of the course is already there, or the folder cannot be written to.
    """
    targets = {source: folder / source.relative_to(NOTEBOOKS) for source in sorted(NOTEBOOKS.rglob("*.ipynb"))}
    if there := [str(target) for target in targets.values() if target.exists()]:
        raise ValueError(f"{there[0]} is there already and may hold your work: choose another folder, or move it away")
    try:
        for source, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(_cleared(source), target)
    except OSError as error:
        raise ValueError(f"cannot write the course to {folder}: {error.strerror or error}") from None
    return list(targets.values())


def _cleared(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook
