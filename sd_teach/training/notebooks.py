"""Run every notebook in place and store its outputs: `python -m sd_teach.training.notebooks [NOTEBOOK ...]`.

To be called when the model, the code or the text has changed. Two runs on one machine give the same bytes.
"""

import argparse
import base64
import io
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image
from tqdm.auto import tqdm

from sd_teach import ASSETS
from sd_teach.lesson import STORE

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def run_in_place(path: Path) -> None:
    """Execute a notebook and write it back without what changes from run to run or machine to machine.

    The pictures it checks become the ones that later runs are compared with.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # how the kernel cuts what is printed into messages changes from run to run
        resources={"metadata": {"path": path.parent}},
    )
    client.execute(env=os.environ | {STORE: "1"})
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            data.pop(WIDGET_VIEW, None)
            if "image/png" in data:
                data |= smaller(data.pop("image/png"))
    nbformat.write(notebook, path)


def smaller(png: str) -> dict[str, str]:
    """What is stored of a figure (PNG, base64), MIME type -> base64: a diagram with a palette, pictures as JPEG.

    Whoever runs the notebook sees the figure itself; nbval compares neither.
    """
    image, data = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    if image.getcolors(2000):  # few enough for a palette to lose nothing that one could see
        image.quantize(256, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    else:
        image.save(data, "JPEG", quality=75, optimize=True, progressive=True)
    return {Image.MIME[Image.open(data).format]: base64.b64encode(data.getvalue()).decode()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", nargs="*", type=Path, help="default: all of notebooks/")
    paths = parser.parse_args().notebook or sorted((ASSETS.parent / "notebooks").rglob("*.ipynb"))
    for path in (bar := tqdm(paths, unit="notebook")):
        bar.set_description(path.stem)
        run_in_place(path)


if __name__ == "__main__":
    main()
