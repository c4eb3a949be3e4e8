"""What the trainings share: a run's folder, exact resumption, the optimisation loop, the options.

Runs live outside the checkout, in `$SD_TEACH_RUNS` (default `~/.cache/sd_teach/runs`), one folder each:
`checkpoint.pt` (weights, their moving average, optimisers, step), `log.jsonl` (a line a checkpoint) and `samples/`.
All randomness of step i comes from a generator seeded with i, so a resumed run repeats an unbroken one exactly.
"""

import argparse
import copy
import json
import os
import signal
import sys
from collections.abc import Callable, Collection
from functools import wraps
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sd_teach import ASSETS
from sd_teach.checkpoint import check_names, load_model
from sd_teach.diffusion import LatentDiffusion
from sd_teach.pipeline import cpu_has_bf16, fastest_device
from sd_teach.training.muon import Muon


def runs_folder() -> Path:
    """Where runs and downloaded pictures live."""
    return Path(os.environ.get("SD_TEACH_RUNS", "~/.cache/sd_teach/runs")).expanduser()


def parser(
    description: str, *, run: str, steps: int, batch: int, lr: float, fresh: bool = True
) -> argparse.ArgumentParser:
    """The options every training command has, with this training's defaults. fresh: whether it can begin anew."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--run", default=run, help="name of the run's folder; an existing run is resumed")
    options.add_argument("--steps", type=int, default=steps, help="length of the whole run, resumed part included")
    options.add_argument("--batch", type=int, default=batch, help="pictures a step")
    options.add_argument("--lr", type=float, default=lr, help="peak learning rate")
    options.add_argument("--every", type=int, default=1000, help="steps between checkpoints, metrics and samples")
    options.add_argument("--device", default=fastest_device(), help="cpu, cuda or mps")
    options.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 where the hardware has it")
    if fresh:
        options.add_argument("--fresh", action="store_true", help="start from random weights, not from assets/tiny")
    return options


def command(main: Callable[[], None]) -> Callable[[], None]:
    """A command's main that tells what is wrong with its input, a ValueError, in one line, with exit code 2."""

    @wraps(main)
    def told() -> None:
        try:
            main()
        except ValueError as error:
            print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
            raise SystemExit(2) from error

    return told


def learning_rate(step: int, steps: int, peak: float, warmup: int = 300) -> float:
    """Linear warm-up, constant until half of the run, then linear to 5 % of the peak."""
    decay = max(0.05, 1.0 - 0.95 * max(0.0, 2.0 * step / steps - 1.0))
    return peak * min(1.0, (step + 1) / warmup) * decay


def save_whole(content: dict, file: Path) -> None:
    """torch.save, but the file is there whole or not at all."""
    temporary = file.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(file)


class Run:
    """A run's folder: atomic checkpoints, a log, sample pictures."""

    def __init__(self, name: str):
        self.folder = runs_folder() / name
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.folder / "checkpoint.pt"

    def save(self, **state) -> None:
        save_whole(state, self.checkpoint)

    def load(self) -> dict | None:
        if not self.checkpoint.exists():
            return None
        return torch.load(self.checkpoint, map_location="cpu", weights_only=True)

    def log(self, **numbers) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(numbers) + "\n")

    def settings(self) -> dict[str, int]:
        """Steps done so far and pictures a step."""
        state = self.load() or {}
        return {name: state.get(name, 0) for name in ("step", "batch")}


def bundled_model(name: str = "tiny") -> LatentDiffusion | None:
    """The model in assets/tiny (or tiny-256), or None where there is none. Raises ValueError where it is damaged."""
    return load_model(name) if (ASSETS / name / "config.json").exists() else None


def start_from_bundled(module: nn.Module, part: str) -> None:
    """Give a module the weights of its part of assets/tiny ("first_stage_model." and so on), if there are any.

    Raises ValueError where assets/tiny is damaged or holds a network of another shape.
    """
    if bundled := bundled_model():
        state = bundled.state_dict()
        load_checked(module, {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}, "assets/tiny")


def load_trained(module: nn.Module, run: str, part: str, inside: str = "") -> None:
    """Give a module the averaged weights of a run, or those of its part of assets/tiny where there is no such run.

    inside: what the names begin with in the run, where the module was a part of what was trained.
    """
    if state := Run(run).load():
        weights = {k.removeprefix(inside): v for k, v in state["average"].items() if k.startswith(inside)}
        load_checked(module, weights, f"run {run!r}")
    else:
        start_from_bundled(module, part)


def load_checked(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Give a module these weights. Raises ValueError, which names `where`, for those of another network."""
    check_names({k: v.shape for k, v in module.state_dict().items()}, {k: v.shape for k, v in weights.items()}, where)
    module.load_state_dict(weights)


def train(
    run: Run,
    model: nn.Module,
    loss_at: Callable[[torch.Generator], Tensor],
    evaluate: Callable[[nn.Module, int], dict[str, float]],
    options: argparse.Namespace,
    *,
    average_decay: float = 0.9995,
    weight_decay: float = 0.01,
    fast: Collection[nn.Parameter] = (),
    muon: bool = False,
) -> nn.Module:
    """Train to `options.steps`, resuming the run if there is one; Ctrl-C or SIGTERM stops with a checkpoint.

    `loss_at(generator)` draws its batch from the generator and returns the loss; `evaluate(average, step)` gets the
    model with averaged weights, may write samples, and returns numbers for the log. `fast`: parameters with ten times
    the learning rate. `muon`: whether Muon trains matrices and convolutions that are not in `fast`, and AdamW the rest.
    Returns the model with averaged weights. Raises ValueError for a run begun with other optimisers.
    """
    device, precision = options.device, options.precision or _precision(options.device)
    model.to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    others = [p for p in trained if not any(p is q for q in fast)]
    matrices = [p for p in others if muon and p.dim() > 1]
    groups = [{"params": [p for p in others if not (muon and p.dim() > 1)], "scale": 1.0}]
    groups += [{"params": list(fast), "scale": 10.0}] if fast else []
    optimisers = [torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)]
    optimisers += [Muon([{"params": matrices, "scale": 1.0}], weight_decay=weight_decay)] if matrices else []
    first = 0
    if state := run.load():
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        if len(state.get("optimisers", ())) != len(optimisers):
            raise ValueError(f"run {options.run!r} was begun by other code or options: begin another with --run NAME")
        for optimiser, its_state in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(its_state)
        first = state["step"]
    stopped = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopped.append(True))

    weights, averages = list(model.state_dict().values()), list(average.state_dict().values())
    bar = tqdm(range(first, options.steps), initial=first, total=options.steps, desc=options.run, mininterval=2.0)
    smoothed = None
    for step in bar:
        generator = torch.Generator().manual_seed(step)
        torch.manual_seed(step)
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = group["scale"] * learning_rate(step, options.steps, options.lr)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_at(generator)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        # the average follows closely at first, then ever more slowly: min(decay, (1 + i) / (10 + i))
        torch._foreach_lerp_(averages, weights, 1.0 - min(average_decay, (1 + step) / (10 + step)))
        smoothed = loss.detach() if smoothed is None else torch.lerp(smoothed, loss.detach(), 0.02)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{smoothed.item():.4f}")
        done = step + 1
        if stopped or done % options.every == 0 or done == options.steps:
            run.save(
                model=model.state_dict(),
                average=average.state_dict(),
                optimisers=[optimiser.state_dict() for optimiser in optimisers],
                step=done,
                batch=options.batch,
            )
            if stopped:
                bar.close()
                print(f"stopped after step {done}; the same command resumes", flush=True)
                raise SystemExit(0)
            numbers = evaluate(average, done)
            run.log(step=done, loss=round(smoothed.item(), 5), **numbers)
            tqdm.write(
                f"step {done}: loss {smoothed.item():.4f} " + " ".join(f"{k} {v:.3f}" for k, v in numbers.items())
            )
    return average


def _precision(device: str) -> str:
    return "bf16" if device == "cuda" or (device == "cpu" and cpu_has_bf16()) else "fp32"
