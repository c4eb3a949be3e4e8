"""Every subject in four styles and any colour: 3D pictures, flat drawings, and what is made of the flat ones.

3D pictures and flat drawings are the same emoji, in register. Pixel art is the flat drawing on a grid of 16 x 16; a
line drawing is its edges, on white. A tint keeps light and shade and gives everything one hue.
"""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from sd_teach.training import data
from sd_teach.training.loop import runs_folder

FLAT = "@lobehub/fluent-emoji-flat@1.1.0"
STYLES = ("3d", "flat", "pixel", "line")
GRID = 16  # pixel art: squares of 8 pixels at 128, one for each place of the latent
INK = 25  # grey level of drawn lines


def load_flat(codes: list[str], size: int) -> Tensor:
    """uint8 [n, 4, size, size], premultiplied: the flat drawings; the 3D picture where there is none (one subject)."""
    import resvg_py  # needed for training only

    folder = data.fetch(FLAT, "assets") / "assets"
    pictures = torch.empty(len(codes), 4, size, size, dtype=torch.uint8)
    for picture, code in zip(pictures, codes, strict=True):
        path = folder / f"{code}.svg"
        if not path.exists():
            picture.copy_(data.load_rgba([code], size)[0])
            continue
        png = resvg_py.svg_to_bytes(svg_path=str(path), width=size, height=size)
        rgba = ImageOps.pad(Image.open(io.BytesIO(bytes(png))).convert("RGBA").convert("RGBa"), (size, size))
        picture.copy_(torch.from_numpy(np.array(rgba)).permute(2, 0, 1))
    return pictures


def pixel_art(flat: Tensor) -> Tensor:
    """uint8 [n, 4, size, size], premultiplied -> the same on a grid of 16 x 16 squares, each clear or opaque."""
    small = F.interpolate(flat.float(), (GRID, GRID), mode="area")
    alpha = small[:, 3:]
    # few levels a channel, as if from a palette; colours as they are without the alpha
    rgb = (small[:, :3] / alpha.clamp(min=1.0) * 7.0).round() / 7.0
    opaque = (alpha > 110).float()
    squares = 255 * torch.cat([rgb.clamp(max=1.0) * opaque, opaque], dim=1)
    return F.interpolate(squares, flat.shape[-2:], mode="nearest").round().byte()


def line_drawing(flat: Tensor) -> Tensor:
    """uint8 [n, 4, 4 size, 4 size], premultiplied -> [n, 4, size, size]: dark edges, white inside."""
    large = flat.float()
    edge = torch.zeros_like(large[:, :1])
    edge[..., 1:] = (large[..., 1:] - large[..., :-1]).abs().amax(1, keepdim=True)
    down = (large[..., 1:, :] - large[..., :-1, :]).abs().amax(1, keepdim=True)
    edge[..., 1:, :] = torch.maximum(edge[..., 1:, :], down)
    thick = F.max_pool2d((edge > 22).float(), 9, stride=1, padding=4)
    ink, covered = F.avg_pool2d(thick, 4), F.avg_pool2d(torch.maximum(large[:, 3:] / 255, thick), 4)
    white = (covered - ink).clamp(min=0.0) * 255 + ink * INK
    return torch.cat([white.expand(-1, 3, -1, -1), covered * 255], dim=1).round().byte()


def renderings(codes: list[str], size: int) -> Tensor:
    """uint8 [4 styles, n, 4, size, size], premultiplied, in the order of STYLES; made once and kept with the runs."""
    cache = runs_folder() / "data" / f"renderings_{size}_{len(codes)}.pt"
    if cache.exists():
        return torch.load(cache, weights_only=True)
    flat = load_flat(codes, size)
    lines = torch.cat([line_drawing(load_flat(codes[i : i + 16], 4 * size)) for i in range(0, len(codes), 16)])
    stacked = torch.stack([data.load_rgba(codes, size), flat, pixel_art(flat), lines])
    torch.save(stacked, cache)
    return stacked


def tint(rgba: Tensor, colour: Tensor) -> Tensor:
    """rgba: uint8 [n, 4, h, w] premultiplied; colour: [n, 3], 0..255. The colour where the picture has its mean
    brightness, darker where it is darker, towards white where it is brighter."""
    rgba, colour = rgba.float(), colour[:, :, None, None] / 255
    alpha = rgba[:, 3:]
    light = (rgba[:, :3] * rgba.new_tensor([0.30, 0.59, 0.11])[:, None, None]).sum(1, keepdim=True)  # x alpha
    mean = (light.sum((2, 3), keepdim=True) / alpha.sum((2, 3), keepdim=True).clamp(min=1.0)).clamp(0.25, 0.75)
    light = light / alpha.clamp(min=1.0)
    dark = colour * (0.25 + 0.75 * light / mean)
    bright = colour + (1 - colour) * 0.75 * (light - mean) / (1 - mean)
    rgb = torch.where(light < mean, dark, bright).clamp(0.0, 1.0)
    return torch.cat([rgb * alpha, alpha], dim=1).round().byte()
