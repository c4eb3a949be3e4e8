"""What holds for the tree as a whole: small enough to clone fast, short enough to read in an afternoon."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
TAUGHT = "text_encoder noise ddim guidance attention unet vae diffusion checkpoint pipeline".split()


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of tracked files")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_the_tracked_tree_stays_under_60_mebibytes(tracked):
    assert sum(path.stat().st_size for path in tracked) < 60 * 2**20


def test_the_miniature_stays_within_50_megabytes():
    # the tokenizer is not counted: it is CLIP's, for every model, in assets/tokenizer
    assert sum(path.stat().st_size for path in (ROOT / "assets" / "tiny").iterdir()) <= 50_000_000


def test_the_taught_path_can_be_read_in_an_afternoon():
    lines = {name: len((ROOT / "sd_teach" / f"{name}.py").read_text().splitlines()) for name in TAUGHT}
    # text to image alone took 1332; image to image, inpainting and other samplers take part in the same loop
    assert sum(lines.values()) <= 1500, lines


def test_no_absolute_path_of_a_machine_is_in_the_tree(tracked):
    pattern = re.compile(rb"(?<![\w.:/])/(?:home|root|work|Users)/\w")
    texts = [path for path in tracked if path.suffix in {".py", ".md", ".toml", ".txt", ".json", ".ipynb", ".csv"}]
    assert len(texts) > 40
    assert not [path for path in texts if pattern.search(path.read_bytes())]


@pytest.mark.parametrize("page", ["README.md", "article.md", "assets/tiny/README.md"])
def test_links_within_the_repository_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not ((ROOT / page).parent / link).exists()]


def test_every_module_of_the_taught_path_has_its_test_file():
    assert not [name for name in TAUGHT if not (ROOT / "tests" / f"test_{name}.py").exists()]


def written(path: Path, *kinds: str) -> str:
    """What people wrote in a file; of a notebook the cells of these kinds, without their outputs."""
    if path.suffix != ".ipynb":
        return path.read_text()
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type in kinds)


def test_the_spelling_is_right(tracked, tmp_path):
    for path in tracked:
        if path.suffix in {".py", ".md", ".ipynb", ".toml"}:
            copy = (tmp_path / path.relative_to(ROOT)).with_suffix(f"{path.suffix}.txt")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(written(path, "markdown", "code"))
    found = subprocess.run([sys.executable, "-m", "codespell_lib", tmp_path], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


FORMULA = re.compile(r"(?s)\$\$(.+?)\$\$|\$([^$\n]+)\$")
PAIRS = ((r"(?<!\\)\{", r"(?<!\\)\}"), (r"\\left(?![a-z])", r"\\right(?![a-z])"), (r"\\begin", r"\\end"))


def test_formulas_are_whole(tracked):
    """Dollars, braces, left and right come in pairs; that formulas render, the browser test shows."""
    for path in (path for path in tracked if path.suffix in {".md", ".ipynb"}):
        text = re.sub(r"(?s)```.*?```|`[^`\n]*`|\\\$", "", written(path, "markdown"))  # code has dollars of its own
        assert "$" not in FORMULA.sub("", text), path.name
        for formula in ("".join(groups) for groups in FORMULA.findall(text)):
            assert "\n\n" not in formula, (path.name, formula)
            for left, right in PAIRS:
                assert len(re.findall(left, formula)) == len(re.findall(right, formula)), (path.name, formula)
