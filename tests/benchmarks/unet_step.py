"""Ours against diffusers at full size: `PYTHONPATH=.:tests python tests/benchmarks/unet_step.py`, on an idle machine.

One step of the UNet with guidance (two texts, a 64 x 64 latent) and one decoding of a 512 x 512 picture, on the same
random weights and inputs, alternating. Tells the ratio of the medians, by the clock and by the processor's own account,
which others on the machine disturb less; how far the answers are apart; and, on Linux, the peak memory beyond the
weights, each in a process of its own. Ours runs as `from_pretrained` prepares it. Needs 12 GiB of memory.
"""

import argparse
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

import torch
from conftest import randomize
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn

from sd_teach.diffusion import LatentDiffusion, ModelConfig
from sd_teach.exchange import PARTS, diffusers_settings, tensor_names
from sd_teach.packing import can_pack, pack
from sd_teach.pipeline import cpu_has_bf16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
# The largest relative distance of answers that agree. bf16 has 8 binary digits. Over the VAE's large maps PyTorch's
# GroupNorm is less exact for channels_last: put into that layout, diffusers' own answer moves by as much
APART = {"unet fp32": 1e-5, "unet bf16": 0.05, "unet bf16/fp32": 0.05, "vae fp32": 3e-5}


def networks(part: str, weights: Path | None, fill: Callable[[nn.Module], object]) -> tuple[nn.Module, nn.Module]:
    """Our network and theirs, on the same tensors: those of a file, or what `fill` makes of empty ones."""
    with torch.device("meta"):
        model = LatentDiffusion()
        theirs = CLASSES[part].from_config(diffusers_settings(ModelConfig())[part])
    prefix, _ = PARTS[part]
    ours = model.get_submodule(prefix)
    if weights:
        with safe_open(weights, "pt") as file:
            state = {name: file.get_tensor(f"{prefix}.{name}") for name in ours.state_dict()}
        ours.load_state_dict(state, strict=True, assign=True)
    else:
        fill(ours.to_empty(device="cpu"))
    state, shapes = ours.state_dict(), {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    names = tensor_names(model)[part]
    state = {name: state[mine].view(shapes[name]) for mine, name in names.items()}
    theirs.load_state_dict(state, strict=True, assign=True)
    return ours.eval().requires_grad_(False), theirs.eval().requires_grad_(False)


def prepare(ours: nn.Module) -> nn.Module:
    return pack(ours) if can_pack() else ours.to(memory_format=torch.channels_last)


def calls(part: str, ours: nn.Module, theirs: nn.Module, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 4, 64, 64, generator=generator), torch.randn(2, 77, 768, generator=generator)
    if part == "vae":
        return {"ours": lambda: ours.decode(x), "diffusers": lambda: theirs.decode(x).sample}
    x, context, t = x.to(dtype), context.to(dtype), torch.tensor([501])
    both = torch.cat([x, x]), torch.cat([t, t])
    return {"ours": lambda: ours(x, t, context), "diffusers": lambda: theirs(*both, context).sample}


def race(title: str, runs: dict[str, Callable[[], Tensor]], pairs: int) -> None:
    """Run the contestants in turn, and tell the ratio of the first one's medians to those of the second."""
    answers = {name: run().float() for name, run in runs.items()}  # and everybody is warm
    times = {name: [] for name in runs}
    for _ in range(pairs):
        for name, run in runs.items():
            start = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    medians = {
        name: [statistics.median(column) for column in zip(*taken, strict=True)] for name, taken in times.items()
    }
    for name, (clock, processor) in medians.items():
        print(f"{title}  {name:12} {clock:6.2f} s, {processor:6.2f} s of the processor", flush=True)
    one, other = medians.values()
    apart = ((a := list(answers.values()))[0] - a[1]).norm() / a[1].norm()
    print(f"{title}  ratio of medians of {pairs}: {one[0] / other[0]:.3f}, of the processor {one[1] / other[1]:.3f}")
    print(f"{title}  answers apart by {apart:.1e} of their size", flush=True)
    if not apart < APART[title]:
        raise SystemExit(f"{title}: the answers do not agree")


def memory(line: str) -> float:
    """A line of the kernel's account of this process, MiB."""
    return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0]) / 1024


def tell_peak(part: str, library: str, dtype: torch.dtype) -> None:
    """Print the peak memory of a call, beyond what is there before it; what the weights are makes no difference."""
    ours, theirs = networks(part, None, lambda network: [p.data.fill_(0.001) for p in network.parameters()])
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    if library == "ours":
        prepare(ours)
        theirs = None
    else:
        ours = None
    with torch.inference_mode():
        run = calls(part, ours, theirs, dtype)[library]
        run()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = memory("VmRSS")
        run()
    print(memory("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has = list(DTYPES) if cpu_has_bf16() else ["fp32"]
    parser.add_argument("--part", nargs="+", choices=CLASSES, default=list(CLASSES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=has, help="of the UNet; the VAE's is fp32")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--weights", type=Path, help="a .safetensors file of full size (default: random numbers)")
    parser.add_argument("--without-memory", action="store_true")
    parser.add_argument("--tell-peak", choices=("ours", "diffusers"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tell_peak:
        return tell_peak(*options.part, options.tell_peak, DTYPES[options.dtype[0]])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    with torch.inference_mode():
        for part in options.part:
            dtypes = options.dtype if part == "unet" else ["fp32"]
            runs = {}
            for name in dtypes:
                ours, theirs = networks(part, options.weights, randomize)
                dtype = DTYPES[name]
                runs[name] = calls(part, prepare(ours.to(dtype)), theirs.to(dtype), dtype)
                race(f"{part} {name}", runs[name], options.pairs)
                del runs[name]["diffusers"], theirs
            if len(dtypes) > 1:
                race("unet bf16/fp32", {f"ours {name}": runs[name]["ours"] for name in ("bf16", "fp32")}, options.pairs)
            runs.clear()
            if sys.platform == "linux" and not options.without_memory:
                # what is freed goes back to the system at once: else what the allocator keeps decides
                environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
                for name in dtypes:
                    peaks = []
                    for library in ("ours", "diffusers"):
                        told = ["--part", part, "--dtype", name, "--tell-peak", library]
                        command = [sys.executable, __file__, *told]
                        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
                        peaks.append(float(out))
                    ratio = f"{peaks[0] / peaks[1]:.2f}"
                    print(
                        f"{part} {name}  peak beyond the weights: {peaks[0]:.0f} and {peaks[1]:.0f} MiB, ratio {ratio}"
                    )


if __name__ == "__main__":
    main()
