"""Where the time of the first command goes: `python tests/benchmarks/txt2img.py`, on an idle machine.

First the command as a student types it, from process start to file, then its phases in this process.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

PROMPT = "a cat"
MIB = 1024 if sys.platform == "linux" else 1024**2  # ru_maxrss counts KiB on Linux, bytes on macOS


def command(*arguments: str) -> float:
    """Wall-clock seconds of `python -m sd_teach ...`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sd_teach", *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.png"
        runs = [command(PROMPT, "--out", str(out)) for _ in range(3)]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / MIB
        print(f'python -m sd_teach "{PROMPT}"  best of 3: {min(runs):.2f} s, peak memory {peak:.0f} MiB')
        print(f"python -m sd_teach --help   best of 3: {min(command('--help') for _ in range(3)):.2f} s\n")

        phases, last = [], time.perf_counter()

        def done(phase: str) -> None:
            nonlocal last
            now = time.perf_counter()
            phases.append((phase, now - last))
            last = now

        import torch

        done("import torch")
        from sd_teach.ddim import ddim_sample
        from sd_teach.guidance import GuidedModel
        from sd_teach.noise import image_generators, initial_noise
        from sd_teach.pipeline import StableDiffusion, to_images

        done("import sd_teach (transformers)")
        model = StableDiffusion.from_pretrained("tiny").model
        done("load")
        defaults = model.config.defaults
        with torch.inference_mode():
            cond, uncond = model.get_learned_conditioning([PROMPT, ""]).chunk(2)
            done("text")
            x_T = initial_noise(image_generators(0), defaults.image_size, defaults.image_size)
            eps_model = GuidedModel(model.apply_model, cond, uncond, defaults.guidance_scale, defaults.guidance_until)
            times, guided = [last], 0
            for state in ddim_sample(eps_model, x_T, model.schedule, defaults.steps):
                times.append(time.perf_counter())
                guided += state.t >= defaults.guidance_until
                latent = state.x_prev
            done(f"{defaults.steps} steps")
            pictures = model.decode_first_stage(latent)
            done("decode")
        to_images(pictures)[0].save(out)
        done("save")

        total = sum(seconds for _, seconds in phases)
        for phase, seconds in phases:
            print(f"{phase:32} {seconds:7.3f} s  {100 * seconds / total:5.1f} %")
        print(f"{'together':32} {total:7.3f} s")
        lengths = [b - a for a, b in pairwise(times)]
        for predictions, some in (("two predictions", lengths[:guided]), ("one", lengths[guided:])):
            print(f"one step ({predictions}): median of {len(some)} {1000 * statistics.median(some):.1f} ms")


if __name__ == "__main__":
    main()
