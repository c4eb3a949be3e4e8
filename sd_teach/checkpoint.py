"""Weights on disk: the real checkpoint (one safetensors file) and the bundled miniature (a folder of shards).

Both hold the same names. Loading is strict: a name that is missing, unexpected or of the wrong shape is an error that
names it; weights that load quietly only in part make pictures that are quietly wrong.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

from sd_teach import ASSETS
from sd_teach.diffusion import LatentDiffusion, ModelConfig
from sd_teach.download import find_sd_v1_5

INDEX = "model.safetensors.index.json"
SUMS = "SHA256SUMS"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # what weights may be stored in

# what the real file may hold beside the networks' 1,130 tensors, none of it a weight
EXTRA_NAMES = {
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "model_ema.decay",
    "model_ema.num_updates",
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
}


def load_model(name: str | Path = "tiny", dtype: torch.dtype = torch.float32) -> LatentDiffusion:
    """Load a model, frozen and on the CPU.

    name: "tiny", "sd-v1-5", a folder written by save_model, or a .safetensors file of Stable Diffusion v1.5.
    dtype: of the UNet and the text encoder; the VAE is float32 always.

    Raises ValueError, naming the file and what is wrong with it, for anything that is not exactly such a model.
    """
    path, config, files = _find(name)
    state = {}
    for file in files:
        try:
            tensors = load_file(file)
        except Exception as error:  # what a hostile file makes the library raise has no common base
            raise ValueError(f"{file} cannot be read as safetensors, get it again: {_line(error)}") from None
        if twice := sorted(state.keys() & tensors.keys()):
            raise ValueError(f"{file} holds {_line(twice[0])} again, another shard has it")
        state |= tensors
    if path.is_dir():
        _check_sums(files)
    model = empty_model(path, config)
    _check_schedule(state, model, path)
    state = {k: v for k, v in state.items() if k not in EXTRA_NAMES}
    check_names({k: v.shape for k, v in model.state_dict().items()}, {k: v.shape for k, v in state.items()}, path)
    for key in state:
        if state[key].dtype not in FLOATS:
            raise ValueError(f"{path}: {key} is of {state[key].dtype}, weights are floating-point numbers")
        state[key] = state[key].to(torch.float32 if key.startswith("first_stage_model.") else dtype)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def empty_model(path: Path, config: ModelConfig) -> LatentDiffusion:
    """The networks on the meta device: shapes only, no memory, no time spent on random weights.

    Raises ValueError, naming the model's folder `path`, where no network can have these sizes.
    """
    try:
        with torch.device("meta"):
            return LatentDiffusion(config)
    except Exception as error:  # three libraries look at the sizes, each with errors of its own
        raise ValueError(f"{path / 'config.json'} describes no network that can be built: {_line(error)}") from None


def model_digest(name: str | Path = "tiny") -> str:
    """The sha256 over a model's weight files, in the order of their names; takes seconds for the real model."""
    path = model_path(name)
    return _sha256(sorted(path.rglob("*.safetensors")) if path.is_dir() else [path])


def model_path(name: str | Path) -> Path:
    """Where a model is: "tiny" is bundled, "sd-v1-5" in the download cache, anything else a path.

    Raises ValueError where there is nothing.
    """
    if name == "tiny":
        return ASSETS / "tiny"
    if name == "sd-v1-5":
        path = find_sd_v1_5()
        if path is None:
            raise ValueError("the real weights are not here yet: python -m sd_teach download sd-v1-5 fetches them")
        return path
    if not Path(name).exists():
        raise ValueError(f'no model at "{name}": give tiny, sd-v1-5, a model folder, or a .safetensors file')
    return Path(name)


def save_model(model: LatentDiffusion, folder: Path) -> None:
    """Write config.json and the weights in float16, in shards of 16 MB or less, with their SHA256SUMS."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_torch_state_dict(state, folder, max_shard_size="16MB")
    (folder / "config.json").write_text(json.dumps(asdict(model.config), indent=1) + "\n")
    files = sorted(folder.glob("model*.safetensors"))
    for file in files:
        shutil.copymode(folder / "config.json", file)  # safetensors lets only the owner read its files
    (folder / SUMS).write_text("".join(f"{_sha256([file])}  {file.name}\n" for file in files))


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
        raise ValueError(f"{where} does not hold this model; {_line('; '.join(told))}")


def _find(name: str | Path) -> tuple[Path, ModelConfig, list[Path]]:
    """(where the model is, its config, its weight files)."""
    path = model_path(name)
    if path.is_dir():
        return path, _read_config(path / "config.json"), _shards(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is neither a model folder nor a .safetensors file")
    return path, ModelConfig(), [path]


def _shards(folder: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        if not names or not all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in names):
            raise ValueError("names are missing or strange")
    except FileNotFoundError:
        names = ["model.safetensors"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{folder / INDEX} is not an index of safetensors shards") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}")
    return [folder / name for name in names]


def _check_sums(files: list[Path]) -> None:
    sums = files[0].with_name(SUMS)
    if sums.exists():
        try:
            told = sums.read_text().split()
        except (OSError, ValueError):
            raise ValueError(f"{sums} cannot be read") from None
        digests = dict(zip(told[1::2], told[::2], strict=False))
        for file in files:
            if digests.get(file.name) != _sha256([file]):
                raise ValueError(f"{file} is damaged: its sha256 is not the one in {SUMS}; get it again")


def _check_schedule(state: dict[str, torch.Tensor], model: LatentDiffusion, path: Path) -> None:
    # the file's own tables are not used; where they are there, they must say what ours say
    for name in ("betas", "alphas_cumprod"):
        ours = getattr(model.schedule, name)
        if name not in state:
            continue
        if state[name].dtype not in FLOATS:
            raise ValueError(
                f"{path}: its {name}, the noise schedule, are of {state[name].dtype}, not numbers like ours"
            )
        # another schedule differs by percents, a half-precision copy of ours by its rounding
        theirs, rounding = state[name].float(), max(1e-4, torch.finfo(state[name].dtype).eps)
        if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=rounding, atol=1e-7):
            raise ValueError(f"{path} was trained with another noise schedule: its {name} are not ours")


def _line(error: object) -> str:
    """What a library or a file says, cut to one printable line."""
    return "".join(c if c.isprintable() else " " for c in str(error).strip().split("\n")[0])[:300]


def _sha256(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read_config(path: Path) -> ModelConfig:
    try:
        return _build(ModelConfig, json.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is no model folder: it has no config.json") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a model's config: {_line(error)}") from None


def _build(kind: type, values: object):
    """A config dataclass from JSON, which has lists for tuples and objects for nested configs."""
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} must be an object, not {values!r}")
    types = {field.name: field.type for field in fields(kind)}
    if unknown := values.keys() - types.keys():
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    made = {}
    for name, value in values.items():
        wanted = types[name]
        if is_dataclass(wanted):
            made[name] = _build(wanted, value)
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
        return type(value) in (int, float) and math.isfinite(value)
    return isinstance(value, tuple) and len(value) > 0 and all(_fits(item, int) for item in value)
