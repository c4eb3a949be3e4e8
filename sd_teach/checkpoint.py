"""Weights on disk: the real checkpoint (one safetensors file) and the bundled miniature (a folder of shards).

Both hold the same names. Loading is strict: a name that is missing, unexpected or of the wrong shape is an error that
names it; weights that load quietly only in part make pictures that are quietly wrong.
"""

import json
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn

from sd_teach import ASSETS
from sd_teach.diffusion import LatentDiffusion, ModelConfig
from sd_teach.download import SD_V1_5, find_sd_v1_5, sha256_of
from sd_teach.stored import (
    Stored,
    check_dtypes,
    check_finite,
    find_shards,
    find_tensors,
    one_line,
    read_tensors,
    table_fault,
)  # fmt: skip
from sd_teach.tiny_256 import inner_files, inner_tensors

SUMS = "SHA256SUMS"
PART = 2**27  # parameters that are loaded at once, at most

# what the real file may hold beside the networks' 1,130 tensors, none of it a weight
EXTRA_NAMES = {
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "model_ema.decay", "model_ema.num_updates",
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
}  # fmt: skip


def load_model(
    name: str | Path = "tiny",
    dtype: torch.dtype = torch.float32,
    prepare: Callable[[nn.Module], object] | None = None,
) -> LatentDiffusion:
    """Load a model, frozen and on the CPU. Weights that need no change stay in their file, mapped into memory.

    name: "tiny", "tiny-256", "sd-v1-5", a folder written by save_model, or a .safetensors or .ckpt file of Stable
        Diffusion v1.5.
    dtype: of the UNet and the text encoder; the VAE is float32 always.
    prepare: called with one part of the networks after the other, as soon as it has its weights. What is replaced
        there is let go at once, so that memory never holds the model twice.

    Raises ValueError, naming the file and what is wrong with it, for anything that is not exactly such a model.
    """
    path, config, files = find_model(name)
    stored = inner_tensors(path) | find_tensors(files)
    if path.is_dir():
        check_sums([*files, *inner_files(path)])
    model = empty_model(config, path / "config.json")
    _check_schedule(stored, model, path)
    weights = {key: value for key, value in stored.items() if key not in EXTRA_NAMES}
    check_names({k: v.shape for k, v in model.state_dict().items()}, {k: v.shape for k, v in weights.items()}, path)
    check_dtypes(weights, path)
    for prefix, part in _parts(model):
        state = {}
        for key, tensor in read_tensors({key: weights[prefix + key] for key in part.state_dict()}):
            name = prefix + key
            state[key] = tensor.to(torch.float32 if name.startswith("first_stage_model.") else dtype)
            check_finite(state[key], f"{path}: {name}")
        part.load_state_dict(state, strict=True, assign=True)
        if prepare:
            prepare(part)
            for parameter in part.parameters():  # a view of what is left would keep the part's file in memory
                parameter.data = parameter.data.clone()
    return model.eval().requires_grad_(False)


def empty_model(config: ModelConfig, where: str | Path) -> LatentDiffusion:
    """The networks on the meta device: shapes only, no memory, no time spent on random weights.

    Raises ValueError, naming `where` the config is from, where no network can have these sizes.
    """
    try:
        with torch.device("meta"):
            return LatentDiffusion(config)
    except Exception as error:  # three libraries look at the sizes, each with errors of its own
        told = one_line(" ".join(str(error).split()))
        raise ValueError(f"{where} describes no network that can be built: {told}") from None


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(what its names begin with, part) for parts of at most half a gigabyte, which together are the module."""
    children = dict(module.named_children())
    if not children or sum(parameter.numel() for parameter in module.parameters()) <= PART:
        yield prefix, module
        return
    for name, child in children.items():
        yield from _parts(child, f"{prefix}{name}.")


def model_digest(name: str | Path = "tiny") -> str:
    """The sha256 over a model's weight files, in the order of their names; takes seconds for a large file."""
    path = model_path(name)
    if name == "sd-v1-5":
        return SD_V1_5.sha256  # model_path has verified it
    return sha256_of(*(sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]), *inner_files(path))


def model_path(name: str | Path) -> Path:
    """Where a model is: "tiny" and "tiny-256" are bundled, "sd-v1-5" in the download cache, anything else a path.

    Raises ValueError where there is nothing.
    """
    if name in ("tiny", "tiny-256"):
        return ASSETS / name
    if name == "sd-v1-5":
        path = find_sd_v1_5()
        if path is None:
            raise ValueError("the real weights are not here yet: python -m sd_teach download sd-v1-5 fetches them")
        return path
    if not Path(name).exists():
        raise ValueError(
            f'no model at "{name}": give tiny, tiny-256, sd-v1-5, a model folder, or a .safetensors or .ckpt file'
        )
    return Path(name)


def save_model(model: LatentDiffusion, folder: Path, names: Collection[str] | None = None) -> None:
    """Write config.json and the weights in float16, in shards of 16 MB or less, with their SHA256SUMS.

    names: of the weights to write; all of them unless told.
    """
    state = model.state_dict()
    state = {name: state[name].half().contiguous() for name in (state if names is None else names)}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    save_torch_state_dict(state, folder, max_shard_size="16MB")
    (folder / "config.json").write_text(json.dumps(asdict(model.config), indent=1) + "\n")
    files = sorted(folder.glob("model*.safetensors"))
    for file in files:
        shutil.copymode(folder / "config.json", file)  # safetensors lets only the owner read its files
    (folder / SUMS).write_text("".join(f"{sha256_of(file)}  {file.name}\n" for file in files))


def check_names(expected: dict[str, torch.Size], found: dict[str, torch.Size], where: str | Path) -> None:
    """Raise ValueError with the first names that are missing, unexpected or of another shape; quiet if none is."""
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of the wrong shape": [
            f"{name} {list(found[name])} instead of {list(expected[name])}"
            for name in sorted(expected.keys() & found.keys())
            if found[name] != expected[name]
        ],
    }
    told = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in problems.items()
        if names
    ]
    if told:
        raise ValueError(f"{where} does not hold this model; {one_line('; '.join(told))}")


def find_model(name: str | Path) -> tuple[Path, ModelConfig, list[Path]]:
    """(where a model is, its config, its weight files), for a name as load_model takes it; no weights are read.

    Raises ValueError where there is no model, or its config or the list of its files is broken.
    """
    path = model_path(name)
    if path.is_dir():
        return path, _read_config(path / "config.json"), find_shards(path)
    if path.suffix not in (".safetensors", ".ckpt"):
        raise ValueError(f"{path} is neither a model folder nor a .safetensors or .ckpt file")
    return path, ModelConfig(), [path]


def check_sums(files: list[Path]) -> None:
    """Raise ValueError, naming the file, where SHA256SUMS beside a file, if it is there, says otherwise."""
    for folder in dict.fromkeys(file.parent for file in files):
        sums = folder / SUMS
        if not sums.exists():
            continue
        try:
            told = sums.read_text().split()
        except (OSError, ValueError):
            raise ValueError(f"{sums} cannot be read") from None
        digests = dict(zip(told[1::2], told[::2], strict=False))
        for file in files:
            if file.parent == folder and digests.get(file.name) != sha256_of(file):
                raise ValueError(f"{file} is damaged: its sha256 is not the one in {SUMS}; get it again")


def _check_schedule(stored: dict[str, Stored], model: LatentDiffusion, path: Path) -> None:
    # the file's own tables are not used; where they are there, they must say what ours say
    for name, theirs in read_tensors({name: stored[name] for name in ("betas", "alphas_cumprod") if name in stored}):
        if fault := table_fault(stored[name], theirs, getattr(model.schedule, name)):
            raise ValueError(f"{path} was trained with another noise schedule: its {name} are not ours: {fault}")


def _read_config(path: Path) -> ModelConfig:
    try:
        return build_config(ModelConfig, json.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is no model folder: no config.json (--model alone reads diffusers')") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a model's config: {one_line(error)}") from None


def build_config(kind: type, values: object):
    """A config dataclass from JSON: lists for tuples, objects for nested ones. Raises ValueError or TypeError."""
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} must be an object, not {values!r}")
    types = {field.name: field.type for field in fields(kind)}
    if unknown := values.keys() - types.keys():
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    made = {}
    for name, value in values.items():
        wanted = types[name]
        if is_dataclass(wanted):
            made[name] = build_config(wanted, value)
            continue
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, wanted):
            raise TypeError(f"{kind.__name__}.{name} is {value!r}")
        made[name] = value
    return kind(**made)


def _fits(value: object, wanted: type) -> bool:
    # tuples in the configs hold whole numbers; a size beyond 100,000 would take hours to build and belongs to no model
    if wanted is str:
        return type(value) is str
    if wanted is int:
        return type(value) is int and abs(value) <= 100_000
    if wanted is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return isinstance(value, tuple) and len(value) > 0 and all(_fits(item, int) for item in value)
