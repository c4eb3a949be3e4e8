"""The miniature for pictures of 256 x 256: `tiny` with one level more around its UNet.

`assets/tiny-256` holds the weights that are its own; the rest is read from `assets/tiny`, under other names.
"""

import re
from pathlib import Path

from sd_teach import ASSETS
from sd_teach.stored import Stored, find_shards, find_tensors


def name_around(name: str) -> str:
    """What a weight of a UNet with one block a level is called in a UNet that has one level more around it.

    The new level's block and its way down come first, so the input blocks after the first count on from there.
    """
    return re.sub(r"(?<=input_blocks\.)[1-9]\d*", lambda number: str(int(number[0]) + 2), name)


def inner_files(path: Path) -> list[Path]:
    """The files of tiny where the model at this path is tiny-256, none for any other."""
    return find_shards(ASSETS / "tiny") if path.resolve() == (ASSETS / "tiny-256").resolve() else []


def inner_tensors(path: Path) -> dict[str, Stored]:
    """What inner_files hold, under the names it has in tiny-256, whose own weights take the place of some."""
    return {name_around(name): tensor for name, tensor in find_tensors(inner_files(path)).items()}
