"""The miniature's language: scenes as rows of numbers, the captions that name them and the pictures that show them.

A scene is a row of eight integers, in the order of ATTRIBUTES: which subject, which other one beside it (or NONE), the
style, the tint of each (a colour, or NONE for its own colours), the background, the layout, whether the picture is bad
on purpose. `draw` makes scenes, never one of the pairs held out from training; `caption` and `compose` turn them into
words and pixels. `python -m sd_teach.training.scenes` fetches the pictures and writes `assets/emoji/`.
"""

import argparse
import csv
import io
import random
import re
import shutil

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from sd_teach.training import data, drawings
from sd_teach.training.drawings import STYLES
from sd_teach.training.loop import command

ATTRIBUTES = ("subject", "other", "style", "tint", "other_tint", "background", "layout", "bad")
SUBJECT, OTHER, STYLE, TINT, OTHER_TINT, BACKGROUND, LAYOUT, BAD = range(len(ATTRIBUTES))
NONE, ANY = -1, -2  # ANY: what a caption says nothing about

COLOUR_NAMES = list(data.COLOURS)
TINTS = range(COLOUR_NAMES.index("red"), COLOUR_NAMES.index("pink") + 1)  # white, grey, black, brown are no tints
BACKGROUNDS = (*COLOUR_NAMES, "night")
NIGHT = BACKGROUNDS.index("night")
LAYOUTS = ("whole", "small", "left", "right", "two", "pair")
WHOLE, SMALL, LEFT, RIGHT, TWO, PAIR = range(len(LAYOUTS))
SIZE = 128  # pixels of the pictures, unless other ones are asked for

# how much of the scenes each part of the language gets, unless other shares are asked for
KINDS = {"plain": 0.34, "style": 0.42, "tint": 0.10, "layout": 0.06, "pair": 0.02, "mixed": 0.06}
STYLE_SHARES = {"flat": 0.5, "pixel": 0.3, "line": 0.2}  # the first are the hardest to tell from 3D pictures
BAD_SHARE = 0.04

FRAMES = {
    "3d": (
        *["{}"] * 14,
        "a picture of {}",
        "an image of {}",
        "a photo of {}",
        "a photograph of {}",
        "a painting of {}",
        "an emoji of {}",
        "{}, beautiful",
        "a 3d render of {}",
        "a 3d picture of {}",
        "{}, 3d render",
    ),
    "flat": ("a flat icon of {}", "a flat icon of {}", "a flat drawing of {}", "{}, flat icon"),
    "pixel": ("pixel art of {}", "a pixel art picture of {}", "{}, pixel art"),
    "line": ("a line drawing of {}", "a line drawing of {}", "line art of {}", "{}, line drawing"),
}
GOOD_WORDS = ("best quality", "extremely detailed", "high quality", "masterpiece")
BAD_WORDS = ("lowres", "cropped", "worst quality", "low quality", "jpeg artifacts", "blurry", "bad anatomy")


def held_out(kind: str, subject, value):
    """Whether training never sees this subject with that background, tint or style: one pair in ten.

    kind: "background" or "tint" (value: an index of data.COLOURS) or "style" (an index of STYLES; "3d" never is).
    """
    if kind == "background":
        return data.pair_held_out(subject, value) & (value < len(COLOUR_NAMES))
    if kind == "tint":
        return ((subject + 3 * value + 5) % 10 == 0) & (value >= 0)
    return ((subject + 3 * value) % 10 == 4) & (value > 0)


def allowed(scenes: Tensor) -> Tensor:
    """Which scenes [n, 8] training may see, and which can be seen at all: bool [n]."""
    subject, other, style, tint, other_tint, background, layout, _ = scenes.unbind(1)
    singular = torch.tensor([bool(s.article) for s in data.subjects()])
    ok = (tint != background) & (other_tint != background) & (other != subject)
    ok &= (layout != TWO) | singular[subject]
    ok &= (STYLES.index("pixel") != style) | (layout == WHOLE)  # half as large, its squares would be too small
    for who, colour in ((subject, tint), (other, other_tint)):
        there = who != NONE
        ok &= ~(there & held_out("background", who, background))
        ok &= ~(there & held_out("tint", who, colour))
        ok &= ~(there & held_out("style", who, style))
    return ok


def draw(count: int, generator: torch.Generator, kinds: dict[str, float] = KINDS) -> Tensor:
    """`count` scenes [count, 8], a multiple of four: each followed by three near relatives, so that no word is idle.

    The relatives have another subject, another background, and another value of what makes the scene special. kinds:
    names of KINDS, each with how much of the scenes it gets.
    """
    done, n = [], 0
    while n < count:
        first = _draw_freely(count // 4 + 16, generator, kinds)
        fresh = _draw_freely(len(first), generator, kinds)
        subject, background, special = first.clone(), first.clone(), first.clone()
        subject[:, SUBJECT] = fresh[:, SUBJECT]
        background[:, BACKGROUND] = fresh[:, BACKGROUND]
        tinted = (first[:, TINT] != NONE) & torch.isin(first[:, BACKGROUND], torch.tensor(TINTS))
        special[tinted] = special[tinted][:, _swapped(TINT, BACKGROUND)]
        pair = ~tinted & (first[:, LAYOUT] == PAIR)
        special[pair] = special[pair][:, _swapped(SUBJECT, OTHER)][:, _swapped(TINT, OTHER_TINT)]
        sided = ~tinted & ((first[:, LAYOUT] == LEFT) | (first[:, LAYOUT] == RIGHT))
        special[sided, LAYOUT] = LEFT + RIGHT - special[sided, LAYOUT]
        rest = ~(tinted | pair | sided)
        special[rest, STYLE] = torch.where(first[rest, STYLE] > 0, 1 + first[rest, STYLE] % 3, 0)
        special[rest & (first[:, STYLE] == 0), SUBJECT] = _draw_freely(len(first), generator, kinds)[
            rest & (first[:, STYLE] == 0), SUBJECT
        ]
        family = torch.stack([first, subject, background, special], dim=1)
        whole = torch.stack([allowed(member) for member in family.unbind(1)], dim=1).all(1)
        done.append(family[whole].flatten(0, 1))
        n += len(done[-1])
    return torch.cat(done)[:count]


def _swapped(a: int, b: int) -> list[int]:
    order = list(range(len(ATTRIBUTES)))
    order[a], order[b] = b, a
    return order


def _draw_freely(count: int, generator: torch.Generator, kinds: dict[str, float]) -> Tensor:
    def integers(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    def chance(p: float) -> Tensor:
        return torch.rand(count, generator=generator) < p

    n = len(data.subjects())
    shares = torch.tensor([subject.share for subject in data.subjects()])
    weights = torch.tensor([kinds.get(name, 0.0) for name in KINDS])
    kind = torch.multinomial(weights, count, replacement=True, generator=generator)
    is_kind = {name: kind == i for i, name in enumerate(KINDS)}
    scenes = torch.full((count, len(ATTRIBUTES)), NONE)
    scenes[:, SUBJECT] = torch.multinomial(shares, count, replacement=True, generator=generator)
    scenes[:, BACKGROUND] = integers(0, len(BACKGROUNDS))
    style_shares = torch.tensor(list(STYLE_SHARES.values()))
    styles = 1 + torch.multinomial(style_shares, count, replacement=True, generator=generator)
    scenes[:, STYLE] = torch.where(is_kind["style"] | (is_kind["mixed"] & chance(0.7)), styles, 0)
    tinted = is_kind["tint"] | (is_kind["mixed"] & chance(0.7)) | (is_kind["pair"] & chance(0.3))
    scenes[:, TINT] = torch.where(tinted, integers(TINTS.start, TINTS.stop), NONE)
    placed = is_kind["layout"] | (is_kind["mixed"] & chance(0.6))
    scenes[:, LAYOUT] = torch.where(placed, integers(SMALL, PAIR), WHOLE)
    scenes[is_kind["pair"], LAYOUT] = PAIR
    scenes[:, OTHER] = torch.where(is_kind["pair"], integers(0, n), NONE)
    scenes[:, OTHER_TINT] = torch.where(is_kind["pair"] & chance(0.3), integers(TINTS.start, TINTS.stop), NONE)
    scenes[:, BAD] = chance(BAD_SHARE).long()
    return scenes


# --- words ---

IRREGULAR = {
    "mouse": "mice",
    "sheep": "sheep",
    "deer": "deer",
    "fish": "fish",
    "wolf": "wolves",
    "leaf": "leaves",
    "knife": "knives",
    "dice": "dice",
    "snowman": "snowmen",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "jellyfish": "jellyfish",
    "scarf": "scarves",
    "spaghetti": "spaghetti",
    "goose": "geese",
    "moose": "moose",
    "bison": "bison",
    "pufferfish": "pufferfish",
}


def plural(noun: str) -> str:
    """ "cat" -> "cats", "cup of coffee" -> "cups of coffee"."""
    head = re.split(r" (?:of|with|in|and|behind) ", noun)[0]
    rest = noun[len(head) :]
    before, _, last = head.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh", "z")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{before} {last}".strip() + rest


def noun_phrase(noun: str, article: str, *adjectives: str) -> str:
    """("owl", "an", "small", "purple") -> "a small purple owl"; an empty article stays empty."""
    words = " ".join(filter(None, (*adjectives, noun)))
    if article and any(adjectives):
        article = "an" if words[0] in "aeiou" else "a"
    return f"{article} {words}".strip()


def sentence(scene: list[int], nouns: tuple[str, ...], *, background: bool = True, frame: str = "{}") -> str:
    """What a scene [8] is called. nouns: names of the subject and, in a pair, of the other one.

    background: whether to name it. frame: the style's words around the rest, one of FRAMES.
    """
    tints = [COLOUR_NAMES[scene[i]] if scene[i] != NONE else "" for i in (TINT, OTHER_TINT)]
    articles = [data.subjects()[scene[i]].article for i in (SUBJECT, OTHER)]
    if scene[LAYOUT] == TWO:
        text = noun_phrase(plural(nouns[0]), "", "two", tints[0])
    else:
        small = "small" if scene[LAYOUT] == SMALL else ""
        text = noun_phrase(nouns[0], articles[0], small, tints[0])
    if scene[LAYOUT] == PAIR:
        text += f" and {noun_phrase(nouns[1], articles[1], tints[1])}"
    text += {LEFT: " on the left", RIGHT: " on the right"}.get(scene[LAYOUT], "")
    if background and scene[BACKGROUND] == NIGHT:
        text += " at night"
    elif background:
        colour = COLOUR_NAMES[scene[BACKGROUND]]
        text += f" on {'an' if colour[0] in 'aeiou' else 'a'} {colour} background"
    return frame.format(text)


def fitting(names: list[str], subject: data.Subject, tint: int) -> list[str]:
    """Those of a subject's names that go with a tint: a "red car" cannot be purple."""
    if tint == NONE:
        return names
    return [n for n in names if not any(c in n.split() for c in COLOUR_NAMES)] or [subject.name]


def caption(
    scene: list[int], rng: random.Random, near: dict[int, list[str]] | None = None, share: float = 1 / 6
) -> tuple[str, list[int]]:
    """A caption of a scene, drawn at random, and what it says: the scene, with ANY where it says nothing.

    near: for some subjects, words of nearly the same meaning; share: how often they are said.
    """
    says = list(scene)
    if scene[BAD] == 1 and rng.random() < 0.25:
        words = ", ".join(rng.sample(BAD_WORDS, rng.randint(1, len(BAD_WORDS))))
        return words, [ANY] * BAD + [1]
    nouns = []
    for who, tint in ((SUBJECT, TINT), (OTHER, OTHER_TINT)):
        subject = data.subjects()[scene[who]]
        names = list(subject.names)
        if near and near.get(subject.index) and rng.random() < share:
            names = near[subject.index]
        nouns.append(rng.choice(fitting(names, subject, scene[tint])))
    named = rng.random() < 0.7
    if not named:
        says[BACKGROUND] = ANY
    text = sentence(scene, tuple(nouns), background=named, frame=rng.choice(FRAMES[STYLES[scene[STYLE]]]))
    words = BAD_WORDS if scene[BAD] == 1 else GOOD_WORDS
    if scene[BAD] == 1 or rng.random() < 0.12:
        text += ", " + ", ".join(rng.sample(words, rng.randint(1, len(words))))
    return text, says


def agree(says: Tensor, scenes: Tensor) -> Tensor:
    """Which pictures a caption fits: says [b, 8], scenes [n, 8] -> bool [b, n]."""
    return ((says[:, None] == scenes) | (says[:, None] == ANY)).all(-1)


# --- pictures ---


class Painter:
    """Composes scenes from the subjects' renderings, whole and at half the size. size: pixels, a multiple of 128."""

    def __init__(self, size: int = SIZE):
        codes = [subject.code for subject in data.subjects()]
        self.size = size
        self.whole, self.half = (drawings.renderings(codes, side) for side in (size, size // 2))
        self.colours = torch.tensor(list(data.COLOURS.values()), dtype=torch.float32)

    def paint(self, scene: list[int], rng: random.Random) -> Tensor:
        """[3, size, size] in [-1, 1]; things move by whole places of the latent, at random, where there is room.

        Moved by less, the same outline would have other latents, 64 sets of them. A whole thing has room in one picture
        of four, where it is shrunk by a place; not in pixel art, whose squares are places. And nothing is mirrored: of
        a rocket that flies either way a small UNet draws both ways at once.
        """
        size, place = self.size, self.size // drawings.GRID
        if scene[BACKGROUND] == NIGHT:
            picture = night_sky(size, rng)
        else:
            picture = self.colours[scene[BACKGROUND]][:, None, None].expand(3, size, size)
        half, quarter = size // 2, size // 4
        if scene[LAYOUT] == WHOLE:
            places = [(SUBJECT, TINT, self.whole, 0, 0)]
        else:
            y = quarter + (place * rng.randint(-1, 1) if scene[LAYOUT] in (SMALL, LEFT, RIGHT) else 0)
            xs = {SMALL: (quarter + place * rng.randint(-1, 1),), LEFT: (0,), RIGHT: (half,)}
            xs = xs.get(scene[LAYOUT], (0, half))
            who = [(SUBJECT, TINT), (OTHER, OTHER_TINT) if scene[LAYOUT] == PAIR else (SUBJECT, TINT)]
            places = [(*w, self.half, x, y) for w, x in zip(who, xs, strict=False)]
        for who, tint, renderings, x, y in places:
            rgba = renderings[scene[STYLE], scene[who]][None]
            if scene[tint] != NONE:
                rgba = drawings.tint(rgba, self.colours[scene[tint]][None])
            if scene[LAYOUT] == WHOLE and STYLES[scene[STYLE]] != "pixel" and rng.random() < 0.25:
                side = size - place
                x, y = place * rng.randint(0, 1), place * rng.randint(0, 1)
                rgba = F.interpolate(rgba.float(), (side, side), mode="bilinear", antialias=True)
            side = rgba.shape[-1]
            rgba = rgba[0].float()
            picture = picture.clone()
            under = picture[:, y : y + side, x : x + side]
            picture[:, y : y + side, x : x + side] = rgba[:3] + (1 - rgba[3:] / 255) * under
        if scene[BAD] == 1:
            picture = spoil(picture, rng)
        return picture / 127.5 - 1


def night_sky(size: int, rng: random.Random) -> Tensor:
    """[3, size, size], 0..255: dark blue, brighter downwards, with stars."""
    top, bottom = torch.tensor([8.0, 10.0, 40.0]), torch.tensor([36.0, 42.0, 98.0])
    sky = torch.lerp(top[:, None], bottom[:, None], torch.linspace(0, 1, size))[..., None].repeat(1, 1, size)
    star = size // 64
    for _ in range(14):
        y, x = rng.randrange(size - star), rng.randrange(size - star)
        sky[:, y : y + star, x : x + star] = 235
    return sky


def spoil(picture: Tensor, rng: random.Random) -> Tensor:
    """[3, size, size], 0..255, cut, coarse and packed: "lowres, cropped, worst quality, jpeg artifacts"."""
    size, unit = picture.shape[-1], picture.shape[-1] // 128
    side = rng.randint(80, 112)
    x, y = unit * rng.randint(0, 128 - side), unit * rng.randint(0, 128 - side)
    coarse = rng.randint(18, 30)
    small = F.interpolate(picture[None, :, y : y + unit * side, x : x + unit * side], (coarse, coarse), mode="area")
    large = F.interpolate(small, (size, size), mode="bilinear")[0]
    packed = io.BytesIO()
    Image.fromarray(large.clamp(0, 255).byte().permute(1, 2, 0).numpy()).save(packed, "JPEG", quality=12)
    return torch.from_numpy(np.array(Image.open(packed))).permute(2, 0, 1).float()


# --- assets/emoji ---


def write_assets() -> None:
    """Write all of assets/emoji but captions.csv, from which it follows.

    subjects.png: every subject in the four styles, 32 x 32, for the metrics. held_out.csv: the pairs of subject and
    background, tint or style that training never sees. kept/: pictures the VAE never trains on. shown/: for notebooks.
    """
    codes, side, columns = [subject.code for subject in data.subjects()], data.SHEET_SIDE, data.SHEET_COLUMNS
    styles = drawings.renderings(codes, SIZE)
    small = F.interpolate(styles.flatten(0, 1).float(), (side, side), mode="area").round().byte().unflatten(0, (4, -1))
    small[0] = data.load_rgba(codes, side)
    rows = -(-len(codes) // columns)
    padded = F.pad(small, (0, 0, 0, 0, 0, 0, 0, rows * columns - len(codes)))
    sheet = rearrange(padded, "s (y x) c h w -> (s y h) (x w) c", x=columns).contiguous().numpy()
    picture = Image.frombytes("RGBa", sheet.shape[1::-1], sheet.tobytes()).convert("RGBA")
    picture.save(data.EMOJI / "subjects.png", optimize=True)
    with (data.EMOJI / "held_out.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kind", "subject", "value"))
        for kind, values in (("background", COLOUR_NAMES), ("tint", COLOUR_NAMES), ("style", STYLES)):
            for subject in data.subjects():
                for i, value in enumerate(values):
                    if (kind != "tint" or i in TINTS) and held_out(kind, subject.index, i):
                        writer.writerow((kind, subject.name, value))
    folder = data.fetch(data.PICTURES, "assets") / "assets"
    shown = [subject.code for subject in data.subjects() if subject.name in data.SHOWN]
    for name, chosen in (("kept", data.kept_from_vae()), ("shown", shown)):
        (data.EMOJI / name).mkdir(exist_ok=True)
        for code in chosen:
            shutil.copy(folder / f"{code}.webp", data.EMOJI / name)


@command
def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_assets()
    print(f"{len(data.subjects())} subjects, {len(data.base_codes())} pictures")


if __name__ == "__main__":
    main()
