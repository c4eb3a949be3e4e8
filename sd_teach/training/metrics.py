"""How good is the miniature? `python -m sd_teach.training.metrics` prints it; `--json` for machines.

vae_psnr_db            mean over pictures kept from the VAE's training of their PSNR, 128 x 128, range [0, 1], clamped
recognition_seen       "a {subject} on a {colour} background": is the nearest of all subjects the one asked for?
recognition_held_out   the same for pairs of subject and colour that training never saw
background             over both: is the named colour the one nearest to the mean of the corners?
synonyms               as recognition_seen, by a word that no caption ever had ("kitten" for cat)

Nearest: smallest mean squared error at 32 x 32, over both flips and shifts of up to 2 pixels, to the subjects of
`assets/emoji/subjects.png` on the named colour. All runs with the command line's default steps and scale.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from sd_teach.ddim import ddim_sample
from sd_teach.diffusion import LatentDiffusion
from sd_teach.guidance import GuidedModel
from sd_teach.noise import image_generators, initial_noise
from sd_teach.pipeline import StableDiffusion, to_images
from sd_teach.training import data

COLOURS = torch.tensor(list(data.COLOURS.values()), dtype=torch.float32)  # [colours, 3], 0..255
COLOUR_NAMES = list(data.COLOURS)
SIDE = data.SHEET_SIDE  # pixels at which pictures are compared
SHIFT = SIDE // 16


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB; a, b: [n, 3, h, w] in [-1, 1], clamped here."""
    error = ((a.clamp(-1, 1) - b.clamp(-1, 1)) / 2).square().mean(dim=(1, 2, 3))
    return -10.0 * error.log10()


def kept_pictures(size: int) -> Tensor:
    """[n, 3, size, size]: pictures the VAE never trains on, each on the next of the named colours."""
    rgba = data.load_rgba(
        [path.stem for path in sorted((data.EMOJI / "kept").glob("*.webp"))], size, data.EMOJI / "kept"
    )
    return data.on_background(rgba, COLOURS[torch.arange(len(rgba)) % len(COLOURS)][:, :, None, None])


def subject_sheet() -> Tensor:
    """uint8 [subjects, 4, 32, 32], premultiplied: the subjects in the order of captions.csv."""
    sheet = torch.frombuffer(
        bytearray(Image.open(data.EMOJI / "subjects.png").convert("RGBa").tobytes()), dtype=torch.uint8
    )
    tiles = sheet.view(-1, SIDE, data.SHEET_COLUMNS, SIDE, 4).permute(0, 2, 4, 1, 3).flatten(0, 1)
    return tiles[: len(data.subjects())]


def nearest_subject(pictures: Tensor, colour: int) -> Tensor:
    """Index of the subject each picture [n, 3, h, w] on that colour of COLOURS is nearest to, [n]."""
    templates = data.on_background(subject_sheet(), COLOURS[colour][None, :, None, None])
    templates = torch.stack([templates, templates.flip(-1)])  # [flips, subjects, 3, 32, 32]
    padded = F.pad(templates.flatten(0, 1), (SHIFT,) * 4, mode="replicate")
    small = F.interpolate(pictures.clamp(-1, 1), (SIDE, SIDE), mode="area").flatten(1)
    best = torch.full((len(pictures), len(data.subjects())), torch.inf)
    for y in range(2 * SHIFT + 1):
        for x in range(2 * SHIFT + 1):
            shifted = padded[:, :, y : y + SIDE, x : x + SIDE].flatten(1)
            distance = torch.cdist(small, shifted).view(len(pictures), 2, -1).amin(1)
            best = torch.minimum(best, distance)
    return best.argmin(1)


def nearest_colour(pictures: Tensor) -> Tensor:
    """Index of the named colour nearest to the mean of each picture's four corners, [n]."""
    s = pictures.shape[-1] // 16
    corners = torch.cat(
        [pictures[:, :, y, x] for y in (slice(s), slice(-s, None)) for x in (slice(s), slice(-s, None))], -1
    )
    return torch.cdist((corners.clamp(-1, 1).mean((2, 3)) + 1) * 127.5, COLOURS).argmin(1)


@torch.inference_mode()
def pictures_of(model: LatentDiffusion, prompts: list[str], seeds: list[int], scale: float | None = None) -> Tensor:
    """One picture for each prompt with its own seed, at the default size and steps, in one batch: [n, 3, h, w]."""
    config, defaults = model.config, model.config.defaults
    device = next(model.parameters()).device
    generators = [image_generators(seed)[0] for seed in seeds]
    x_T = initial_noise(generators, defaults.image_size, defaults.image_size, downsampling=config.vae.downsampling)
    cond, uncond = model.get_learned_conditioning(prompts), model.get_learned_conditioning([""] * len(prompts))
    eps_model = GuidedModel(model.apply_model, cond, uncond, defaults.guidance_scale if scale is None else scale)
    *_, last = ddim_sample(eps_model, x_T.to(device), model.schedule, defaults.steps)
    return model.decode_first_stage(last.x_prev).float().cpu()


def recognition(
    model: LatentDiffusion, prompts: list[str], subjects: list[int], colours: list[int], seed: int, batch: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the prompts and compare: (subject right [n], background right [n], pictures [n, 3, h, w])."""
    chunks = range(0, len(prompts), batch)
    seeds = [seed * 100_000 + i for i in range(len(prompts))]
    drawn = [pictures_of(model, prompts[i : i + batch], seeds[i : i + batch]) for i in tqdm(chunks, leave=False)]
    pictures, wanted, asked = torch.cat(drawn), torch.tensor(subjects), torch.tensor(colours)
    found = torch.empty_like(wanted)
    for colour in set(colours):
        chosen = asked == colour
        found[chosen] = nearest_subject(pictures[chosen], colour)
    return found == wanted, nearest_colour(pictures) == asked, pictures


def pairs(held_out: bool, turn: int, count: int | None = None) -> tuple[list[str], list[int], list[int]]:
    """A prompt for every subject (or `count` of them, evenly spread): (prompts, subject indices, colour indices).

    turn: which of the subject's seen (or held-out) colours; another turn, another colour.
    """
    subjects = data.subjects()
    chosen = [subjects[i * len(subjects) // count] for i in range(count)] if count else subjects
    prompts, indices, colours = [], [], []
    for subject in chosen:
        fitting = [c for c in range(len(COLOURS)) if subject.is_held_out(c) == held_out]
        colour = fitting[(5 * turn + 7 * subject.index) % len(fitting)]
        prompts.append(data.caption(subject.name, subject.article, COLOUR_NAMES[colour]))
        indices.append(subject.index)
        colours.append(colour)
    return prompts, indices, colours


def vae_psnr(model: LatentDiffusion, size: int = 128) -> float:
    """Mean PSNR in dB over the pictures kept from the VAE's training."""
    pictures = kept_pictures(size)
    with torch.inference_mode():
        decoded = [model.first_stage_model.decode(model.first_stage_model.encode(b).mode()) for b in pictures.split(8)]
    return psnr(torch.cat(decoded), pictures).mean().item()


def measure(model: LatentDiffusion, count: int | None, seeds: int) -> dict[str, float]:
    """All figures of the module's docstring. count: prompts a seed, None for one for each subject."""
    hits: dict[str, list[Tensor]] = {
        "recognition_seen": [],
        "recognition_held_out": [],
        "background": [],
        "synonyms": [],
    }
    for seed in range(seeds):
        for held_out, name in ((False, "recognition_seen"), (True, "recognition_held_out")):
            right, background, _ = recognition(model, *pairs(held_out, seed, count), seed)
            hits[name].append(right)
            hits["background"].append(background)
        words = [(s, word) for s in data.subjects() for word in s.synonyms][: count or None]
        colours = [(5 * seed + 7 * s.index) % len(COLOURS) for s, _ in words]
        prompts = [data.caption(w, s.article, COLOUR_NAMES[c]) for (s, w), c in zip(words, colours, strict=True)]
        hits["synonyms"].append(recognition(model, prompts, [s.index for s, _ in words], colours, seed)[0])
    return {
        "vae_psnr_db": round(vae_psnr(model), 2),
        **{name: round(torch.cat(right).float().mean().item(), 4) for name, right in hits.items()},
        "subjects": len(data.subjects()),
        "prompts": count or len(data.subjects()),
        "seeds": seeds,
    }


def contact_sheet(pictures: Tensor, columns: int) -> Image.Image:
    """[n, 3, h, w] in rows of `columns`, edge to edge."""
    rows = [torch.cat(list(pictures[i : i + columns]), dim=2) for i in range(0, len(pictures), columns)]
    rows[-1] = F.pad(rows[-1], (0, rows[0].shape[2] - rows[-1].shape[2]), value=1.0)
    return to_images(torch.cat(rows, dim=1)[None])[0]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="tiny", help="tiny or a model folder (default: tiny)")
    options.add_argument("--prompts", type=int, help="prompts a seed (default: one for each subject)")
    options.add_argument("--seeds", type=int, default=3, help="how often everything is drawn (default: 3)")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options.add_argument("--sheet", type=Path, help="also write a contact sheet of the first prompts to this PNG")
    options = options.parse_args()
    model = StableDiffusion.from_pretrained(options.model).model
    if options.sheet:
        prompts, subjects, colours = pairs(False, 0, 80)
        contact_sheet(recognition(model, prompts, subjects, colours, 0)[2], 10).save(options.sheet)
    figures = measure(model, options.prompts, options.seeds)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
