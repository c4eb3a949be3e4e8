"""Whatever is given: a clear ValueError of one line, or a right result. Hypothesis looks for a third outcome."""

import io
import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_ddim import SCHEDULE, fake_eps, randn
from torch.testing import assert_close

from sd_teach.ddim import ddim_sample, ddim_timesteps, last_timesteps
from sd_teach.images import fit_image, fit_mask, keep_mask, read_image, to_images, to_tensor
from sd_teach.samplers import SAMPLERS, dpmpp_2m_sample, euler_sample, log_snr_timesteps

settings.register_profile("the same every time", max_examples=20, deadline=None, derandomize=True, database=None)
settings.load_profile("the same every time")

MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "I;16",
    "F",
]
SIDES = st.integers(1, 90) | st.sampled_from([1, 2, 500])


@st.composite
def images(draw, modes=MODES, sizes=st.tuples(SIDES, SIDES)):
    """A picture of random bytes, perhaps with a tag that turns it, perhaps with a transparent colour."""
    mode, (width, height) = draw(st.sampled_from(modes)), draw(sizes)
    image = Image.new(mode, (width, height))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    if mode not in ("I", "F"):  # whose random bytes are no colours at all
        image.frombytes(random.bytes(len(image.tobytes())))
    elif draw(st.booleans()):
        image = Image.fromarray(random.integers(0, 65536, (height, width)).astype(np.int32))
    if orientation := draw(st.sampled_from([None, 3, 6, 7])):
        image.getexif()[0x0112] = orientation
    if mode in ("L", "P") and draw(st.booleans()):
        image.info["transparency"] = draw(st.integers(0, 255))
    return image


def refused(call, *arguments, **options):
    """The message of the ValueError, which is one line, or None and the result."""
    try:
        return None, call(*arguments, **options)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return str(error), None


# pictures


@given(images(), st.integers(1, 100), st.integers(1, 100))
def test_every_picture_with_a_range_of_levels_is_fitted(image, width, height):
    before = image.tobytes()
    told, fitted = refused(fit_image, image, width, height)
    assert (told is not None) == (image.mode == "F")
    assert image.tobytes() == before
    if not told:
        assert (fitted.mode, fitted.size) == ("RGB", (width, height))
        picture = to_tensor(fitted)
        assert picture.shape == (1, 3, height, width) and picture.min() >= -1 and picture.max() <= 1
        assert (np.asarray(to_images(picture)[0]) == np.asarray(fitted)).all()


@given(
    images(["L", "RGB", "RGBA", "P"]),
    st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=20),
    st.floats(0, 1),
)
def test_a_damaged_file_is_refused_or_read(tmp_path_factory, image, kind, damage, length):
    file = io.BytesIO()
    (image.convert("RGB") if kind in ("JPEG", "BMP", "WEBP") else image).save(file, kind)
    damaged = bytearray(file.getvalue())
    for place, byte in damage:
        damaged[int(place * (len(damaged) - 1))] = byte
    path = tmp_path_factory.mktemp("damaged") / "picture"
    path.write_bytes(damaged[: int(length * len(damaged))] if length > 0.5 else damaged)
    told, read = refused(read_image, path)
    if told:
        assert str(path) in told
    else:
        told, fitted = refused(fit_image, read, 16, 16)
        assert told or fitted.size == (16, 16)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "picture"
    path.write_bytes(content)
    told, _ = refused(read_image, path)
    assert told is None or str(path) in told


# masks


@st.composite
def masks(draw):
    """A picture, and a mask of its size or another with a white box."""
    size = draw(st.tuples(SIDES, SIDES))
    mask = Image.new("L", draw(st.sampled_from([size, size, (5, 5)])))
    left, upper = draw(st.integers(0, mask.width)), draw(st.integers(0, mask.height))
    mask.paste(255, (left, upper, draw(st.integers(left, mask.width)), draw(st.integers(upper, mask.height))))
    return Image.new("RGB", size), mask.convert(draw(st.sampled_from(["1", "L", "RGB", "RGBA", "CMYK", "P"])))


@given(masks(), st.integers(1, 8), st.integers(1, 8))
def test_every_mask_is_fitted_or_refused_and_all_that_is_white_is_redrawn(pair, columns, rows):
    image, mask = pair
    told, fitted = refused(fit_mask, mask, image, 8 * columns, 8 * rows)
    if told:
        assert (mask.size != image.size) == ("of one size" in told)
        assert "of one size" in told or "no white" in told
        return
    assert (fitted.mode, fitted.size) == ("1", (8 * columns, 8 * rows))
    keep = keep_mask(fitted)
    white = np.asarray(fitted).reshape(rows, 8, columns, 8).any(axis=(1, 3))
    assert keep.shape == (1, 1, rows, columns)
    assert (keep[0, 0].numpy() == ~white).all() and white.any()


# time steps


@given(st.integers(-5, 1100), st.floats())
def test_every_strength_keeps_the_lowest_of_the_steps_or_is_refused(steps, strength):
    for timesteps in (lambda: ddim_timesteps(steps), lambda: log_snr_timesteps(steps, SCHEDULE)):
        told, all_steps = refused(timesteps)
        assert (told is None) == (1 <= steps <= 1000)
        if not told:
            told, kept = refused(last_timesteps, all_steps, strength)
            assert (told is None) == (0 <= strength <= 1 and strength * steps >= 1)
            assert told or kept.tolist() == all_steps.tolist()[: int(strength * steps)]


@given(st.sets(st.integers(0, 999), min_size=1, max_size=30))
def test_any_ascending_time_steps_can_be_run(times):
    timesteps = torch.tensor(sorted(times))
    x = randn(2, 4, 2, 2).double()
    ddim, euler, dpm = (
        list(sample(fake_eps, x, SCHEDULE, timesteps=timesteps))
        for sample in (ddim_sample, euler_sample, dpmpp_2m_sample)
    )
    for states in (ddim, euler, dpm):
        assert [state.t for state in states] == sorted(times, reverse=True)
        assert all(state.x_prev.isfinite().all() for state in states)
    assert_close(ddim[-1].x_prev, euler[-1].x_prev, rtol=1e-4, atol=1e-4)


# runs


def mostly(usual, *unusual):
    """Values of `usual`, and now and then one of the others."""
    return st.one_of(usual, usual, usual, st.sampled_from(unusual))


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "steps": mostly(st.integers(1, 4), 0, -1, 1001, 2.5, "3"),
        "guidance_scale": mostly(st.floats(0, 20), -0.1, math.nan, math.inf),
        "guidance_until": mostly(st.integers(0, 1000), -1, 1001, 0.5, "0"),
        "seed": mostly(st.integers(0, 2**63 - 2), -1, 2**63, 1.0),
        "num_images": mostly(st.integers(1, 2), 0, -1, 1.5),
        "width": mostly(st.sampled_from([16, 48, 64]), 0, -16, 8, 17, 16.0),
        "height": mostly(st.sampled_from([16, 32, 64]), 0, -64, 40, 33, 16.0),
        "eta": mostly(st.just(0.0), 0.5, 1.0, -0.1, 1.1, math.nan),
        "sampler": mostly(st.sampled_from(list(SAMPLERS)), "heun", "", None),
    },
)
STRENGTHS = mostly(st.floats(0.2, 1), 0.0, -0.5, 1.5, math.nan, math.inf, 1e-9)


def valid(options) -> bool:
    """Whether a run may be made of these options, where the small model's defaults are 5 steps and 64 pixels."""

    def whole(name, usual, low, high):
        value = options.get(name, usual)
        return isinstance(value, int) and low <= value <= high

    sides = [options.get(name, 64) for name in ("width", "height")]
    eta, sampler, scale = options.get("eta", 0.0), options.get("sampler", "ddim"), options.get("guidance_scale", 3.0)
    n = options.get("num_images", 1)
    return (
        whole("steps", 5, 1, 1000)
        and whole("guidance_until", 0, 0, 1000)
        and whole("num_images", 1, 1, 10)
        and whole("seed", 0, 0, 2**63 - n)
        and all(isinstance(side, int) and side > 0 and side % 16 == 0 for side in sides)
        and math.isfinite(scale) and scale >= 0
        and sampler in SAMPLERS
        and 0 <= eta <= (1 if sampler == "ddim" else 0)
    )  # fmt: skip


def strong_enough(strength, options) -> bool:
    return 0 <= strength <= 1 and strength * options.get("steps", 5) >= 1


def check(told, result, options):
    n = options.get("num_images", 1)
    assert len(result.images) == len(result.latents) == n
    assert result.seeds == [options.get("seed", 0) + k for k in range(n)]
    assert {image.size for image in result.images} == {(options.get("width", 64), options.get("height", 64))}
    assert result.latents.isfinite().all()


@given(SETTINGS)
def test_any_settings_draw_a_picture_or_are_refused(sd, options):
    told, result = refused(sd.text_to_image, "a cat", **options)
    assert (told is None) == valid(options), told
    if not told:
        check(told, result, options)


@given(SETTINGS, STRENGTHS, images())
def test_any_picture_is_drawn_over_or_refused(sd, options, strength, image):
    told, result = refused(sd.image_to_image, image, "a cat", strength=strength, **options)
    assert (told is None) == (valid(options) and strong_enough(strength, options) and image.mode != "F"), told
    if not told:
        check(told, result, options)


@given(SETTINGS, STRENGTHS, images(), st.booleans(), st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_any_part_of_a_picture_is_drawn_anew_or_refused(sd, options, strength, image, paste_back, corner):
    # a box around the middle, which is never cut away
    mask = Image.new("L", image.size)
    x, y = int(corner[0] * image.width / 2), int(corner[1] * image.height / 2)
    mask.paste(255, (x, y, mask.width - x, mask.height - y))
    mask.getexif().update(image.getexif())
    options = options | {"strength": strength, "paste_back": paste_back}
    told, result = refused(sd.inpaint, image, mask, "a cat", **options)
    if told and "no white" in told:
        return
    assert (told is None) == (valid(options) and strong_enough(strength, options) and image.mode != "F"), told
    if not told:
        check(told, result, options)
        if paste_back:
            size = result.images[0].size
            black = ~np.asarray(fit_mask(mask, image, *size))
            for drawn in result.images:
                assert (np.asarray(drawn)[black] == np.asarray(fit_image(image, *size))[black]).all()
