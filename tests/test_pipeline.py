"""Step 7: all of it, on the small model."""

import copy
import warnings
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from conftest import SMALL, needs_bf16, randomize
from PIL import Image

from sd_teach import pipeline
from sd_teach.checkpoint import model_digest
from sd_teach.ddim import ddim_sigma, ddim_step, ddim_timesteps
from sd_teach.diffusion import LatentDiffusion
from sd_teach.exchange import export_diffusers
from sd_teach.guidance import GuidedModel, classifier_free_guidance
from sd_teach.images import fit_image, keep_mask, to_tensor
from sd_teach.noise import q_sample
from sd_teach.packing import can_pack
from sd_teach.pipeline import StableDiffusion, cpu_has_bf16, fastest_device, to_images
from sd_teach.samplers import SAMPLERS
from sd_teach.vae import AutoencoderKL


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


def same(a, b, levels: int = 0) -> bool:
    return a.size == b.size and abs(pixels(a) - pixels(b)).max() <= levels


@pytest.fixture
def idle(monkeypatch):
    """The networks fail when they are used."""

    def used(*_):
        raise AssertionError("a network was run")

    for name in ("get_learned_conditioning", "apply_model", "decode_first_stage"):
        monkeypatch.setattr(LatentDiffusion, name, used)
    monkeypatch.setattr(AutoencoderKL, "encode", used)


# the run


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("scale", "until"), [(1.0, 0), (3.0, 0), (3.0, 501)])  # time steps: 1, 251, 501, 751
def test_a_run_equals_the_same_run_assembled_by_hand(sd, scale, until, eta):
    model, seeds = sd.model, [7, 8]
    with torch.inference_mode():
        states = model.get_learned_conditioning(["a cat", ""])
        cond, uncond = states[0].expand(2, 77, 4), states[1].expand(2, 77, 4)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        x = torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in generators])
        timesteps = ddim_timesteps(4).tolist()
        alphas = model.schedule.alphas_cumprod
        for t, t_prev in zip(timesteps[::-1], [*timesteps[-2::-1], 0], strict=True):
            batch = torch.full((2,), t)
            if scale == 1 or t < until:
                eps = model.apply_model(x, batch, cond)
            else:
                both = model.apply_model(x.repeat(2, 1, 1, 1), batch.repeat(2), torch.cat([uncond, cond]))
                eps = classifier_free_guidance(both[:2], both[2:], scale)
            sigma = ddim_sigma(alphas[t], alphas[t_prev], eta)
            noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators]) if eta else None
            x, _ = ddim_step(x, eps, alphas[t], alphas[t_prev], sigma, noise)
        pictures = model.first_stage_model.decode(x / 0.5)
    result = sd.text_to_image(
        "a cat", seed=7, num_images=2, steps=4, guidance_scale=scale, guidance_until=until, eta=eta
    )
    assert torch.equal(result.latents, x)
    assert all(same(a, b) for a, b in zip(result.images, to_images(pictures), strict=True))


def test_of_one_picture_the_unet_sees_one_latent_with_both_texts(sd, monkeypatch):
    shapes, apply_model = [], LatentDiffusion.apply_model
    monkeypatch.setattr(
        LatentDiffusion,
        "apply_model",
        lambda self, x, t, c: shapes.append((len(x), len(t), len(c))) or apply_model(self, x, t, c),
    )
    for images, scale in ((1, 3.0), (1, 1.0), (2, 3.0)):
        sd.text_to_image("a cat", num_images=images, guidance_scale=scale, steps=1)
    assert shapes == [(1, 1, 2), (1, 1, 1), (4, 4, 4)]


def test_pictures_of_the_small_model_can_tell_right_from_wrong(sd):
    """Grey or saturated ones would be equal for any reason."""
    image = pixels(sd.text_to_image("a cat", seed=1).images[0])
    assert image.std() > 30
    assert ((image > 0) & (image < 255)).mean() > 0.7


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(sd):
    first, again, other = (sd.text_to_image("a cat", seed=seed, eta=0.5).images[0] for seed in (5, 5, 6))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_image_k_of_a_batch_is_the_image_of_its_own_seed(sd, eta):
    batch = sd.text_to_image("a cat", seed=20, num_images=3, eta=eta)
    assert batch.seeds == [20, 21, 22] and len(batch.images) == 3
    for k in range(3):
        alone = sd.text_to_image("a cat", seed=20 + k, eta=eta)
        assert alone.seeds == [20 + k]
        assert same(alone.images[0], batch.images[k], levels=1)


@pytest.mark.parametrize("change", [
    {"prompt": "a rocket"}, {"negative_prompt": "a rocket"}, {"steps": 6}, {"guidance_scale": 4.0},
    {"guidance_until": 500}, {"eta": 1.0},
])  # fmt: skip
def test_every_setting_has_an_effect(sd, change):
    usual = {"prompt": "a cat", "negative_prompt": "", "seed": 1}
    assert not same(sd.text_to_image(**usual).images[0], sd.text_to_image(**usual | change).images[0])


def test_at_scale_0_only_the_negative_prompt_counts(sd):
    one, two = (sd.text_to_image(prompt, "a dog", guidance_scale=0, seed=1).images[0] for prompt in ("a cat", "a pie"))
    assert same(one, two)


def test_none_means_the_models_own_defaults(sd):
    states = []
    usual = sd.text_to_image("a cat", seed=1, callback=states.append)
    told = sd.text_to_image("a cat", seed=1, steps=5, guidance_scale=3.0, width=64, height=64, eta=0.0)
    assert len(states) == 5 and usual.images[0].size == (64, 64)
    assert same(usual.images[0], told.images[0])


@pytest.fixture
def saying(sd, monkeypatch):
    """saying(eta=1.0): from now on the small model says so."""

    def say(**defaults):
        config = sd.model.config
        monkeypatch.setattr(sd.model, "config", replace(config, defaults=replace(config.defaults, **defaults)))

    return say


@pytest.mark.parametrize(("setting", "value", "none"), [("guidance_until", 500, 0), ("eta", 1.0, 0.0)])
def test_a_model_says_until_when_it_is_guided_and_how_much_fresh_noise_is_added(sd, saying, setting, value, none):
    plain = sd.text_to_image("a cat", seed=1).images[0]
    saying(**{setting: value})
    usual = sd.text_to_image("a cat", seed=1).images[0]
    assert same(usual, sd.text_to_image("a cat", seed=1, **{setting: value}).images[0])
    assert not same(usual, plain)
    assert same(plain, sd.text_to_image("a cat", seed=1, **{setting: none}).images[0])  # 0 is a value


def test_a_models_fresh_noise_is_ddims_alone(sd, saying):
    plain = sd.text_to_image("a cat", seed=1, sampler="euler").images[0]
    saying(eta=1.0)
    assert same(plain, sd.text_to_image("a cat", seed=1, sampler="euler").images[0])


def test_an_empty_prompt_draws_the_unconditional_picture(sd):
    empty = sd.text_to_image("", seed=1).images[0]
    assert same(empty, sd.text_to_image("a cat", seed=1, guidance_scale=0).images[0], levels=1)


@pytest.mark.parametrize(("width", "height"), [(16, 16), (48, 32), (32, 80)])
def test_width_and_height_are_those_of_the_picture(sd, width, height):
    result = sd.text_to_image("a cat", width=width, height=height, steps=1)
    assert result.images[0].size == (width, height) and result.images[0].mode == "RGB"
    assert result.latents.shape == (1, 4, height // 8, width // 8)


def test_the_callback_sees_every_step(sd):
    states = []
    result = sd.text_to_image("a cat", steps=4, num_images=2, callback=states.append)
    assert [(state.index, state.t) for state in states] == [(0, 751), (1, 501), (2, 251), (3, 1)]
    assert all(state.pred_x0.shape == (2, 4, 8, 8) for state in states)
    assert torch.equal(states[-1].x_prev, result.latents)


def test_a_callback_changes_nothing(sd):
    with_callback = sd.text_to_image("a cat", seed=3, eta=1.0, callback=lambda state: None)
    assert torch.equal(with_callback.latents, sd.text_to_image("a cat", seed=3, eta=1.0).latents)


def test_prompts_reach_the_text_encoder_as_they_were_written(sd, monkeypatch):
    seen = []
    encode = LatentDiffusion.get_learned_conditioning
    monkeypatch.setattr(
        LatentDiffusion, "get_learned_conditioning", lambda self, prompts: seen.extend(prompts) or encode(self, prompts)
    )
    prompts = ["  Ein KÄTZCHEN,\tbest quality!! ", "\nnicht (das:1.2)  "]
    sd.text_to_image(*prompts, steps=1)
    assert seen == prompts


def test_the_global_generator_is_left_alone(sd):
    before = torch.get_rng_state()
    sd.text_to_image("a cat", eta=1.0, steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_weights_are_left_alone(sd):
    before = {name: tensor.clone() for name, tensor in sd.model.state_dict().items()}
    sd.text_to_image("a cat", steps=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sd.model.state_dict().items())


# what is refused, and what is warned of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must lie between 1 and 1000, got 0"),
        ({"steps": 1001}, "steps must lie between 1 and 1000, got 1001"),
        ({"guidance_scale": -0.5}, "guidance scale must be a number of 0 or more, got -0.5"),
        ({"guidance_scale": float("nan")}, "guidance scale"),
        ({"guidance_scale": float("inf")}, "guidance scale"),
        ({"guidance_until": -1}, "guidance_until must lie between 0 and 1000, got -1"),
        ({"guidance_until": 1001}, "guidance_until must lie between 0 and 1000, got 1001"),
        ({"guidance_until": 0.3}, "guidance_until must be a whole number, got 0.3"),
        ({"seed": -1}, "seed must lie between"),
        ({"seed": 2**63 - 1, "num_images": 2}, "seed must lie between"),
        ({"num_images": 0}, "number of images must be at least 1, got 0"),
        ({"width": 0}, "multiples of 16, got 0 x 64"),
        ({"height": -16}, "multiples of 16, got 64 x -16"),
        ({"width": 56}, "multiples of 16, got 56 x 64"),
        ({"height": 65}, "multiples of 16, got 64 x 65"),
        ({"eta": -0.1}, "eta must lie between 0 and 1, got -0.1"),
        ({"eta": 1.5}, "eta must lie between 0 and 1, got 1.5"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"seed": "7"}, "seed must be a whole number, got '7'"),
        ({"num_images": 1.0}, "num_images must be a whole number, got 1.0"),
        ({"width": 64.0}, "width must be a whole number, got 64.0"),
        ({"sampler": "heun"}, "no sampler 'heun': give ddim, euler, dpm-solver"),
        ({"sampler": "euler", "eta": 0.5}, "eta is DDIM's, euler adds no fresh noise: leave it at 0, got 0.5"),
        ({"sampler": "dpm-solver++", "eta": 1.0}, "eta is DDIM's"),
    ],
)
def test_what_is_out_of_range_is_refused_before_any_work(sd, idle, options, message):
    with pytest.raises(ValueError, match=message):
        sd.text_to_image("a cat", **options)


@pytest.mark.parametrize("prompts", [(["a cat", "a dog"],), (None,), ("a cat", None), (b"a cat", "")])
def test_what_is_no_text_is_refused_as_a_prompt(sd, idle, prompts):
    with pytest.raises(ValueError, match="prompt and negative prompt must be text, got "):
        sd.text_to_image(*prompts)


def test_a_run_that_leaves_the_numbers_is_refused_instead_of_drawn(sd):
    with pytest.raises(ValueError, match="grew beyond all numbers: give a smaller guidance scale"):
        sd.text_to_image("a cat", guidance_scale=1e30)


def test_numpys_whole_numbers_are_whole_numbers(sd):
    assert sd.text_to_image("a cat", steps=np.int64(2), seed=np.int32(7)).seeds == [7]


def test_a_negative_prompt_at_scale_1_is_warned_of_where_it_was_written(sd):
    with pytest.warns(UserWarning, match="at scale 1 the negative prompt has no effect") as caught:
        warned = sd.text_to_image("a cat", "a dog", guidance_scale=1, steps=2)
    assert [warning.filename for warning in caught] == [__file__]
    assert same(warned.images[0], sd.text_to_image("a cat", guidance_scale=1, steps=2).images[0])


def test_a_negative_prompt_is_warned_of_where_no_step_is_guided(sd):
    with pytest.warns(UserWarning, match="below guidance_until, 502, the negative prompt has no effect"):
        warned = sd.text_to_image("a cat", "a dog", guidance_scale=3, guidance_until=502, steps=2)  # at 501 and 1
    assert same(warned.images[0], sd.text_to_image("a cat", guidance_scale=3, guidance_until=502, steps=2).images[0])


ORDINARY = [
    {"guidance_scale": 1},
    {"negative_prompt": "a dog", "guidance_scale": 1.5},
    {"negative_prompt": "a dog", "guidance_scale": 1.5, "guidance_until": 501, "steps": 2},
    {"negative_prompt": "a dog", "guidance_scale": 0.5, "guidance_until": 1000},
    {},
]


@pytest.mark.parametrize("options", ORDINARY)
def test_ordinary_runs_do_not_warn(sd, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sd.text_to_image("a cat", **{"steps": 1, **options}).images


def test_the_words_an_over_long_prompt_loses_are_named(sd):
    with pytest.warns(UserWarning, match="dropped: 'rocket'"):
        sd.text_to_image("a " * 75 + "rocket", steps=1)


# samplers


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_sampler_asked_for_is_the_one_that_runs(sd, sampler):
    states = []
    result = sd.text_to_image("a cat", seed=3, num_images=2, steps=6, sampler=sampler, callback=states.append)
    with torch.inference_mode():
        cond, uncond = (each.expand(2, 77, 4) for each in sd.model.get_learned_conditioning(["a cat", ""]).chunk(2))
        x_T = draw(generators(3, 4))
        guided = GuidedModel(sd.model.apply_model, cond, uncond, 3.0)
        by_hand = list(SAMPLERS[sampler](guided, x_T, sd.model.schedule, 6))
    assert [state.t for state in states] == [state.t for state in by_hand]
    torch.testing.assert_close(result.latents, by_hand[-1].x_prev, rtol=0, atol=1e-5)


def test_euler_draws_the_picture_of_ddim_and_dpm_solver_another(sd):
    ddim, euler, dpm = (sd.text_to_image("a cat", seed=3, steps=6, sampler=sampler).images[0] for sampler in SAMPLERS)
    assert same(ddim, euler, levels=1)
    assert not same(ddim, dpm, levels=1)


# from a picture


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """Smooth colours, all over."""
    levels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def mask(*box: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    image = Image.new("L", size)
    image.paste(255, box)
    return image


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(each: list[torch.Generator]) -> torch.Tensor:
    return torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in each])


def redraw_by_hand(sd, image, steps, count, scale, eta, each, keep=None, from_noise=False):
    """The loop of the seed: noise to the first time step, then denoise; with a mask, put the rest back before each."""
    model, alphas = sd.model, sd.model.schedule.alphas_cumprod
    n = len(each)
    states = model.get_learned_conditioning(["a cat", "a dog"])
    cond, uncond = states[0].expand(n, 77, 4), states[1].expand(n, 77, 4)
    x_T = draw(each)
    posterior = model.first_stage_model.encode(to_tensor(image))
    x0 = 0.5 * torch.cat([posterior.sample(generator) for generator in each])
    timesteps = ddim_timesteps(steps).tolist()[:count]
    start = alphas[timesteps[-1]]
    x = x_T if from_noise else start.sqrt() * x0 + (1 - start).sqrt() * x_T
    for t, t_prev in zip(timesteps[::-1], [*timesteps[-2::-1], 0], strict=True):
        if keep is not None:
            x = keep * (alphas[t].sqrt() * x0 + (1 - alphas[t]).sqrt() * draw(each)) + (1 - keep) * x
        both = model.apply_model(x.repeat(2, 1, 1, 1), torch.full((2 * n,), t), torch.cat([uncond, cond]))
        eps = classifier_free_guidance(both[:n], both[n:], scale)
        sigma = ddim_sigma(alphas[t], alphas[t_prev], eta)
        x, _ = ddim_step(x, eps, alphas[t], alphas[t_prev], sigma, draw(each) if eta else None)
    return x if keep is None else keep * x0 + (1 - keep) * x


SETTINGS = {"seed": 7, "num_images": 2, "steps": 5, "guidance_scale": 3.0}


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("strength", "count"), [(0.2, 1), (0.6, 3), (0.75, 3), (1.0, 5)])
def test_image_to_image_equals_the_same_run_assembled_by_hand(sd, strength, count, eta):
    result = sd.image_to_image(picture(), "a cat", "a dog", strength=strength, eta=eta, **SETTINGS)
    with torch.inference_mode():
        latents = redraw_by_hand(sd, picture(), 5, count, 3.0, eta, generators(7, 8))
        images = to_images(sd.model.first_stage_model.decode(latents / 0.5))
    torch.testing.assert_close(result.latents, latents, rtol=0, atol=1e-5)
    assert result.seeds == [7, 8]
    assert all(same(a, b, levels=1) for a, b in zip(result.images, images, strict=True))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("strength", "count"), [(0.6, 3), (1.0, 5)])
def test_inpainting_equals_the_same_run_assembled_by_hand(sd, strength, count, eta):
    keep = torch.ones(8, 8)
    keep[1:5, 2:6] = 0
    result = sd.inpaint(picture(), mask(16, 8, 48, 40), "a cat", "a dog", strength=strength, eta=eta, **SETTINGS)
    with torch.inference_mode():
        latents = redraw_by_hand(sd, picture(), 5, count, 3.0, eta, generators(7, 8), keep, from_noise=strength == 1)
    torch.testing.assert_close(result.latents, latents, rtol=0, atol=1e-5)


def test_the_default_strength_is_three_quarters_and_all_for_inpainting(sd):
    seen = []
    sd.image_to_image(picture(), "a cat", steps=8, callback=lambda state: seen.append(state.t))
    assert seen == ddim_timesteps(8).tolist()[5::-1]
    seen.clear()
    sd.inpaint(picture(), mask(0, 0, 32, 32), "a cat", steps=8, callback=lambda state: seen.append(state.t))
    assert seen == ddim_timesteps(8).tolist()[::-1]


def test_outside_the_mask_the_latent_is_the_encoders_and_inside_it_is_not(sd):
    result = sd.inpaint(picture(), mask(16, 8, 48, 40), "a cat", seed=4)
    (each,) = generators(4)
    draw([each])
    x0 = 0.5 * sd.model.first_stage_model.encode(to_tensor(picture())).sample(each)
    kept = keep_mask(mask(16, 8, 48, 40).convert("1")).bool().expand(1, 4, 8, 8)
    assert torch.equal(result.latents[kept], x0[kept])
    assert (result.latents - x0)[~kept].abs().mean() > 0.1


def test_paste_back_keeps_the_pictures_own_pixels_exactly_and_only_there(sd):
    white = pixels(mask(16, 8, 48, 40)) > 0
    plain, pasted = (
        sd.inpaint(picture(), mask(16, 8, 48, 40), "a cat", seed=4, num_images=2, paste_back=paste_back)
        for paste_back in (False, True)
    )
    assert torch.equal(plain.latents, pasted.latents)
    for drawn, image in zip(plain.images, pasted.images, strict=True):
        assert (pixels(image)[~white] == pixels(picture())[~white]).all()
        assert (pixels(image)[white] == pixels(drawn)[white]).all()
        assert not (pixels(drawn)[~white] == pixels(picture())[~white]).all()


def test_a_mask_that_is_white_all_over_draws_the_picture_of_the_prompt(sd):
    """Nothing of the picture is left, and at strength 1 the run starts from the noise of text to image."""
    all_white = sd.inpaint(picture(), mask(0, 0, 64, 64), "a cat", seed=4)
    assert same(all_white.images[0], sd.text_to_image("a cat", seed=4).images[0], levels=1)


def test_the_redrawn_part_starts_from_the_picture_below_strength_1(sd):
    states = []
    sd.inpaint(picture(), mask(0, 0, 64, 64), "a cat", seed=4, strength=0.8, callback=states.append)
    (each,) = generators(4)
    noise = draw([each])
    x0 = 0.5 * sd.model.first_stage_model.encode(to_tensor(picture())).sample(each)
    start = q_sample(x0, torch.tensor([states[0].t]), noise, sd.model.schedule)
    torch.testing.assert_close(states[0].x, start, rtol=0, atol=1e-6)


def redraw(sd, image, **options):
    return sd.image_to_image(image, "a cat", **options)


def inpaint(sd, image, **options):
    return sd.inpaint(image, mask(16, 8, 48, 40), "a cat", **options)


BOTH = pytest.mark.parametrize("method", [redraw, inpaint])


@BOTH
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_k_of_a_batch_is_the_image_of_its_own_seed_from_a_picture_too(sd, method, sampler):
    batch = method(sd, picture(), seed=20, num_images=3, sampler=sampler)
    for k in range(3):
        assert same(method(sd, picture(), seed=20 + k, sampler=sampler).images[0], batch.images[k], levels=1)


@BOTH
def test_the_picture_the_strength_and_every_setting_have_an_effect(sd, method):
    usual = method(sd, picture(), seed=1, strength=0.6).images[0]
    assert same(usual, method(sd, picture(), seed=1, strength=0.6).images[0])
    assert not same(usual, method(sd, picture(seed=1), seed=1, strength=0.6).images[0])
    for change in ({"strength": 0.8}, {"seed": 2}, {"steps": 10}, {"guidance_scale": 1.0}, {"guidance_until": 500},
                   {"eta": 1.0}, {"sampler": "dpm-solver++"}, {"negative_prompt": "a dog"}):  # fmt: skip
        assert not same(usual, method(sd, picture(), **{"seed": 1, "strength": 0.6} | change).images[0]), change


@pytest.mark.parametrize(("width", "height"), [(16, 16), (48, 32), (32, 80)])
def test_pictures_are_cut_to_the_sides_asked_for(sd, width, height):
    image = picture(100, 70)
    redrawn = sd.image_to_image(image, "a cat", width=width, height=height, steps=2, strength=0.5).images[0]
    assert redrawn.size == (width, height)
    white = mask(50, 35, 51, 36, size=(100, 70))
    white.paste(255, (40, 25, 60, 45))
    part = sd.inpaint(image, white, "a cat", width=width, height=height, steps=2, paste_back=True).images[0]
    assert part.size == (width, height)
    assert (pixels(part)[0] == pixels(fit_image(image, width, height))[0]).all()


@BOTH
def test_the_pictures_given_are_left_alone(sd, method):
    image = picture(100, 70)
    before = image.copy()
    method(sd, image.resize((64, 64)), steps=2)
    assert same(image, before)


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -0.1}, "strength must lie between 0 and 1, got -0.1"),
        ({"strength": 1.01}, "strength must lie between 0 and 1, got 1.01"),
        ({"strength": float("nan")}, "strength must lie between 0 and 1, got nan"),
        ({"strength": 0.0}, "strength of 0.0 leaves none of 5 steps"),
        ({"strength": 0.19}, "strength of 0.19 leaves none of 5 steps"),
        ({"steps": 0}, "steps must lie between 1 and 1000, got 0"),
        ({"width": 56}, "multiples of 16, got 56 x 64"),
        ({"sampler": "euler", "eta": 0.5}, "eta is DDIM's"),
        ({"image": Image.new("F", (64, 64))}, "floating-point"),
        ({"image": None}, "PIL images, got NoneType"),
    ],
)
def test_what_is_out_of_range_is_refused_before_any_work_from_a_picture_too(sd, idle, method, options, message):
    with pytest.raises(ValueError, match=message):
        method(sd, **{"image": picture()} | options)


def test_a_mask_that_cannot_be_used_is_refused_before_any_work(sd, idle):
    with pytest.raises(ValueError, match="of one size, got 32 x 64 and 64 x 64"):
        sd.inpaint(picture(), mask(0, 0, 9, 9, size=(32, 64)), "a cat")
    with pytest.raises(ValueError, match="no white"):
        sd.inpaint(picture(), mask(0, 0, 0, 0), "a cat")


@BOTH
def test_a_negative_prompt_at_scale_1_is_warned_of_where_a_picture_is_given_too(sd, method):
    with pytest.warns(UserWarning, match="at scale 1 the negative prompt has no effect") as caught:
        method(sd, picture(), negative_prompt="a dog", guidance_scale=1, steps=2)
    assert [warning.filename for warning in caught] == [__file__]


# pixels


def test_pixels_are_clamped_scaled_and_rounded():
    values = torch.tensor([-7.0, -1.0, -0.999, 0.0, 0.1, 0.999, 1.0, 7.0])
    (image,) = to_images(values.expand(1, 3, 1, 8))
    # truncation would give 127, 139 and 254 for 0, 0.1 and 0.999; 127.5 rounds to the even 128
    assert pixels(image)[0, :, 0].tolist() == [0, 0, 0, 128, 140, 255, 255, 255]


def test_every_grey_level_comes_back_from_where_it_belongs():
    levels = torch.arange(256)
    for shift in (-0.4, 0.0, 0.4):
        (image,) = to_images(((levels + shift) / 127.5 - 1).expand(1, 3, 1, 256))
        assert pixels(image)[0, :, 0].tolist() == levels.tolist()


def test_channels_and_sides_keep_their_places():
    picture = torch.full((1, 3, 2, 5), -1.0)
    picture[0, 0, 0, :] = 1.0  # red above
    picture[0, 2, 1, 4] = 1.0  # blue below, at the right
    (image,) = to_images(picture)
    assert image.size == (5, 2) and image.mode == "RGB"
    assert image.getpixel((3, 0)) == (255, 0, 0)
    assert image.getpixel((4, 1)) == (0, 0, 255)


def test_to_images_leaves_its_input_alone():
    picture = torch.full((2, 3, 4, 4), 3.0)
    assert len(to_images(picture)) == 2
    assert (picture == 3).all()


# loading


def test_from_pretrained_gives_a_frozen_model(sd):
    assert not any(parameter.requires_grad for parameter in sd.model.parameters())
    assert {parameter.device.type for parameter in sd.model.parameters()} == {"cpu"}


def test_the_package_offers_the_class_itself():
    import sd_teach

    assert sd_teach.StableDiffusion is StableDiffusion
    with pytest.raises(AttributeError, match="has no attribute 'StableDifusion'"):
        _ = sd_teach.StableDifusion


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "hpu", "meta"])
def test_a_device_that_cannot_be_used_is_refused(small_folder, device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
        StableDiffusion.from_pretrained(small_folder, device)


def test_a_model_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match='no model at "nowhere"'):
        StableDiffusion.from_pretrained("nowhere", "cpu")


@pytest.mark.parametrize(
    ("dtype", "has_bf16"), [(torch.float16, True), (torch.float16, False), (torch.bfloat16, False)]
)
@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_half_precision_is_refused_where_the_cpu_does_not_compute_in_it(
    small_folder, monkeypatch, dtype, has_bf16, device
):
    monkeypatch.setattr(pipeline, "cpu_has_bf16", lambda: has_bf16)
    with pytest.raises(ValueError, match="this CPU does not compute in"):
        StableDiffusion.from_pretrained(small_folder, device, dtype)


@pytest.mark.parametrize("has_bf16", [pytest.param(True, marks=needs_bf16), False])
def test_a_large_model_on_a_cpu_runs_in_bfloat16_where_it_can_and_a_small_one_does_not(
    small_folder, monkeypatch, has_bf16
):
    monkeypatch.setattr(pipeline, "cpu_has_bf16", lambda: has_bf16)
    dtypes = []
    for large in (10**9, 0):
        monkeypatch.setattr(pipeline, "LARGE", large)
        model = StableDiffusion.from_pretrained(small_folder, "cpu").model
        assert model.first_stage_model.encoder.norm_out.weight.dtype == torch.float32
        dtypes.append(model.model.diffusion_model.out[0].weight.dtype)
    assert dtypes == [torch.float32, torch.bfloat16 if has_bf16 else torch.float32]
    exact = StableDiffusion.from_pretrained(small_folder, "cpu", torch.float32).model
    assert exact.model.diffusion_model.out[0].weight.dtype == torch.float32


def test_only_on_a_cpu_is_a_large_model_packed_and_half_precision_refused(small_folder, monkeypatch):
    seen, load = [], pipeline.load_model
    monkeypatch.setattr(pipeline, "LARGE", 0)
    monkeypatch.setattr(pipeline, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(pipeline, "can_pack", lambda: True)
    monkeypatch.setattr(pipeline, "load_model", lambda name, *how: seen.append(how) or load(name, how[0]))
    for dtype in (None, torch.float16):
        with pytest.raises(ValueError, match="device 'cuda:99' cannot be used"):
            StableDiffusion.from_pretrained(small_folder, "cuda:99", dtype)
    assert seen == [(torch.float32, None), (torch.float16, None)]


@pytest.fixture
def plain_bf16(monkeypatch):
    """A CPU that has bfloat16, but no packed layers."""
    monkeypatch.setattr(pipeline, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(pipeline, "can_pack", lambda: False)


def test_a_diffusers_folder_is_as_large_as_the_files_in_its_folders(sd, tmp_path, monkeypatch, plain_bf16):
    export_diffusers(sd.model, tmp_path / "twin")
    files = sorted((tmp_path / "twin").rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    for large, dtype in ((size, torch.bfloat16), (size + 1, torch.float32)):
        monkeypatch.setattr(pipeline, "LARGE", large)
        model = StableDiffusion.from_pretrained(tmp_path / "twin", "cpu").model
        assert model.model.diffusion_model.out[0].weight.dtype == dtype
    assert model_digest(tmp_path / "twin") == sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_a_single_file_is_as_large_as_it_is(sd, tmp_path, monkeypatch, plain_bf16):
    seen, file = [], tmp_path / "model.ckpt"
    file.write_bytes(bytes(1000))
    monkeypatch.setattr(pipeline, "load_model", lambda name, *how: seen.append(how[0]) or copy.deepcopy(sd.model))
    for large in (1000, 1001):
        monkeypatch.setattr(pipeline, "LARGE", large)
        StableDiffusion.from_pretrained(file, "cpu")
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_diffusers_folder_in_half_precision_has_a_decoder_in_float32(sd, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(pipeline, "cpu_has_bf16", lambda: True)
    export_diffusers(copy.deepcopy(sd.model).half(), tmp_path / "half")
    model = StableDiffusion.from_pretrained(tmp_path / "half", "cpu", dtype).model
    parts = (model.first_stage_model, torch.float32), (model.model, dtype), (model.cond_stage_model, dtype)
    assert all(parameter.dtype == wanted for part, wanted in parts for parameter in part.parameters())


@pytest.mark.skipif(not can_pack(), reason="this machine has no packed layers")
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
def test_a_large_model_is_packed_and_draws_the_same_picture(small_folder, sd, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(pipeline, "cpu_has_bf16", lambda: True)
    export_diffusers(sd.model, tmp_path / "diffusers")
    plain = StableDiffusion.from_pretrained(small_folder, "cpu", dtype)
    monkeypatch.setattr(pipeline, "LARGE", 0)
    expected = plain.text_to_image("a cat", seed=1, steps=2, guidance_scale=3.0)
    for name in (small_folder, tmp_path / "diffusers"):
        packed = StableDiffusion.from_pretrained(name, "cpu", dtype)
        leaves = (*packed.model.model.modules(), *packed.model.first_stage_model.modules())
        assert not any(isinstance(leaf, torch.nn.Linear | torch.nn.Conv2d) for leaf in leaves)
        result = packed.text_to_image("a cat", seed=1, steps=2, guidance_scale=3.0)
        if dtype == torch.float32:
            assert same(result.images[0], expected.images[0], levels=1)
        apart = (result.latents - expected.latents).norm() / expected.latents.norm()
        assert apart < (1e-5 if dtype == torch.float32 else 0.05)


@needs_bf16
def test_a_run_in_bfloat16_keeps_its_latents_in_float32(small_folder, sd, monkeypatch):
    monkeypatch.setattr(pipeline, "cpu_has_bf16", lambda: True)
    half = StableDiffusion.from_pretrained(small_folder, "cpu", torch.bfloat16)
    states = []
    result = half.text_to_image("a cat", seed=1, steps=2, callback=states.append)
    assert all(tensor.dtype == torch.float32 for s in states for tensor in (s.x, s.eps, s.pred_x0, s.x_prev))
    exact = sd.text_to_image("a cat", seed=1, steps=2)
    assert not torch.equal(result.latents, exact.latents)
    # bfloat16 keeps 8 binary digits
    assert (result.latents - exact.latents).norm() / exact.latents.norm() < 0.05


@pytest.mark.parametrize(
    ("cuda", "mps", "name"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_fastest_device_there_is_is_chosen(monkeypatch, cuda, mps, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert fastest_device() == name


def test_without_a_device_the_fastest_is_used(small_folder, monkeypatch):
    monkeypatch.setattr(pipeline, "fastest_device", lambda: "toaster")
    with pytest.raises(ValueError, match="device 'toaster' cannot be used"):
        StableDiffusion.from_pretrained(small_folder)


def test_everything_of_a_run_is_where_the_weights_are():
    with torch.device("meta"):
        model = LatentDiffusion(SMALL)
    run = pipeline._Run(model, "a cat", "", steps=2, eta=1.0, num_images=2)
    assert run.x_T.device.type == run.noise(run.x_T).device.type == "meta"
    assert run.encode(picture()).device.type == run.denoise(run.x_T, run.timesteps).device.type == "meta"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_one_number_that_is_none_is_enough_to_refuse_a_run(sd, number):
    latents = torch.zeros(2, 4, 8, 8)
    latents[1, 0, 0, 0] = number
    with pytest.raises(ValueError, match="grew beyond all numbers"):
        pipeline._Run(sd.model, "a cat", "", num_images=2).result(latents)


def test_the_latent_is_as_large_as_the_vae_makes_it():
    model = LatentDiffusion(replace(SMALL, vae=replace(SMALL.vae, ch_mult=(1, 2))))
    result = StableDiffusion(randomize(model)).text_to_image("a cat", width=16, height=16, steps=1)
    assert result.latents.shape == (1, 4, 8, 8) and result.images[0].size == (16, 16)


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (False, True), (True, False), (True, True)])
def test_either_kind_of_bfloat16_in_hardware_counts(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert cpu_has_bf16() == (avx512 or amx)
