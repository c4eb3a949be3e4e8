"""What holds for the tree as a whole: small enough to clone fast, short enough to read in an afternoon."""

import re
import subprocess
from pathlib import Path

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
    assert sum(path.stat().st_size for path in (ROOT / "assets" / "tiny").iterdir()) <= 50_000_000


def test_the_taught_path_can_be_read_in_an_afternoon():
    lines = {name: len((ROOT / "sd_teach" / f"{name}.py").read_text().splitlines()) for name in TAUGHT}
    assert sum(lines.values()) <= 1400, lines


def test_no_absolute_path_of_a_machine_is_in_the_tree(tracked):
    pattern = re.compile(rb"(?<![\w.:/])/(?:home|root|work|Users)/\w")
    texts = [path for path in tracked if path.suffix in {".py", ".md", ".toml", ".txt", ".json", ".ipynb", ".csv"}]
    assert len(texts) > 40
    assert not [path for path in texts if pattern.search(path.read_bytes())]


@pytest.mark.parametrize("page", ["README.md", "assets/tiny/README.md"])
def test_links_within_the_repository_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not ((ROOT / page).parent / link).exists()]


def test_every_module_of_the_taught_path_has_its_test_file():
    assert not [name for name in TAUGHT if not (ROOT / "tests" / f"test_{name}.py").exists()]
