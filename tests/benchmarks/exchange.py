"""Exchange with diffusers at full size: `PYTHONPATH=.:tests python tests/benchmarks/exchange.py`, on Linux.

Random weights in the shape of Stable Diffusion v1.5 go out and come back, and diffusers runs the folder beside us, on
pictures of 64 x 64 pixels: the networks are whole, only the latents are small. Needs 14 GiB of memory and 5 of disk.
"""

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

import torch
from conftest import randomize

from sd_teach.diffusion import LatentDiffusion
from sd_teach.exchange import export_diffusers, import_diffusers
from sd_teach.pipeline import StableDiffusion, to_images

PROMPT, SIDE, SEED, SCALE = "a cat", 64, 12345, 7.5


def memory(line: str) -> float:
    """A line of the kernel's account of this process, GiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) / 1024**2


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Print what the block took: seconds, seconds of the processor, peak memory, and what stays beside mapped files."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start, start_cpu = time.perf_counter(), time.process_time()
    yield
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    times = f"{name:28} {seconds:7.2f} s, {cpu:6.2f} of the processor"
    print(f"{times}; peak {memory('VmHWM'):5.2f} GiB, {memory('RssAnon'):5.2f} stay", flush=True)


def full_size() -> LatentDiffusion:
    """Stable Diffusion v1.5 with random weights."""
    with torch.device("meta"):
        model = LatentDiffusion()
    model.to_empty(device="cpu")
    model.cond_stage_model.transformer["text_model"].embeddings.position_ids.copy_(torch.arange(77))
    randomize(model).eval().requires_grad_(False)
    model.model.diffusion_model.out[2].weight *= 0.1  # keeps a run of random answers in bounds
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps of both runs (default: 20)")
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        with phase("random weights"):
            model = full_size()
        with phase("export_diffusers"):
            export_diffusers(model, folder)
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        print(f"{'weights on disk':28} {size / 1024**3:7.2f} GiB")
        with phase("import_diffusers"):
            back = import_diffusers(folder)
        with phase("byte by byte"):
            a, b = model.state_dict(), back.state_dict()
            equal = a.keys() == b.keys() and all(torch.equal(a[k].view(torch.int32), b[k].view(torch.int32)) for k in a)
        print(f"tensors equal to the bit: {equal}, {len(a)} of them")

        del model, a
        with phase(f"our {steps} steps"):
            sd = StableDiffusion(back)
            ours = sd.text_to_image(PROMPT, steps=steps, guidance_scale=SCALE, seed=SEED, width=SIDE, height=SIDE)
        del sd, back, b
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging

        logging.disable_progress_bar()
        with phase("diffusers opens the folder"):
            pipe = StableDiffusionPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        x_T = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(SEED))
        with phase(f"its {steps} steps"), torch.inference_mode():
            theirs = pipe(
                PROMPT, negative_prompt="", num_inference_steps=steps, guidance_scale=SCALE, height=SIDE, width=SIDE,
                latents=x_T, output_type="latent",
            ).images  # fmt: skip
            decoded = pipe.vae.decode(theirs / pipe.vae.config.scaling_factor).sample
    apart = (ours.latents - theirs).abs().max().item()
    print(f"latents: standard deviation {theirs.std():.2f}, largest difference {apart:.1e}")
    pixels, their_pixels = (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int()
        for image in (ours.images[0], to_images(decoded)[0])
    )
    print(f"pixels: largest difference {(pixels - their_pixels).abs().max()} of 255")


if __name__ == "__main__":
    main()
