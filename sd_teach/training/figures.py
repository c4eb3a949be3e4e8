"""Draw the README's pictures into `assets/figures` with the bundled model: `python -m sd_teach.training.figures`."""

import argparse

import torch
from matplotlib.figure import Figure

from sd_teach import ASSETS, plots
from sd_teach.pipeline import StableDiffusion, to_images

HERO = (
    "a cat",
    "a pizza on a green background",
    "a rocket on a blue background",
    "a penguin on a pink background",
    "a sailboat on a turquoise background",
    "a cactus on an orange background",
    "an owl on a purple background",
    "a sunflower on a brown background",
    "a guitar on a white background",
    "a turtle on a red background",
    "a cupcake on a yellow background",
    "a dog on a black background",
)
SEED = 12345


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


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    sd = StableDiffusion.from_pretrained("tiny")
    folder = ASSETS / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in (("hero", hero(sd)), ("film_strip", film_strip(sd))):
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
