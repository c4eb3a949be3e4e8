"""Stable Diffusion v1.5 in full size: `PYTHONPATH=.:tests python tests/benchmarks/full_run.py`, on Linux.

Loads a file of 4.3 GB, random weights unless one is given, as the command line does and as it is, in processes of their
own: seconds of the second load, when the system has the file in its memory, and peak memory over the file's size. Then
draws 512 x 512 pixels by the command line, and tells that process's peak memory. Needs 5 GB of disk, 8 GiB of memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

LOAD = """
import sys, time
from pathlib import Path
import torch
from sd_teach.checkpoint import load_model
from sd_teach.pipeline import StableDiffusion
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
start, processor = time.perf_counter(), time.process_time()
{call}
seconds, processor = time.perf_counter() - start, time.process_time() - processor
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 - before
print(f"{{seconds:6.2f}} s, {{processor:5.2f}} s of the processor, peak {{peak / 1024**3:.2f}} GiB, ", end="")
print(f"{{peak / {size}:.2f}} x the file")
"""
CALLS = {
    "load_model": "load_model({path!r})",
    "from_pretrained fp32": "StableDiffusion.from_pretrained({path!r}, 'cpu', torch.float32)",
    "from_pretrained": "StableDiffusion.from_pretrained({path!r}, 'cpu')",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="?", help="a .safetensors or .ckpt file of Stable Diffusion v1.5")
    parser.add_argument("--steps", type=int, default=20, help="of the run; 0 for none (default: 20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = options.weights
        if not weights:
            from exchange import full_size
            from safetensors.torch import save_file

            weights = Path(folder) / "random.safetensors"
            save_file(full_size().state_dict(), weights)
        for name, call in CALLS.items():
            code = LOAD.format(call=call.format(path=str(weights)), size=weights.stat().st_size)
            for _ in range(2):
                told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
            print(f"{name:24} {told.strip()}", flush=True)
        if options.steps:
            out, start = Path(folder) / "out.png", time.perf_counter()
            told = ["a cat", "--model", str(weights), "--steps", str(options.steps), "--out", str(out)]
            command = subprocess.Popen([sys.executable, "-m", "sd_teach", *told], stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(command.pid, 0)
            if status:
                raise SystemExit("the command failed")
            seconds, peak = time.perf_counter() - start, used.ru_maxrss / 1024**2
            print(f"{'the command':24} {seconds:6.1f} s for {options.steps} steps, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
