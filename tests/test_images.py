"""Pictures in and out: whatever a student brings, or one clear line."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from sd_teach.images import fit_image, fit_mask, keep_mask, read_image, to_images, to_tensor

PHOTO = Path(__file__).parents[1] / "assets" / "photo" / "chelsea.png"


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture of random levels."""
    shape = (height, width, len(mode)) if mode in ("RGB", "RGBA", "CMYK") else (height, width)
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode=None if mode != "CMYK" else mode
    )


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def stored(image: Image.Image, kind: str, **options) -> Image.Image:
    """The image as it comes back from a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


# which part, which size


def test_a_picture_of_the_right_size_stays_as_it_is():
    image = noise(48, 32)
    assert (pixels(fit_image(image, 48, 32)) == pixels(image)).all()


@pytest.mark.parametrize(("size", "box"), [((96, 32), (24, 0, 72, 32)), ((48, 96), (0, 32, 48, 64))])
def test_the_middle_is_cut_out_of_a_picture_too_wide_or_too_high(size, box):
    image = noise(*size)
    assert (pixels(fit_image(image, 48, 32)) == pixels(image.crop(box))).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (31, 77), (300, 200)])
def test_pictures_of_any_size_are_resized(size):
    image = fit_image(Image.new("RGB", size, (10, 20, 30)), 48, 32)
    assert image.size == (48, 32) and image.mode == "RGB"
    assert (pixels(image) == (10, 20, 30)).all()


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    middle = pixels(fit_image(Image.fromarray(stripes), 64, 64))[:, 8:-8]  # the filter reaches over the borders
    assert abs(middle - 127.5).max() <= 8


# which mode


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "LA", "La", "PA"]
)
def test_every_mode_of_8_bits_becomes_rgb(mode):
    source = Image.new("RGB", (8, 8), "white")
    if mode == "La":
        image = source.convert("LA").convert("La")
    elif mode in ("RGBa", "LAB", "PA"):
        image = Image.new(mode, (8, 8))
    else:
        image = source.convert(mode)
    assert image.mode == mode
    fitted = fit_image(image, 16, 16)
    assert fitted.mode == "RGB" and fitted.size == (16, 16)
    if mode in ("LAB", "PA"):
        return
    assert pixels(fitted).min() >= 250  # white, or all transparent


def test_grey_and_palette_pictures_keep_their_colours():
    grey = noise(16, 16, "L")
    assert (pixels(fit_image(grey, 16, 16)) == pixels(grey)[..., None]).all()
    palette = noise(16, 16).quantize(32)
    assert (pixels(fit_image(palette, 16, 16)) == pixels(palette.convert("RGB"))).all()


def test_cmyk_is_ink_and_not_light():
    assert fit_image(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), 8, 8).getpixel((0, 0)) == (255, 255, 255)
    assert fit_image(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), 8, 8).getpixel((0, 0)) == (0, 255, 255)


def half_transparent(mode: str) -> Image.Image:
    """Black at the left, transparent at the right."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    if mode in ("RGBA", "LA"):
        return image.convert(mode)
    image = Image.new(mode, (8, 8))
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0])
    hidden = {"P": 1, "L": 9, "RGB": (255, 0, 0)}[mode]
    image.paste(hidden, (4, 0, 8, 8))
    return stored(image, "PNG", transparency=hidden)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_places_become_white_whatever_colour_hides_there(mode):
    fitted = pixels(fit_image(half_transparent(mode), 8, 8))
    assert (fitted[:, :4] == 0).all() and (fitted[:, 4:] == 255).all()


def test_half_transparent_places_are_mixed_with_white():
    assert fit_image(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), 8, 8).getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_16_bits_of_grey_are_scaled_and_not_clipped(dtype):
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype)
    fitted = fit_image(Image.fromarray(levels), 6, 1)
    assert pixels(fitted)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_tag_says(orientation):
    upright = noise(16, 8)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    image = upright.transpose(turn[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (pixels(fit_image(stored(image, "PNG", exif=exif), 16, 8)) == pixels(upright)).all()


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (Image.new("RGB", (0, 5)), "a picture of 0 x 5 has no pixels"),
        (Image.new("F", (8, 8)), "floating-point"),
        (Image.fromarray(np.array([[-1, 3]], np.int32)), "between 0 and 65535, got -1 to 3"),
        (Image.fromarray(np.array([[0, 65536]], np.int32)), "got 0 to 65536"),
        (np.zeros((8, 8, 3)), "PIL images, got ndarray"),
        ("cat.png", "PIL images, got str"),
        (None, "PIL images, got NoneType"),
    ],
)
def test_what_cannot_be_a_picture_is_refused(image, told):
    with pytest.raises(ValueError, match=told):
        fit_image(image, 16, 16)


def test_a_picture_that_is_found_damaged_late_is_refused():
    file = io.BytesIO()
    noise(64, 64).save(file, "PNG")
    with pytest.raises(ValueError, match="the picture cannot be read: "):
        fit_image(Image.open(io.BytesIO(file.getvalue()[:2000])), 16, 16)


# files


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_files_of_many_kinds_are_read_whole_and_closed(tmp_path, kind):
    noise(20, 10).save(tmp_path / "picture", kind)
    image = read_image(tmp_path / "picture")
    (tmp_path / "picture").unlink()
    assert fit_image(image, 16, 16).size == (16, 16)


def test_of_a_moving_picture_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert fit_image(read_image(tmp_path / "moving.gif"), 8, 8).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["missing", "a folder", "empty", "text", "cut off", "too large"])
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, monkeypatch, kind):
    path = tmp_path / "picture.png"
    if kind == "a folder":
        path.mkdir()
    elif kind in ("empty", "text"):
        path.write_text("" if kind == "empty" else "not a picture")
    elif kind != "missing":
        noise(64, 64).save(path)
        if kind == "cut off":
            path.write_bytes(path.read_bytes()[:2000])
        else:
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"cannot read .*picture\.png as a picture: .") as refused:
        read_image(path)
    assert "\n" not in str(refused.value)


def test_the_photograph_is_what_its_page_says():
    image = read_image(PHOTO)
    assert (image.size, image.mode) == ((256, 256), "RGB")
    assert PHOTO.stat().st_size <= 150_000
    assert "CC0" in PHOTO.with_name("README.md").read_text()


# to the networks and back


def test_pictures_lie_between_minus_1_and_1_with_channels_first():
    image = Image.new("RGB", (3, 2), (0, 128, 255))
    picture = to_tensor(image)
    assert picture.shape == (1, 3, 2, 3) and picture.dtype == torch.float32
    assert_close(picture[0, :, 0, 0], torch.tensor([-1.0, 128 / 127.5 - 1, 1.0]))


def test_an_image_comes_back_as_it_was():
    image = noise(24, 16)
    (back,) = to_images(to_tensor(image))
    assert (pixels(back) == pixels(image)).all()


# masks


def mask_of(*white: tuple[int, int, int, int], size=(64, 64), mode="L") -> Image.Image:
    mask = Image.new(mode, size)
    for box in white:
        mask.paste("white", box)
    return mask


def test_white_is_redrawn_and_internally_1_is_kept():
    image = noise(64, 64)
    keep = keep_mask(fit_mask(mask_of((0, 0, 32, 64)), image, 64, 64))
    assert keep.shape == (1, 1, 8, 8)
    assert (keep[0, 0, :, :4] == 0).all() and (keep[0, 0, :, 4:] == 1).all()


def test_a_single_white_pixel_redraws_its_whole_latent_and_no_other():
    keep = keep_mask(fit_mask(mask_of((20, 41, 21, 42)), noise(64, 64), 64, 64))[0, 0]
    assert keep[5, 2] == 0 and keep.sum() == 63


@pytest.mark.parametrize("downsampling", [2, 4, 8])
def test_the_mask_is_as_large_as_the_latent(downsampling):
    keep = keep_mask(fit_mask(mask_of((32, 32, 40, 40)), noise(64, 64), 64, 48), downsampling)
    assert keep.shape == (1, 1, 48 // downsampling, 64 // downsampling)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK", "P"])
def test_masks_of_any_mode_are_black_and_white(mode):
    mask = fit_mask(mask_of((0, 0, 32, 64), mode="RGB").convert(mode), noise(64, 64), 64, 64)
    assert mask.mode == "1" and pixels(mask)[:, :32].all() and not pixels(mask)[:, 32:].any()


def test_the_middle_of_a_mask_is_used_like_the_middle_of_its_picture():
    """A white column in the picture stays under the white column of the mask."""
    marked = mask_of((80, 0, 88, 50), size=(200, 50))
    fitted, mask = fit_image(marked, 64, 64), fit_mask(marked, marked, 64, 64)
    assert 0.1 < pixels(mask).mean() < 0.2
    assert abs((pixels(fitted)[..., 0] > 127) ^ (pixels(mask) > 0)).mean() <= 1 / 64


@pytest.mark.parametrize(("grey", "redrawn"), [(127, False), (128, True)])
def test_grey_in_a_mask_goes_to_the_nearer_of_black_and_white(grey, redrawn):
    mask = Image.new("L", (64, 64), grey)
    mask.putpixel((0, 0), 255)
    assert pixels(fit_mask(mask, noise(64, 64), 64, 64))[32, 32] == redrawn


def test_where_a_mask_is_transparent_the_picture_is_kept():
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 8, 8))
    assert pixels(fit_mask(mask, noise(64, 64), 64, 64)).sum() == 64


def test_a_mask_is_turned_as_its_exif_tag_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture's left is above
    turned = stored(mask_of((0, 0, 8, 64), size=(128, 64)).transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert (
        pixels(fit_mask(turned, noise(128, 64), 128, 64)) == pixels(mask_of((0, 0, 8, 64), size=(128, 64), mode="1"))
    ).all()


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (mask_of((0, 0, 9, 9), size=(32, 64)), "of one size, got 32 x 64 and 64 x 64"),
        (mask_of(), "no white in the part that is used"),
        (Image.new("F", (64, 64)), "floating-point"),
        (Image.new("L", (0, 0)), "no pixels"),
        (np.ones((64, 64)), "PIL images, got ndarray"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused(mask, told):
    with pytest.raises(ValueError, match=told):
        fit_mask(mask, noise(64, 64), 64, 64)


def test_a_mask_is_shrunk_by_the_share_that_is_white():
    levels = np.full((64, 64), 255, np.uint8)
    levels[2::4, 2::4] = 0  # one of 16, the one that the nearest pixel would be
    assert pixels(fit_mask(Image.fromarray(levels), noise(64, 64), 16, 16)).all()
