"""Weights on disk: the real checkpoint (one safetensors file) and the bundled miniature (a folder of shards).

Both hold the same names. Loading is strict: a name that is missing, unexpected or of the wrong shape is an error that
names it; weights that load quietly only in part make pictures that are quietly wrong.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from sd_teach import ASSETS
from sd_teach.diffusion import LatentDiffusion, ModelConfig

INDEX = "model.safetensors.index.json"
SUMS = "SHA256SUMS"

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


def load_model(name: str | Path = "tiny", dtype: torch.dtype = torch.float32) -> tuple[LatentDiffusion, str]:
    """Load a model, frozen and on the CPU, and the sha256 of its weights.

    name: "tiny", a folder written by save_model, or a .safetensors file of Stable Diffusion v1.5.
    dtype: of the UNet and the text encoder; the VAE is float32 always.

    Raises ValueError, naming the file and what is wrong with it, for anything that is not exactly such a model.
    """
    path = ASSETS / "tiny" if name == "tiny" else Path(name)
    if not path.exists():
        raise ValueError(f'no model at "{name}": give tiny, a model folder, or a .safetensors file')
    if path.is_dir():
        config = _read_config(path / "config.json")
        files = _shards(path)
    elif path.suffix == ".safetensors":
        config, files = ModelConfig(), [path]
    else:
        raise ValueError(f"{path} is neither a model folder nor a .safetensors file")

    state = {}
    for file in files:
        try:
            state |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} cannot be read as safetensors, get it again: {error}") from None
    digest = _check_sums(path, files)

    with torch.device("meta"):  # shapes only: no memory, no time spent on random weights
        model = LatentDiffusion(config)
    state = {k: v for k, v in state.items() if k not in EXTRA_NAMES}
    check_names({k: v.shape for k, v in model.state_dict().items()}, {k: v.shape for k, v in state.items()}, path)
    for key in state:
        state[key] = state[key].to(torch.float32 if key.startswith("first_stage_model.") else dtype)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False), digest


def save_model(model: LatentDiffusion, folder: Path) -> None:
    """Write config.json and the weights in float16, in shards of 16 MB or less, with their SHA256SUMS."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_torch_state_dict(state, folder, max_shard_size="16MB")
    (folder / "config.json").write_text(json.dumps(asdict(model.config), indent=1) + "\n")
    files = sorted(folder.glob("model*.safetensors"))
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
        raise ValueError(f"{where} does not hold this model; {'; '.join(told)}")


def _shards(folder: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    except FileNotFoundError:
        names = ["model.safetensors"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder / INDEX} is not an index of safetensors shards") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}")
    return [folder / name for name in names]


def _check_sums(path: Path, files: list[Path]) -> str:
    if path.is_dir() and (path / SUMS).exists():
        sums = {name: digest for digest, name in (line.split() for line in (path / SUMS).read_text().splitlines())}
        for file in files:
            if sums.get(file.name) != _sha256([file]):
                raise ValueError(f"{file} is damaged: its sha256 is not the one in {SUMS}; get it again")
    return _sha256(files)


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
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a model's config: {error}") from None


def _build(kind: type, values: dict):
    """A config dataclass from JSON, which has lists for tuples and objects for nested configs."""
    types = {field.name: field.type for field in fields(kind)}
    if unknown := values.keys() - types.keys():
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    made = {}
    for name, value in values.items():
        nested = types[name]
        made[name] = (
            _build(nested, value) if is_dataclass(nested) else tuple(value) if isinstance(value, list) else value
        )
    return kind(**made)
