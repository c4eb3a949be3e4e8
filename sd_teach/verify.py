"""Is this file the model, exactly? Names, shapes, dtypes, schedule and sha256, without loading a weight.

A file tells names, shapes and dtypes in its header, so the answer costs no memory; only the schedule's tables, 12,000
numbers, and the sha256 read further.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sd_teach.checkpoint import EXTRA_NAMES, SUMS, check_sums, empty_model, find_model, model_digest
from sd_teach.download import SD_V1_5
from sd_teach.noise import NoiseSchedule
from sd_teach.stored import FLOATS, Stored, read_tensors, stored_tensors, table_fault
from sd_teach.tiny_256 import inner_files, inner_tensors

NETWORKS = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model."}


@dataclass(frozen=True)
class Report:
    """What a model's files hold; str(report) is what `python -m sd_teach verify` prints.

    sha256: of the weights, as the pictures tell it. origin: what is known of it.
    networks: unet, vae, text -> (tensors there, tensors wanted, parameters there, dtype -> tensors).
    tables: names of the schedule's tables that are there. problems: (what, name, how), all of them.
    """

    path: Path
    sha256: str
    origin: str
    networks: dict[str, tuple[int, int, int, Counter]]
    tables: list[str]
    problems: list[tuple[str, str, str]]

    @property
    def ok(self) -> bool:
        """Whether this is exactly the model."""
        return not self.problems

    def __str__(self) -> str:
        rows = [("network", "tensors", "parameters", "dtypes")]
        for network, (count, wanted, parameters, dtypes) in self.networks.items():
            told = ", ".join(f"{dtype} {n}" for dtype, n in sorted(dtypes.items()))
            rows.append((network, f"{count} of {wanted}", f"{parameters:,}", told))
        lines = [
            f"file      {self.path}",
            f"sha256    {self.sha256} ({self.origin})",
            f"schedule  {len(self.tables)} tables" if self.tables else "schedule  not stored",
            "",
            *_aligned(rows, "<>><"),
            "",
        ]
        if self.ok:
            return "\n".join([*lines, "right: nothing missing, nothing unexpected, every shape as it must be"])
        # a name may hold anything, what moves a terminal's cursor too
        rows = [tuple(word.encode("unicode_escape").decode() for word in row) for row in self.problems]
        return "\n".join([*lines, *_aligned(rows, "<<<"), "", f"wrong: {len(rows)} differences from the model"])


def verify(name: str | Path) -> Report:
    """Compare a model's files with the networks they are for.

    name: as load_model takes it: "tiny", a model folder, or a .safetensors or .ckpt file of Stable Diffusion v1.5.
    The sha256 of a large file takes seconds, with progress on stderr.

    Raises ValueError for what cannot be read as a model at all; any other difference is in the report.
    """
    path, config, files = find_model(name)
    model = empty_model(config, path / "config.json")
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    known = schedule_tables(model.schedule)

    found, problems = {}, []
    for file in files:
        stored = stored_tensors(file)
        problems += [("twice", name, f"again in {file.name}") for name in stored if name in found]
        tables = {name: stored[name] for name in stored if name in known}
        for name, table in read_tensors(tables):
            if fault := table_fault(tables[name], table, known[name]):
                problems.append(("wrong schedule", name, fault))
        found |= stored
    found = inner_tensors(path) | found
    problems += _differences(expected, found)

    networks = {}
    for network, prefix in NETWORKS.items():
        held = [found[name] for name in found if name.startswith(prefix) and name not in EXTRA_NAMES]
        wanted = sum(name.startswith(prefix) for name in expected)
        parameters = sum(stored.shape.numel() for stored in held)
        networks[network] = len(held), wanted, parameters, Counter(stored.dtype for stored in held)

    sha256 = model_digest(path)
    origin = "Stable Diffusion v1.5 as published" if sha256 == SD_V1_5.sha256 else "unknown here"
    if (path / SUMS).exists():
        origin = f"as {SUMS} says"
        try:
            check_sums([*files, *inner_files(path)])
        except ValueError as error:
            origin = f"not as {SUMS} says"
            problems.append(("damaged", SUMS, str(error)))
    return Report(path, sha256, origin, networks, sorted(known.keys() & found), sorted(problems))


def schedule_tables(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """The tables that LDM keeps in its checkpoints: name -> [T], float64. DDPM, equations 4, 6 and 7."""
    betas = schedule.betas.double()
    bar = (1 - betas).cumprod(0)
    prev = torch.cat([bar.new_ones(1), bar[:-1]])
    variance = betas * (1 - prev) / (1 - bar)
    return {
        "betas": betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),  # the variance is 0 at step 0
        "posterior_mean_coef1": betas * prev.sqrt() / (1 - bar),
        "posterior_mean_coef2": (1 - prev) * (1 - betas).sqrt() / (1 - bar),
    }


def _differences(expected: dict[str, list[int]], found: dict[str, Stored]) -> list[tuple[str, str, str]]:
    problems = [("missing", name, f"{shape}") for name, shape in expected.items() if name not in found]
    for name in found.keys() - EXTRA_NAMES:
        shape, dtype = list(found[name].shape), found[name].dtype
        if name not in expected:
            problems.append(("unexpected", name, f"{shape} {dtype}"))
        elif shape != expected[name]:
            problems.append(("wrong shape", name, f"{shape} instead of {expected[name]}"))
        elif dtype not in FLOATS:
            problems.append(("wrong dtype", name, f"{dtype} instead of {', '.join(FLOATS)}"))
    return problems


def _aligned(rows: list[tuple[str, ...]], sides: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[f"{word:{side}{width}}" for word, side, width in zip(row, sides, widths, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]
