"""Files of weights, .safetensors and .ckpt: what they say they hold, and tensors out of them when they are asked for.

Both are mapped: a tensor that is only looked at costs no memory of its own, and one that is used as it is stays in its
file. A .ckpt file is a pickle, which may hold programs; here it may hold tensors and plain values, or it is refused.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

# what weights may be stored in, as safetensors calls it
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read. dtype: as safetensors calls it, F32 or BF16 or anything."""

    file: Path
    name: str
    shape: torch.Size
    dtype: str


def stored_tensors(file: Path) -> dict[str, Stored]:
    """Name -> what the file says of it, in the order of the file.

    No numbers are read, but those of a .ckpt file are held against its checksums: a few seconds for a large one.
    Raises ValueError, naming the file, where it is broken or holds anything but tensors.
    """
    found = {}
    try:
        if file.suffix == ".ckpt":
            with zipfile.ZipFile(file) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} in it is damaged")
            names = {dtype: name for name, dtype in FLOATS.items()}
            for name, tensor in _pickled(file).items():
                found[name] = Stored(file, name, tensor.shape, names.get(tensor.dtype, str(tensor.dtype)))
        else:
            opened = safe_open(file, "pt")
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                slot = opened.get_slice(name)
                found[name] = Stored(file, name, torch.Size(slot.get_shape()), slot.get_dtype())
    except Exception as error:  # what a hostile file makes the libraries raise has no common base
        raise _unreadable(file, error) from None
    return found


def find_shards(folder: Path, file: str = "model.safetensors") -> list[Path]:
    """The files that `file` was split into, by its index; itself where there is none.

    Raises ValueError where one of them is not there, or the index is broken.
    """
    index = folder / f"{file}.index.json"
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if not names or not all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in names):
            raise ValueError("names are missing or strange")
    except FileNotFoundError:
        names = [file]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{index} is not an index of safetensors shards") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}")
    return [folder / name for name in names]


def find_tensors(files: list[Path]) -> dict[str, Stored]:
    """stored_tensors of several files, which together are one. Raises ValueError for a name in two of them, too."""
    stored = {}
    for file in files:
        found = stored_tensors(file)
        if twice := sorted(stored.keys() & found.keys()):
            raise ValueError(f"{file} holds {one_line(twice[0])} again, another shard has it")
        stored |= found
    return stored


def check_dtypes(weights: dict[str, Stored], where: str | Path) -> None:
    """Raise ValueError with the first name whose numbers are not floating-point numbers."""
    for name, value in weights.items():
        if value.dtype not in FLOATS:
            raise ValueError(f"{where}: {one_line(name)} is of {value.dtype}, weights are floating-point numbers")


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise ValueError, beginning with `what` the tensor is, where a number in it is infinite or none at all."""
    if tensor.numel() and not all(bound.isfinite() for bound in torch.aminmax(tensor)):
        raise ValueError(f"{what} has numbers that {tensor.dtype} cannot hold: the file is damaged, get it again")


def read_tensors(wanted: dict[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """Yield (key, tensor) for each of the wanted, file by file. The files stay mapped as long as a tensor is in use."""
    for file in dict.fromkeys(stored.file for stored in wanted.values()):
        try:
            opened = _pickled(file) if file.suffix == ".ckpt" else safe_open(file, "pt")
            get = opened.__getitem__ if isinstance(opened, dict) else opened.get_tensor
            for key, stored in wanted.items():
                if stored.file == file:
                    yield key, get(stored.name)
        except Exception as error:
            raise _unreadable(file, error) from None


def one_line(error: object) -> str:
    """What a library or a file says, cut to one printable line."""
    return "".join(c if c.isprintable() else " " for c in str(error).strip().split("\n")[0])[:300]


def table_fault(stored: Stored, table: Tensor, ours: Tensor) -> str | None:
    """How a stored table differs from ours by more than its dtype explains, or None."""
    if stored.shape != ours.shape or stored.dtype not in FLOATS:
        return f"{list(stored.shape)} {stored.dtype} instead of {list(ours.shape)} floats"
    table, ours = table.double(), ours.double()
    # another schedule differs by percents, float32 arithmetic by 1e-5, rounding to float16 by half of its eps, 5e-4
    far = ~torch.isclose(table, ours, rtol=max(1e-4, torch.finfo(FLOATS[stored.dtype]).eps), atol=1e-7)
    if not far.any():
        return None
    step = int(far.nonzero()[0])
    return f"{table[step]:.6g} instead of {ours[step]:.6g} at step {step}, {int(far.sum())} of {len(ours)} differ"


def _pickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a .ckpt file: its `state_dict`, or all of it where it has none."""
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    state = state.get("state_dict", state)
    for name, tensor in state.items():
        kinds = type(name), type(tensor), getattr(tensor, "layout", None), str(getattr(tensor, "device", None))
        if kinds not in ((str, Tensor, torch.strided, "cpu"), (str, nn.Parameter, torch.strided, "cpu")):
            raise ValueError(f"{name!r} is no ordinary tensor")
    return state


def _unreadable(file: Path, error: Exception) -> ValueError:
    kind = "a .ckpt" if file.suffix == ".ckpt" else "safetensors"
    if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
        return ValueError(f"{file} is refused: it holds more than tensors, {one_line(found[1])} among it")
    return ValueError(f"{file} cannot be read as {kind}, get it again: {one_line(error)}")
