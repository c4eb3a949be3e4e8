"""Draw the README's pictures into `assets/figures` with the bundled model: `python -m sd_teach.training.figures`.

With --own FOLDER, the model that came out of fine-tuning on `assets/catflower`, only the picture of before and after.
"""

import argparse
import io
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image

from sd_teach import ASSETS, plots
from sd_teach.pipeline import StableDiffusion, to_images
from sd_teach.training import data, drawings, scenes
from sd_teach.training.loop import command

HERO = (
    "a cat",
    "a pink pig",
    "pixel art of a burger at night",
    "a line drawing of a butterfly",
    "a pizza on a green background",
    "a flat icon of a castle",
    "a panda on a pink background",
    "a turquoise rabbit",
    "a lantern at night",
    "pixel art of a mushroom",
    "a blue hat",
    "a rocket on a yellow background",
)
SIZED = (
    "a cat on a blue background",
    "an owl on a yellow background",
    "a taco on a red background",
    "a flat icon of a castle on a green background",
)
STYLED = ("a cat", "a castle", "a sunflower", "a car", "an octopus", "a burger", "a mushroom", "a house")
COLOURED = ("owl", "car", "dragon", "teapot", "rabbit", "balloon")
PAIRED = (
    "a cat and a pizza",
    "a panda and a cactus on a pink background",
    "a car and a house",
    "a duck and an umbrella",
    "a red apple and a green pear on a white background",
    "a frog and a cupcake on a purple background",
    "a robot and a teapot on an orange background",
    "a ghost and a pumpkin at night",
)
SCALES = (0, 1, 1.5, 2, 3, 5, 7.5, 12)
SEEDED = ("a purple cat", "a house at night", "a line drawing of a rocket")
SEED = 7  # of 1 to 8 the one that draws most of these well; the seeds of the metrics were not chosen
CATFLOWER = ASSETS / "catflower"  # sixteen pictures of something nobody has seen before, to fine-tune on


def hero(sd: StableDiffusion) -> Figure:
    """A dozen prompts, one seed, the defaults."""
    images = [sd.text_to_image(prompt, seed=SEED).images[0] for prompt in HERO]
    return plots.image_grid(images, HERO, columns=6, side=1.9)


def film_strip(sd: StableDiffusion) -> Figure:
    """Some moments of one run: the latent, decoded as it is, and the clean one it is taken for."""
    states = []
    sd.text_to_image("a cat on a blue background", seed=SEED, callback=states.append)
    shown = [states[i] for i in (0, 1, 2, 4, 7, 11, 15, 19)]
    decode = torch.inference_mode()(sd.model.decode_first_stage)
    rows = {
        "$x_t$": to_images(decode(torch.cat([state.x for state in shown]))),
        r"predicted $x_0$": to_images(decode(torch.cat([state.pred_x0 for state in shown]))),
    }
    return plots.film_strip(rows, [f"t = {state.t}" for state in shown], side=1.4)


def sheet(sd: StableDiffusion, rows: list[list[str]], side: float = 1.0, **settings) -> Figure:
    """A picture for each prompt, without titles; the README says what they are."""
    images = [sd.text_to_image(prompt, seed=SEED, **settings).images[0] for row in rows for prompt in row]
    return plots.image_grid(images, columns=len(rows[0]), side=side)


def beside(sd: StableDiffusion) -> Figure:
    """The subjects in assets/emoji/shown: above the picture it was trained on, below what the model draws."""
    shown = [subject for subject in data.subjects() if subject.name in data.SHOWN]
    codes, size = [subject.code for subject in shown], sd.model.config.defaults.image_size
    rgba = data.load_rgba(codes, size, data.EMOJI / "shown")
    white = torch.tensor(data.COLOURS["white"], dtype=torch.float32)[None, :, None, None]
    images = to_images(data.on_background(rgba, white))
    for subject in shown:
        prompt = data.caption(subject.name, subject.article, "white")
        images += sd.text_to_image(prompt, seed=SEED).images
    return plots.image_grid(images, columns=len(shown), side=1.0)


def styles(sd: StableDiffusion) -> Figure:
    """The four styles of some subjects."""
    frames = [scenes.FRAMES[style][0] for style in drawings.STYLES]
    return sheet(sd, [[frame.format(subject) for subject in STYLED] for frame in frames])


def colours(sd: StableDiffusion) -> Figure:
    """Some subjects in all the tints."""
    tints = [scenes.COLOUR_NAMES[tint] for tint in scenes.TINTS]
    return sheet(
        sd, [[f"{data.caption(f'{tint} {noun}', 'a')} on a white background" for tint in tints] for noun in COLOURED]
    )


def pairs(sd: StableDiffusion) -> Figure:
    """Two things at a time."""
    return sheet(sd, [list(PAIRED)])


def scales(sd: StableDiffusion) -> Figure:
    """A prompt at rising guidance scales, a row for each of three seeds."""
    images = [
        sd.text_to_image("a purple owl on a yellow background", seed=SEED + row, guidance_scale=scale).images[0]
        for row in range(3)
        for scale in SCALES
    ]
    return plots.image_grid(images, columns=len(SCALES), side=1.0)


def seeds(sd: StableDiffusion) -> Figure:
    """Three prompts, eight seeds each."""
    images = [image for prompt in SEEDED for image in sd.text_to_image(prompt, seed=SEED, num_images=8).images]
    return plots.image_grid(images, columns=8, side=1.0)


def catflower(folder: Path = CATFLOWER) -> None:
    """Write sixteen pictures of a sunflower with the face of a turquoise cat, and metadata.jsonl, into a folder."""
    cat, sunflower = (
        data.load_rgba([subject.code for subject in data.subjects() if subject.name == name], 128, data.EMOJI / "shown")
        for name in ("cat", "sunflower")
    )
    cat = drawings.tint(cat, torch.tensor([data.COLOURS["turquoise"]], dtype=torch.float32))
    cat = F.interpolate(cat.float(), (62, 62), mode="bilinear", antialias=True)
    large = sunflower.float()
    face = large[:, :, 14:76, 33:95]  # where the seeds are
    face.copy_(cat + (1 - cat[:, 3:] / 255) * face)
    small = F.pad(F.interpolate(large, (100, 100), mode="bilinear", antialias=True), (14, 14, 20, 8))
    folder.mkdir(exist_ok=True)
    with (folder / "metadata.jsonl").open("w") as file:
        for colour in ("white", "grey", "red", "orange", "green", "blue", "pink", "brown"):
            background = torch.tensor(data.COLOURS[colour], dtype=torch.float32)[None, :, None, None]
            for size, rgba in (("large", large), ("small", small)):
                name = f"{colour}_{size}.webp"
                to_images(data.on_background(rgba.clamp(0, 255), background))[0].save(folder / name, quality=90)
                line = {"file_name": name, "text": data.caption("catflower", "a", colour)}
                file.write(json.dumps(line) + "\n")


def before_and_after(own: Path) -> Figure:
    """Four of the sixteen pictures; what the bundled model makes of the word; what the fine-tuned one makes of it."""
    prompts = (
        "a catflower",
        "a catflower on a yellow background",
        "a catflower on a purple background",
        "a catflower at night",
    )
    pictures = [
        Image.open(CATFLOWER / f"{name}.webp") for name in ("white_large", "red_small", "blue_large", "pink_small")
    ]
    rows = {"training pictures": pictures}
    for title, model in (("before", "tiny"), ("after", own)):
        sd = StableDiffusion.from_pretrained(model)
        # two seeds on, where most are drawn large enough to see a face
        rows[title] = [sd.text_to_image(prompt, seed=SEED + 2).images[0] for prompt in prompts]
    return plots.image_grid([image for row in rows.values() for image in row], columns=4, side=1.0)


def sizes(sd: StableDiffusion) -> Figure:
    """Above, pictures of the bundled model, enlarged; below, the same prompts by the model for larger ones."""
    large = StableDiffusion.from_pretrained("tiny-256")
    images = [model.text_to_image(prompt, seed=SEED).images[0] for model in (sd, large) for prompt in SIZED]
    return plots.image_grid(images, columns=4, side=2.8)


@command
def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--own", type=Path, metavar="FOLDER", help="the model fine-tuned on assets/catflower")
    options = options.parse_args()
    folder = ASSETS / "figures"
    folder.mkdir(exist_ok=True)
    if options.own:
        figures = {"catflower": before_and_after(options.own)}
    else:
        catflower()
        sd = StableDiffusion.from_pretrained("tiny")
        drawn = (hero, sizes, film_strip, beside, styles, colours, pairs, seeds, scales)
        figures = {draw.__name__: draw(sd) for draw in drawn}
    for name, figure in figures.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=90)
        picture = Image.open(drawn).convert("RGB")
        if name in ("hero", "sizes"):  # too many colours for a palette
            picture.save(folder / f"{name}.jpg", quality=92, subsampling=0)
        else:
            picture.quantize(256).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
