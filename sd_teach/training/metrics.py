"""How good is the miniature? `python -m sd_teach.training.metrics` prints it; `--json` for machines.

vae_psnr_db            mean PSNR over pictures kept from the VAE's training, at the model's size, range [0, 1], clamped
recognition_seen       "a {subject} on a {colour} background": is the nearest of all subjects the one asked for?
recognition_held_out   the same for pairs of subject and colour that training never saw
background             over both: is the named colour the one nearest to the mean of the corners?
synonyms               as recognition_seen, by a word that no caption ever had ("kitten" for cat)
style                  "a flat icon of a {subject} on a ...": which style of that subject is nearest, of the four?
style_flat ...         of these, those that asked for this style
style_held_out         the same as style for pairs of subject and style that training never saw
subject_colour         "a purple {subject} on a ...": which colour of that subject is nearest, of nine with its own?
subject_colour_held_out  the same for pairs of subject and colour that training never saw
place                  small, on the left, on the right, two of them, or none of these: which is nearest?
pair                   "a {subject} and a {subject} on a ...": are both recognised, each on its side?

Nearest: smallest mean squared error at 32 x 32, over both flips and shifts of up to 2 pixels, to the renderings of
`assets/emoji/subjects.png` on the named background. All runs with the command line's defaults.
"""

import argparse
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from sd_teach.ddim import ddim_sample
from sd_teach.diffusion import LatentDiffusion
from sd_teach.guidance import GuidedModel
from sd_teach.noise import draw_noise, image_generators, initial_noise
from sd_teach.pipeline import StableDiffusion, to_images
from sd_teach.training import data, drawings, scenes
from sd_teach.training.drawings import STYLES
from sd_teach.training.loop import command
from sd_teach.vae import AutoencoderKL

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


@lru_cache
def subject_sheet() -> Tensor:
    """uint8 [4 styles, subjects, 4, 32, 32], premultiplied: the subjects in the order of captions.csv."""
    sheet = torch.frombuffer(
        bytearray(Image.open(data.EMOJI / "subjects.png").convert("RGBa").tobytes()), dtype=torch.uint8
    )
    return rearrange(sheet.view(len(STYLES), -1, SIDE, data.SHEET_COLUMNS, SIDE, 4), "s y h x w c -> s (y x) c h w")[
        :, : len(data.subjects())
    ]


def nearest(pictures: Tensor, candidates: Tensor) -> Tensor:
    """Index of the candidate each picture is nearest to, [n]; shifts of up to 2 pixels of 32 are free.

    pictures: [n, 3, h, w] in [-1, 1]. candidates: [k, variants, 3, 32, 32], the same for all of them, or
    [n, k, variants, 3, 32, 32]; the nearest variant counts.
    """
    shared = candidates.dim() == 5
    variants = candidates.shape[-4]
    padded = F.pad(candidates.flatten(0, -4), (SHIFT,) * 4, mode="replicate")
    small = F.interpolate(pictures.clamp(-1, 1), (SIDE, SIDE), mode="area").flatten(1)
    best = torch.tensor(torch.inf)
    for y in range(2 * SHIFT + 1):
        for x in range(2 * SHIFT + 1):
            shifted = padded[:, :, y : y + SIDE, x : x + SIDE].flatten(1)
            if shared:
                distance = torch.cdist(small, shifted)
            else:
                distance = (shifted.view(len(small), -1, shifted.shape[1]) - small[:, None]).norm(dim=-1)
            best = torch.minimum(best, distance)
    return best.view(len(small), -1, variants).amin(-1).argmin(1)


def on_colour(rgba: Tensor, colour: int) -> Tensor:
    """uint8 [k, 4, h, w], premultiplied -> [k, 2, 3, h, w] in [-1, 1]: as it is and mirrored."""
    pictures = data.on_background(rgba, COLOURS[colour][None, :, None, None])
    return torch.stack([pictures, pictures.flip(-1)], dim=1)


def nearest_subject(pictures: Tensor, colour: int) -> Tensor:
    """Index of the subject each picture [n, 3, h, w] on that colour of COLOURS is nearest to, [n]."""
    return nearest(pictures, on_colour(subject_sheet()[0], colour))


def tints(subject: int) -> Tensor:
    """uint8 [9, 4, 32, 32]: the subject in each of the tints, and as it is."""
    rgba = subject_sheet()[0, subject, None]
    tinted = drawings.tint(rgba.expand(len(scenes.TINTS), -1, -1, -1), COLOURS[list(scenes.TINTS)])
    return torch.cat([tinted, rgba])


def layouts(subject: int, colour: int) -> Tensor:
    """[5, 4, 3, 32, 32]: whole, small, left, right, two; with every copy as it is or mirrored."""
    rgba = subject_sheet()[0, subject, None]
    whole = on_colour(rgba, colour)[0]
    half = on_colour(F.interpolate(rgba.float(), (SIDE // 2, SIDE // 2), mode="area"), colour)[0]
    empty = COLOURS[colour][:, None, None].expand(3, SIDE, SIDE) / 127.5 - 1
    rows = [whole[[0, 1, 0, 1]]]
    for xs in ((SIDE // 4,), (0,), (SIDE // 2,), (0, SIDE // 2)):
        pictures = empty.repeat(4, 1, 1, 1)
        for copy, x in enumerate(xs):
            turns = [i >> copy & 1 for i in range(4)]
            pictures[:, :, SIDE // 4 : 3 * SIDE // 4, x : x + SIDE // 2] = half[turns]
        rows.append(pictures)
    return torch.stack(rows)


def nearest_colour(pictures: Tensor) -> Tensor:
    """Index of the named colour nearest to the mean of each picture's four corners, [n]."""
    s = pictures.shape[-1] // 16
    corners = torch.cat(
        [pictures[:, :, y, x] for y in (slice(s), slice(-s, None)) for x in (slice(s), slice(-s, None))], -1
    )
    return torch.cdist((corners.clamp(-1, 1).mean((2, 3)) + 1) * 127.5, COLOURS).argmin(1)


@torch.inference_mode()
def pictures_of(model: LatentDiffusion, prompts: list[str], seeds: list[int], scale: float | None = None) -> Tensor:
    """One picture for each prompt with its own seed, by the model's defaults, in one batch: [n, 3, h, w]."""
    config, defaults = model.config, model.config.defaults
    device = next(model.parameters()).device
    generators = [image_generators(seed)[0] for seed in seeds]
    x_T = initial_noise(generators, defaults.image_size, defaults.image_size, downsampling=config.vae.downsampling)
    cond, uncond = model.get_learned_conditioning(prompts), model.get_learned_conditioning([""] * len(prompts))
    scale = defaults.guidance_scale if scale is None else scale
    eps_model = GuidedModel(model.apply_model, cond, uncond, scale, defaults.guidance_until)

    def noise(x: Tensor) -> Tensor:
        return draw_noise(generators, x.shape[1:]).to(device)

    *_, last = ddim_sample(eps_model, x_T.to(device), model.schedule, defaults.steps, defaults.eta, noise)
    return model.decode_first_stage(last.x_prev).float().cpu()


def drawn(model: LatentDiffusion, prompts: list[str], seed: int, batch: int = 16) -> Tensor:
    """A picture for each prompt, its seed 100,000 x `seed` plus its number: [n, 3, h, w]."""
    seeds = [seed * 100_000 + i for i in range(len(prompts))]
    chunks = range(0, len(prompts), batch)
    return torch.cat(
        [pictures_of(model, prompts[i : i + batch], seeds[i : i + batch]) for i in tqdm(chunks, leave=False)]
    )


def by_colour(judge: Callable[[Tensor, int], Tensor], pictures: Tensor, colours: list[int]) -> Tensor:
    """judge(pictures, colour) of all pictures, called once for each background: [n]."""
    found, asked = torch.empty(len(pictures), dtype=torch.long), torch.tensor(colours)
    for colour in set(colours):
        found[asked == colour] = judge(pictures[asked == colour], colour)
    return found


def recognition(
    model: LatentDiffusion, prompts: list[str], subjects: list[int], colours: list[int], seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the prompts and compare: (subject right [n], background right [n], pictures [n, 3, h, w])."""
    pictures = drawn(model, prompts, seed)
    found = by_colour(nearest_subject, pictures, colours)
    return found == torch.tensor(subjects), nearest_colour(pictures) == torch.tensor(colours), pictures


def synonyms(turn: int, count: int | None = None) -> tuple[list[str], list[int], list[int]]:
    """A prompt for every synonym (or `count` of them, evenly spread), as `pairs` gives them."""
    words = [(subject, word) for subject in data.subjects() for word in subject.synonyms]
    if count and count < len(words):
        words = [words[i * len(words) // count] for i in range(count)]
    colours = [(5 * turn + 7 * s.index) % len(COLOURS) for s, _ in words]
    prompts = [data.caption(w, s.article, COLOUR_NAMES[c]) for (s, w), c in zip(words, colours, strict=True)]
    return prompts, [s.index for s, _ in words], colours


def language(part: str, turn: int, count: int | None = None) -> list[list[int]]:
    """Scenes that ask for one part of the language, a subject each (or `count` of them, evenly spread).

    part: a name of PARTS; those that end in "_held_out" have subjects with a held-out pair only. turn: another turn,
    another style, colour, place or partner.
    """
    n, chosen = len(data.subjects()), []
    for subject in data.subjects():
        s = subject.index
        row = [s, scenes.NONE, 0, scenes.NONE, scenes.NONE, 0, scenes.WHOLE, 0]
        backgrounds = [c for c in range(len(COLOURS)) if not subject.is_held_out(c)]
        kind = part.removesuffix("_held_out")
        places = range(scenes.PAIR if subject.article else scenes.TWO)  # no "two grapes"
        column, values = {
            "style": (scenes.STYLE, range(len(STYLES))),
            "subject_colour": (scenes.TINT, scenes.TINTS),
            "place": (
                scenes.LAYOUT,
                places,
            ),
            "pair": (scenes.OTHER, [(s + 37 + 101 * turn) % n]),
        }[kind]
        if kind in ("style", "subject_colour"):
            held_kind, held = ("style" if kind == "style" else "tint"), part.endswith("_held_out")
            values = [v for v in values if bool(scenes.held_out(held_kind, s, v)) == held]
        if not values:
            continue
        row[column] = values[(turn + s // 2) % len(values)]
        if part == "pair":
            row[scenes.LAYOUT] = scenes.PAIR
            backgrounds = [c for c in backgrounds if not data.subjects()[row[scenes.OTHER]].is_held_out(c)]
        backgrounds = [c for c in backgrounds if c != row[scenes.TINT]]
        row[scenes.BACKGROUND] = backgrounds[(5 * turn + 7 * s) % len(backgrounds)]
        chosen.append(row)
    return [chosen[i * len(chosen) // count] for i in range(count)] if count and count < len(chosen) else chosen


PARTS = ("style", "style_held_out", "subject_colour", "subject_colour_held_out", "place", "pair")


def prompt(scene: list[int]) -> str:
    """The scene in its plainest words."""
    names = tuple(data.subjects()[scene[who]].name for who in (scenes.SUBJECT, scenes.OTHER))
    plain = scene[scenes.TINT] == scenes.NONE and scene[scenes.LAYOUT] == scenes.WHOLE
    frame = {"3d": "a 3d render of {}" if plain else "{}", "pixel": "pixel art of {}"}.get(STYLES[scene[scenes.STYLE]])
    return scenes.sentence(scene, names, frame=frame or scenes.FRAMES[STYLES[scene[scenes.STYLE]]][0])


def judged(part: str, wanted: list[list[int]], pictures: Tensor) -> Tensor:
    """Whether each picture [n, 3, h, w] shows what its scene asks for in this part of the language: bool [n]."""
    rows = torch.tensor(wanted)
    colours = rows[:, scenes.BACKGROUND].tolist()
    if part == "pair":
        s = pictures.shape[-1]
        sides = [pictures[:, :, s // 4 : 3 * s // 4, x : x + s // 2] for x in (0, s // 2)]
        found = [by_colour(nearest_subject, side, colours) for side in sides]
        return (found[0] == rows[:, scenes.SUBJECT]) & (found[1] == rows[:, scenes.OTHER])
    candidates, right = [], []
    for scene in wanted:
        subject, colour = scene[scenes.SUBJECT], scene[scenes.BACKGROUND]
        if part == "place":
            candidates.append(layouts(subject, colour))
            right.append(scene[scenes.LAYOUT])
        elif part.startswith("style"):
            candidates.append(on_colour(subject_sheet()[:, subject], colour))
            right.append(scene[scenes.STYLE])
        else:
            candidates.append(on_colour(tints(subject), colour))
            right.append(scene[scenes.TINT] - scenes.TINTS.start)
    return nearest(pictures, torch.stack(candidates)) == torch.tensor(right)


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


def vae_psnr(vae: AutoencoderKL, size: int) -> float:
    """Mean PSNR in dB over the pictures kept from the VAE's training."""
    pictures, device = kept_pictures(size), next(vae.parameters()).device
    with torch.inference_mode():
        decoded = [vae.decode(vae.encode(batch.to(device)).mode()).cpu() for batch in pictures.split(8)]
    return psnr(torch.cat(decoded), pictures).mean().item()


def hits(model: LatentDiffusion, count: int | None, seed: int) -> dict[str, Tensor]:
    """For each fraction of the module's docstring: which of one seed's prompts it was right for, bool [n]."""
    seen, seen_background, _ = recognition(model, *pairs(False, seed, count), seed)
    held_out, held_out_background, _ = recognition(model, *pairs(True, seed, count), seed)
    right = {
        "recognition_seen": seen,
        "recognition_held_out": held_out,
        "background": torch.cat([seen_background, held_out_background]),
        "synonyms": recognition(model, *synonyms(seed, count), seed)[0],
    }
    for part in PARTS:
        wanted = language(part, seed, count)
        right[part] = judged(part, wanted, drawn(model, [prompt(scene) for scene in wanted], seed))
        if part == "style":
            asked = torch.tensor(wanted)[:, scenes.STYLE]
            right |= {f"style_{style}": right[part][asked == i] for i, style in enumerate(STYLES)}
    return right


def measure(model: LatentDiffusion, count: int | None, seeds: int) -> dict[str, float]:
    """All figures of the module's docstring. count: prompts a seed, None for one for each subject."""
    return summary(model, count, [hits(model, count, seed) for seed in range(seeds)])


def summary(model: LatentDiffusion, count: int | None, runs: list[dict[str, Tensor]]) -> dict[str, float]:
    """The figures from what `hits` found with each seed."""
    right = {name: torch.cat([run[name] for run in runs]).float() for name in runs[0]}
    fractions = {name: found.mean().item() for name, found in right.items() if len(found)}
    return {
        "vae_psnr_db": round(vae_psnr(model.first_stage_model, model.config.defaults.image_size), 2),
        **{name: round(value, 4) for name, value in fractions.items()},
        "subjects": len(data.subjects()),
        "prompts": count or len(data.subjects()),
        "seeds": len(runs),
    }


def contact_sheet(pictures: Tensor, columns: int) -> Image.Image:
    """[n, 3, h, w] in rows of `columns`, edge to edge."""
    rows = [torch.cat(list(pictures[i : i + columns]), dim=2) for i in range(0, len(pictures), columns)]
    rows[-1] = F.pad(rows[-1], (0, rows[0].shape[2] - rows[-1].shape[2]), value=1.0)
    return to_images(torch.cat(rows, dim=1)[None])[0]


@command
def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="tiny", help="tiny, tiny-256 or a model folder (default: tiny)")
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
