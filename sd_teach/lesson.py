"""What notebooks teach with: the reference's source, pictures that are compared, sliders over pictures."""

import inspect
import io
import os
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import numpy as np
from IPython.display import Markdown
from matplotlib.figure import Figure
from PIL import Image

from sd_teach import ASSETS

THUMBNAILS = ASSETS / "thumbnails"
STORE = "SD_TEACH_STORE_PICTURES"  # set while notebooks are run in place: pictures are stored, not compared
SIDE = 16  # pixels of a thumbnail
TOLERANCE = 3  # grey levels, at that size


def show_source(*objects: Callable | type) -> Markdown:
    """The source of functions or classes as it stands in the package, coloured."""
    return Markdown("\n".join(f"```python\n{inspect.getsource(thing).rstrip()}\n```" for thing in objects))


def check_picture(name: str, *images: Image.Image) -> None:
    """Print whether pictures look as in the course: 16 x 16 thumbnails, within 3 grey levels.

    So a changed picture is found on any CPU, though no two make the same bytes. `SD_TEACH_STORE_PICTURES` stores them.
    """
    tiles = [np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)) for image in images]
    sheet, path = np.concatenate(tiles, axis=1), THUMBNAILS / f"{name}.png"
    if os.environ.get(STORE):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(sheet).save(path)
    if not path.exists():
        print(f"{name}: the course has no picture of this name")
        return
    stored = np.asarray(Image.open(path))
    if stored.shape != sheet.shape:
        print(f"{name}: {len(images)} pictures, the course has {stored.shape[1] // SIDE}")
        return
    off = int(np.abs(stored.astype(int) - sheet).max())
    print(f"{name}: as in the course" if off <= TOLERANCE else f"{name}: off by up to {off} of 255 grey levels")


class Scrubber(widgets.VBox):
    """A slider over pictures made beforehand, so that a move costs no computation; `slider`, `picture`: its parts.

    images: PIL images or figures. labels: what the slider says at each. A reader on GitHub sees no widget: show some of
    the pictures in a figure as well.
    Raises ValueError where there is not one label for each picture.
    """

    def __init__(
        self, images: Sequence[Image.Image | Figure], labels: Sequence[str], description: str = "", width: int = 256
    ):
        if len(images) != len(labels) or not images:
            raise ValueError(f"one label for each picture: got {len(images)} pictures and {len(labels)} labels")
        frames = [_png(image) for image in images]
        options = [(str(label), i) for i, label in enumerate(labels)]
        layout = widgets.Layout(width="420px")
        self.slider = widgets.SelectionSlider(options=options, value=0, description=description, layout=layout)
        self.picture = widgets.Image(value=frames[0], format="png", width=width)
        self.slider.observe(lambda change: setattr(self.picture, "value", frames[change["new"]]), "value")
        super().__init__([self.slider, self.picture])
        self.add_class("s-scrubber")  # by which the browser's test finds it

    def __repr__(self) -> str:  # the same on every machine, unlike a picture's bytes
        return f"a slider over {len(self.slider.options)} pictures"


def _png(image: Image.Image | Figure) -> bytes:
    data = io.BytesIO()
    if isinstance(image, Figure):
        image.savefig(data, format="png", dpi=110)
    else:
        side = max(256, *image.size)
        image.resize((side, side * image.height // image.width), Image.Resampling.LANCZOS).save(data, "PNG")
    return data.getvalue()
