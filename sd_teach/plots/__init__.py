"""Every picture a notebook or the README shows. Plots draw what they are given; they never compute.

Each function returns a figure that pyplot has already let go of: a notebook shows it once, as the cell's value.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

# one colour language for all figures
INK, GREY, PALE = "#333344", "#c9cbd6", "#eef0f6"
ACCENT, BLUE, GREEN, ROSE = "#ffb43a", "#3b6fd4", "#4f9d5d", "#c8507a"


def image_grid(
    images: Sequence[Image.Image], titles: Sequence[str] = (), columns: int | None = None, side: float = 1.5
) -> Figure:
    """Images in rows, each with its title above; side: inches an image."""
    columns = columns or len(images)
    rows = -(-len(images) // columns)
    room = 0.28 if titles else 0.06  # inches above an image
    figure, axes = plt.subplots(rows, columns, figsize=(columns * (side + 0.06), rows * (side + room)), squeeze=False)
    plt.close(figure)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image, interpolation="lanczos")
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, fontsize=8, pad=3)
    figure.subplots_adjust(0, 0, 1, 1 - room / (rows * (side + room)), wspace=0.04, hspace=room / side)
    return figure


def film_strip(rows: dict[str, Sequence[Image.Image]], titles: Sequence[str], side: float = 1.0) -> Figure:
    """One row of images for each label, the same moments below each other; titles: one for each column."""
    columns = len(titles)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(columns * side + 0.3, len(rows) * side + 0.25), squeeze=False
    )
    plt.close(figure)
    for (label, images), line in zip(rows.items(), axes, strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image, interpolation="lanczos")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(label, fontsize=9)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8, pad=3)
    figure.subplots_adjust(0.3 / (columns * side + 0.3), 0, 1, 1 - 0.25 / (len(rows) * side + 0.25), 0.03, 0.03)
    return figure


# the steps of the pipeline: number -> (name, shape in the real model, x, y); the README's table has the same numbers
_STEPS = {
    1: ("text encoder", "77 x 768", 2.3, 2.0),
    2: ("noise", "4 x 64 x 64", 2.3, 0.6),
    3: ("DDIM step", "4 x 64 x 64", 5.6, 0.6),
    4: ("guidance", "4 x 64 x 64", 8.2, 1.3),
    5: ("UNet", "2 x 4 x 64 x 64", 5.6, 2.0),
    6: ("VAE decoder", "3 x 512 x 512", 10.9, 0.6),
}


def pipeline_map(highlight: int | None = None, from_picture: bool = False) -> Figure:
    """The numbered diagram of the whole pipeline; highlight: the step to colour, 1 to 6.

    from_picture: draw and colour the second way in, a picture's latent mixed with the noise (chapters 8 and 9).
    """
    figure, axis = plt.subplots(figsize=(9.6, 2.5))
    plt.close(figure)
    axis.set(xlim=(-0.4, 13.6), ylim=(-0.25, 3.0))
    axis.axis("off")
    loop = plt.Rectangle((4.2, 0.0), 5.4, 2.72, fill=False, edgecolor=INK, linestyle=(0, (4, 3)), linewidth=1)
    axis.add_patch(loop)
    axis.text(13.5, -0.15, "sizes: Stable Diffusion v1.5", ha="right", va="bottom", fontsize=8, color=INK)
    often = "once for each step that is left" if from_picture else "once for each of the 20 steps"
    axis.text(9.5, 2.78, often, ha="right", va="bottom", fontsize=8, color=INK)

    def node(x: float, y: float, text: str, colour: str, boxstyle: str = "round,pad=0.35") -> None:
        box = dict(boxstyle=boxstyle, facecolor=colour, edgecolor=INK, linewidth=1)
        axis.text(x, y, text, ha="center", va="center", fontsize=9, bbox=box, color=INK)

    for number, (name, shape, x, y) in _STEPS.items():
        node(x, y, f"{number}  {name}\n{shape}", ACCENT if number == highlight else PALE)
    ends = [(0.2, 2.0, '"a cat"'), (0.2, 0.6, "seed\n12345"), (13.1, 0.6, "picture")]
    if from_picture:
        ends.append((0.2, 1.3, "picture"))
        node(2.3, 1.3, "VAE encoder\n4 x 64 x 64", ACCENT)
        node(3.8, 0.6, "+", ACCENT, "circle,pad=0.15")
    for x, y, text in ends:
        axis.text(x, y, text, ha="center", va="center", fontsize=9, style="italic", color=INK)

    def arrow(start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
        style = dict(arrowstyle="-|>", color=INK, linewidth=1.1, connectionstyle=f"arc3,rad={bend}")
        axis.annotate("", xy=end, xytext=start, arrowprops=style)

    arrow((0.75, 2.0), (1.35, 2.0))  # prompt -> text encoder
    arrow((0.75, 0.6), (1.35, 0.6))  # seed -> noise
    arrow((3.25, 2.0), (4.6, 2.0))  # text states -> UNet
    if from_picture:
        arrow((0.75, 1.3), (1.35, 1.3))  # picture -> encoder
        arrow((3.25, 1.3), (3.8, 0.8), -0.3)  # its latent -> mixture
        arrow((3.1, 0.6), (3.62, 0.6))  # noise -> mixture
        arrow((3.98, 0.6), (4.65, 0.6))  # mixture -> first step
    else:
        arrow((3.2, 0.6), (4.65, 0.6))  # x_T -> first step
    arrow((5.6, 1.0), (5.6, 1.6))  # x_t -> UNet
    arrow((6.6, 2.0), (7.7, 1.62), -0.2)  # two predictions -> guidance
    arrow((7.7, 0.98), (6.55, 0.6), -0.2)  # one prediction -> step
    arrow((6.1, 0.22), (9.85, 0.55), 0.12)  # after the last step -> decoder
    arrow((11.95, 0.6), (12.6, 0.6))  # decoder -> picture
    figure.subplots_adjust(0, 0, 1, 1)
    return figure
