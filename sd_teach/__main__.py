"""The command line: `python -m sd_teach "a cat"` writes a picture, prints its path, and shows progress on stderr."""

import argparse
import contextlib
import os
import random
import sys
import warnings
from functools import partial
from pathlib import Path

EPILOG = """\
commands, instead of a prompt, each with a --help of its own:
  download sd-v1-5        fetch the real weights (4.3 GB)
  verify MODEL            compare a file or folder with the model it should be
  export --to diffusers   write a folder that diffusers opens
  course FOLDER           a copy of the notebooks to work in, outputs cleared

examples:
  python -m sd_teach "a cat"
  python -m sd_teach "a pizza on a blue background" --seed 7 --n 3 --out pizza.png
  python -m sd_teach "a rocket" --negative "a blue background" --scale 5 --steps 50
  python -m sd_teach "a castle at night" --model tiny-256
  python -m sd_teach --from-png pizza.png --seed 8
  python -m sd_teach "a fox" --init-image photo.jpg --strength 0.6
  python -m sd_teach "a fox" --init-image photo.jpg --mask white_where_to_draw.png --paste-back
"""


MODELS = "tiny, tiny-256, sd-v1-5, a model folder, or a .safetensors or .ckpt file"
SAMPLERS = ("ddim", "euler", "dpm-solver++")  # as in samplers.py, which would take seconds to import


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line instead of the usage; exit code 2."""
        self.exit(2, f"sd-teach: {message} (--help lists the options)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sd-teach",
        description="Make a picture of a prompt with Stable Diffusion: the bundled miniature, or the real weights.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("prompt", nargs="?", help="what to draw; may be empty")
    parser.add_argument("--negative", default="", metavar="TEXT", help="what to move away from")
    parser.add_argument("--scale", type=float, metavar="S", help="guidance scale, 0 or more (default: the model's)")
    parser.add_argument(
        "--until",
        type=int,
        metavar="T",
        help="time step below which the scale is at most 1, 0 to 1000 (default: the model's)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="1 to 1000 (default: the model's)")
    parser.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="ddim",
        help="ddim, euler or dpm-solver++ (default: ddim)",
        metavar="NAME",
    )
    parser.add_argument(
        "--eta", type=float, metavar="E", help="fresh noise in each step, 0 DDIM to 1 DDPM (default: the model's)"
    )
    parser.add_argument("--seed", type=int, default=12345, help="-1: random, and printed (default: %(default)s)")
    parser.add_argument("--n", type=int, default=1, help="number of images, of seeds seed, seed + 1, ... (default: 1)")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="default: what the model was trained at")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="default: what the model was trained at")
    parser.add_argument("--init-image", type=Path, metavar="FILE", help="a picture to draw over; its middle is used")
    parser.add_argument(
        "--strength", type=float, metavar="S", help="how far to go from it, up to 1 (default: 0.75, with --mask 1)"
    )
    parser.add_argument("--mask", type=Path, metavar="FILE", help="of its size; only where this is white is drawn anew")
    parser.add_argument(
        "--paste-back", action="store_true", default=None, help="keep the picture's own pixels where the mask is black"
    )
    parser.add_argument("--model", default="tiny", help=f"{MODELS} (default: tiny)")
    parser.add_argument("--device", help="cpu, cuda or mps (default: the fastest present)")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        help="of the UNet and text encoder (default: bf16 for a large model on a CPU that has it, else fp32)",
    )
    parser.add_argument(
        "--from-png", type=Path, metavar="FILE", help="repeat the run that made a picture; other options change it"
    )
    parser.add_argument("--out", type=Path, default=Path("out.png"), help="PNG file to write (default: out.png)")
    parser.set_defaults(model_sha256=None)  # a picture tells it
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 with one clear line on stderr for bad input."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = _parser()
    try:
        if arguments and arguments[0] in COMMANDS:
            return COMMANDS[arguments[0]](arguments[1:])
        options = parser.parse_args(arguments)
        outputs = _outputs(options.out, options.n)
        if options.from_png:
            given = options
            parser.set_defaults(**_settings(options.from_png))
            options = parser.parse_args(arguments)
            if options.model != parser.get_default("model"):
                options.model_sha256 = None  # other weights are what was asked for
            if options.sampler != parser.get_default("sampler"):
                options.eta = given.eta  # a picture's eta is that of its sampler
        if options.prompt is None:
            parser.error("a prompt is needed: what should be drawn?")
        for option, needed in (("strength", "init_image"), ("mask", "init_image"), ("paste_back", "mask")):
            if getattr(options, option) is not None and getattr(options, needed) is None:
                parser.error(f"--{option} needs --{needed}".replace("_", "-"))
        for option, path in (("--init-image", options.init_image), ("--mask", options.mask)):
            if path and any(out.exists() and path.exists() and out.samefile(path) for out in outputs):
                parser.error(f"{path} is {option} and would be overwritten: give another --out")
        run(options, outputs)
    except ValueError as error:
        parser.error(str(error))
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        parser.error("not enough memory for pictures of this size and number")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace, outputs: list[Path]) -> None:
    """Make the pictures of the options and write them to `outputs`."""
    # heavy imports only now, so that --help and a wrong option answer at once
    import torch
    from PIL.PngImagePlugin import PngInfo
    from tqdm import tqdm

    from sd_teach.checkpoint import model_digest
    from sd_teach.images import read_image
    from sd_teach.pipeline import StableDiffusion

    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    image, mask = (read_image(path) if path else None for path in (options.init_image, options.mask))
    seed = options.seed
    if seed == -1:
        seed = random.randrange(2**32)
        print(f"seed {seed}", file=sys.stderr)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, None: None}
    if options.dtype not in dtypes:  # a picture may tell anything
        raise ValueError(f"there is no dtype {options.dtype!r}: give fp32, bf16 or fp16")
    sd = StableDiffusion.from_pretrained(options.model, options.device, dtypes[options.dtype])
    weights = next(sd.model.model.parameters())
    (dtype,) = [name for name, known in dtypes.items() if known == weights.dtype]
    defaults = sd.model.config.defaults
    settings = {
        "steps": defaults.steps if options.steps is None else options.steps,
        "guidance_scale": defaults.guidance_scale if options.scale is None else options.scale,
        "guidance_until": defaults.guidance_until if options.until is None else options.until,
        "width": defaults.image_size if options.width is None else options.width,
        "height": defaults.image_size if options.height is None else options.height,
        "eta": (defaults.eta if options.sampler == "ddim" else 0.0) if options.eta is None else options.eta,
        "sampler": options.sampler,
    }
    draw, told = sd.text_to_image, {}
    if image:
        usual = 1.0 if mask else 0.75
        settings["strength"] = usual if options.strength is None else options.strength
        draw, told = partial(sd.image_to_image, image), {"init_image": options.init_image}
    if mask:
        draw, told["mask"] = partial(sd.inpaint, image, mask, paste_back=bool(options.paste_back)), options.mask
        told |= {"paste_back": True} if options.paste_back else {}
    bar = None

    def step_done(state) -> None:
        nonlocal bar
        # the bar appears with the first step, so that an error before it stays the only line
        bar = bar or tqdm(
            total=int(settings.get("strength", 1) * settings["steps"]),
            desc=f"denoising on {weights.device} in {dtype}",
            unit="step",
        )
        bar.update()

    try:
        result = draw(options.prompt, options.negative, seed=seed, num_images=options.n, callback=step_done, **settings)
    finally:
        if bar:  # or an error would stand in its line
            bar.close()
    told |= {"prompt": options.prompt, "negative_prompt": options.negative, **settings}
    digest = model_digest(options.model)
    if options.model_sha256 not in (None, digest):
        warnings.warn(f"{options.from_png} was made with other weights than {options.model} has now", stacklevel=2)
    told |= {"dtype": dtype, "model": options.model, "model_sha256": digest}
    for path, image, image_seed in zip(outputs, result.images, result.seeds, strict=True):
        info = PngInfo()
        for key, value in {**told, "seed": image_seed}.items():
            info.add_itxt(key, str(value))
        _write(path, image, info)
        print(path)
    if peak := _peak_memory():
        print(f"peak memory {peak:.2f} GiB", file=sys.stderr)


def _peak_memory() -> float | None:
    """The most memory this process has had, GiB; None where the system does not tell."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    return getrusage(RUSAGE_SELF).ru_maxrss / (1024**3 if sys.platform == "darwin" else 1024**2)


# option of the command line -> key in a picture's text chunks
_TOLD = {"negative": "negative_prompt", "scale": "guidance_scale"} | {
    key: key for key in ("prompt", "steps", "width", "height", "eta", "seed", "model")
}
_TOLD_WHERE_USED = ("sampler", "dtype", "strength", "init_image", "mask", "paste_back", "model_sha256")


def _settings(path: Path) -> dict[str, str]:
    """The options of the run that made a picture, as its text chunks tell them."""
    from sd_teach.images import read_image

    told = read_image(path).info
    if missing := [key for key in _TOLD.values() if key not in told]:
        raise ValueError(f"{path} does not tell how it was made: {missing[0]} is not among its text chunks")
    used = {key: told[key] for key in _TOLD_WHERE_USED if key in told}
    used["until"] = told.get("guidance_until", "0")  # before it could be told, guidance went on to the end
    return {option: told[key] for option, key in _TOLD.items()} | used


def _download(arguments: list[str]) -> int:
    parser = _Parser(prog="sd-teach download", description="Fetch a model's weights, and verify them.")
    parser.add_argument("model", choices=["sd-v1-5"], help="Stable Diffusion v1.5, 4.3 GB")
    parser.parse_args(arguments)
    from sd_teach.download import download_sd_v1_5

    print(download_sd_v1_5())
    return 0


def _verify(arguments: list[str]) -> int:
    parser = _Parser(prog="sd-teach verify", description="Compare names, shapes, schedule and sha256 with the model's.")
    parser.add_argument("model", help=MODELS)
    options = parser.parse_args(arguments)
    from sd_teach.verify import verify

    report = verify(options.model)
    print(report)
    return 0 if report.ok else 1


def _export(arguments: list[str]) -> int:
    parser = _Parser(prog="sd-teach export", description="Write a model for another library.")
    parser.add_argument("folder", type=Path, help="where to; a diffusers folder that is there is replaced")
    parser.add_argument("--to", choices=["diffusers"], required=True, help="the library")
    parser.add_argument("--model", default="tiny", help=f"{MODELS} (default: tiny)")
    options = parser.parse_args(arguments)
    from sd_teach.checkpoint import load_model
    from sd_teach.exchange import export_diffusers

    export_diffusers(load_model(options.model), options.folder)
    print(options.folder)
    return 0


def _course(arguments: list[str]) -> int:
    parser = _Parser(prog="sd-teach course", description="Copy the notebooks, outputs cleared, to work in.")
    parser.add_argument("folder", type=Path, help="where to; made if it is not there")
    options = parser.parse_args(arguments)
    from sd_teach.course import write_course

    print(write_course(options.folder)[0])
    return 0


COMMANDS = {"download": _download, "verify": _verify, "export": _export, "course": _course}


def _outputs(out: Path, n: int) -> list[Path]:
    """x.png, x-1.png, ...: one path an image, known to be writable before any work."""
    if n < 1:
        raise ValueError(f"--n must be at least 1, got {n}")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must be a .png file, got {out}")
    if not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        raise ValueError(f"cannot write {out}: there is no folder {out.parent} that can be written to")
    if len(os.fsencode(out.name)) > 200:  # file systems stop at 255, the temporary name needs some
        raise ValueError(f"cannot write {out}: the name is too long")
    paths = [out if k == 0 else out.with_stem(f"{out.stem}-{k}") for k in range(n)]
    for path in paths:
        if os.path.isdir(path):
            raise ValueError(f"cannot write {path}: it is a folder")
    return paths


def _write(path: Path, image, info) -> None:
    """Under a temporary name first, so that no reader ever sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        image.save(temporary, "PNG", pnginfo=info)
        temporary.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


if __name__ == "__main__":
    sys.exit(main())
