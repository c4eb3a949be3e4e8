"""Pictures in and out: any image a student may bring to what the networks read, and what they answer to images.

Shape letters: b images, h and w sides in pixels; a latent is 8 times smaller on each side.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor


def read_image(path: str | Path) -> Image.Image:
    """Open a picture file and read all of it; of a moving picture, the first frame.

    Raises ValueError, naming the file, where it is missing, damaged or no picture.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # what a hostile file makes Pillow raise has no common base
        raise ValueError(f"cannot read {path} as a picture: {_line(error)}") from None


def fit_image(image: Image.Image, width: int, height: int) -> Image.Image:
    """Any picture as RGB of width x height: its middle, cut to these sides' proportion and resized.

    Turned as its EXIF tag says; transparent places become white; 16 bits of grey become 8.
    Raises ValueError for what is no picture, has no pixels, or holds numbers that no rule makes colours of.
    """
    return ImageOps.fit(_rgb(_upright(image), "white"), (width, height), Image.Resampling.LANCZOS)


def fit_mask(mask: Image.Image, image: Image.Image, width: int, height: int) -> Image.Image:
    """A mask for `image`, cut and resized as fit_image does, in black and white (mode "1"); grey goes to the nearer.

    White is what will be redrawn; transparent places count as black.
    Raises ValueError where the sizes of mask and image differ, nothing is white, or fit_image would refuse the mask.
    """
    mask, size = _upright(mask), _upright(image).size
    if mask.size != size:
        raise ValueError(f"mask and picture must be of one size, got {_size(mask.size)} and {_size(size)}")
    grey = ImageOps.fit(_rgb(mask, "black").convert("L"), (width, height), Image.Resampling.BOX)
    white = grey.point(lambda level: 255 * (level > 127), "1")
    if white.getbbox() is None:
        raise ValueError("the mask has no white in the part that is used, so there is nothing to redraw")
    return white


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image of h x w pixels -> picture [1, 3, h, w] in [-1, 1], what to_images takes back."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1.0


def keep_mask(mask: Image.Image, downsampling: int = 8) -> Tensor:
    """fit_mask's mask of h x w pixels -> [1, 1, h/8, w/8]: 1 where a latent is kept, 0 where it is redrawn.

    A latent is kept only if none of its 8 x 8 pixels is white: all that is white is redrawn, and a little beside it.
    """
    white = torch.from_numpy(np.array(mask)).float()[None, None]
    return 1.0 - F.max_pool2d(white, downsampling)


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures [b, 3, h, w] in about [-1, 1] -> RGB images: clamped, scaled to 0..255, rounded (not truncated)."""
    pixels = ((pictures.clamp(-1.0, 1.0) + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(picture) for picture in pixels.cpu().numpy()]


def _upright(image: Image.Image) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise ValueError(f"pictures and masks are given as PIL images, got {type(image).__name__}")
    if 0 in image.size:
        raise ValueError(f"a picture of {_size(image.size)} has no pixels")
    try:
        image.load()  # files are read late, and may be damaged
        return ImageOps.exif_transpose(image)
    except Exception as error:
        raise ValueError(f"the picture cannot be read: {_line(error)}") from None


def _rgb(image: Image.Image, behind: str) -> Image.Image:
    """To RGB, transparent places over the colour `behind`."""
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"grey levels of a picture lie between 0 and 65535, got {levels.min()} to {levels.max()}")
        image = Image.fromarray((levels / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("a picture of floating-point numbers has no fixed range: save it with 8 or 16 bits a channel")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, behind), image).convert("RGB")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _line(error: Exception) -> str:
    # the first line only, and the reason without the file's name, which is said already
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip().splitlines()[0]
