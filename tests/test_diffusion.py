import hashlib
import re
from collections import Counter
from dataclasses import FrozenInstanceError

import pytest
import torch
from conftest import normal
from parity.diffusers_twins import checkpoint_listing, randomise
from torch import nn
from torch.testing import assert_close

from sd_teach.diffusion import Defaults, DiffusionWrapper, LatentDiffusion, ModelConfig
from sd_teach.noise import NoiseSchedule, ScheduleConfig
from sd_teach.text_encoder import TextConfig
from sd_teach.unet import UNetConfig, UNetModel
from sd_teach.vae import VAEConfig

SMALL = ModelConfig(
    text=TextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2),
    unet=UNetConfig(
        model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2, 1), num_heads=2,
        context_dim=16, norm_groups=4,
    ),
    vae=VAEConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def sd_v1_5():
    """Stable Diffusion v1.5: names and shapes, no numbers."""
    with torch.device("meta"):
        return LatentDiffusion()


@pytest.fixture
def small():
    return randomise(LatentDiffusion(SMALL))


# --- the real checkpoint's names and shapes

# sha256 of the sorted lines "name dxdxd\n" of all network tensors of v1-5-pruned-emaonly.safetensors
SD_V1_5 = "055d680c6c7f608b03ec7e0554cb02fbdd498bb1bdcc49d6c84206a585662d57"


def lines(listing):
    return sorted(f"{name} {'x'.join(map(str, shape))}\n" for name, shape in listing.items())


def digest(listing):
    return hashlib.sha256("".join(lines(listing)).encode()).hexdigest()


def our_listing(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def assert_is_sd_v1_5(listing):
    """By the digest; where that fails, by name, against the listing made from the other libraries' models."""
    if digest(listing) != SD_V1_5:
        found, expected = set(lines(listing)), set(lines(checkpoint_listing(ModelConfig())))
        differing = [f"  missing: {line}" for line in sorted(expected - found)]
        differing += [f"  not in the checkpoint: {line}" for line in sorted(found - expected)]
        pytest.fail(f"{len(listing)} tensors, {len(differing)} lines differ:\n{''.join(differing)}")


def test_the_names_and_shapes_are_those_of_the_real_checkpoint(sd_v1_5):
    listing = our_listing(sd_v1_5)
    assert len(listing) == 1130
    assert_is_sd_v1_5(listing)


def test_the_listing_that_names_the_differences_is_itself_the_real_checkpoints():
    assert digest(checkpoint_listing(ModelConfig())) == SD_V1_5


NAME = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def renamed(listing):
    return {name.replace(NAME, NAME.replace("to_k", "key")): shape for name, shape in listing.items()}


def reshaped(listing):
    return listing | {NAME: (768, 320)}


def shortened(listing):
    return {name: shape for name, shape in listing.items() if name != NAME}


def lengthened(listing):
    return listing | {"betas": (1000,)}


MISSING, EXTRA = f"missing: {NAME} 320x768\n", "not in the checkpoint: "


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (renamed, [MISSING, f"{EXTRA}{NAME.replace('to_k', 'key')} 320x768\n"]),
        (reshaped, [MISSING, f"{EXTRA}{NAME} 768x320\n"]),
        (shortened, [MISSING]),
        (lengthened, [f"{EXTRA}betas 1000\n"]),
    ],
)
def test_a_name_or_shape_that_differs_is_printed_and_no_other_is(sd_v1_5, break_it, told):
    with pytest.raises(pytest.fail.Exception) as failure:
        assert_is_sd_v1_5(break_it(our_listing(sd_v1_5)))
    head, *printed = str(failure.value).splitlines(keepends=True)
    assert head.endswith(f"{len(told)} lines differ:\n")
    assert [line.lstrip() for line in printed] == told


def test_the_networks_have_the_real_numbers_of_parameters(sd_v1_5):
    counts = Counter()
    for name, parameter in sd_v1_5.named_parameters():
        counts[name.split(".")[0]] += parameter.numel()
    assert counts == {"model": 859_520_964, "first_stage_model": 83_653_863, "cond_stage_model": 123_060_480}


@pytest.mark.parametrize(
    "config", [SMALL, ModelConfig(unet=UNetConfig(attention_resolutions=(8, 1)))], ids=["small", "attention at 8 and 1"]
)
def test_other_configs_have_the_names_and_shapes_they_should(config):
    with torch.device("meta"):
        network = LatentDiffusion(config)
    assert lines(our_listing(network)) == lines(checkpoint_listing(config))


# --- every norm's eps

UNET, VAE, TEXT = r"model\.diffusion_model\.", r"first_stage_model\.", r"cond_stage_model\.transformer\.text_model\."
EPS = [  # which norms, what they are, their eps, how many there are
    (UNET + r"(input|output|middle)_blocks?\.[\d.]*in_layers\.0", nn.GroupNorm, 1e-5, 22),
    (UNET + r"(input|output|middle)_blocks?\.[\d.]*out_layers\.0", nn.GroupNorm, 1e-5, 22),
    (UNET + r"out\.0", nn.GroupNorm, 1e-5, 1),
    (UNET + r"(input|output|middle)_blocks?\.[\d.]*\.norm", nn.GroupNorm, 1e-6, 16),
    (UNET + r".*\.transformer_blocks\.0\.norm[123]", nn.LayerNorm, 1e-5, 48),
    (VAE + r"(encoder|decoder)\..*\.block[._]\d\.norm[12]", nn.GroupNorm, 1e-6, 48),
    (VAE + r"(encoder|decoder)\.mid\.attn_1\.norm", nn.GroupNorm, 1e-6, 2),
    (VAE + r"(encoder|decoder)\.norm_out", nn.GroupNorm, 1e-6, 2),
    (TEXT + r"encoder\.layers\.\d+\.layer_norm[12]", nn.LayerNorm, 1e-5, 24),
    (TEXT + r"final_layer_norm", nn.LayerNorm, 1e-5, 1),
]


def norms(network):
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.GroupNorm | nn.LayerNorm)}


@pytest.mark.parametrize(("pattern", "kind", "eps", "count"), EPS, ids=[row[0] for row in EPS])
def test_every_norm_has_its_own_eps(sd_v1_5, pattern, kind, eps, count):
    found = {name: norm for name, norm in norms(sd_v1_5).items() if re.fullmatch(pattern, name)}
    assert len(found) == count
    assert {type(norm) for norm in found.values()} == {kind}
    assert {name: norm.eps for name, norm in found.items()} == dict.fromkeys(found, eps)


def test_the_table_of_eps_covers_every_norm_once(sd_v1_5):
    covered = Counter(name for name in norms(sd_v1_5) for pattern, *_ in EPS if re.fullmatch(pattern, name))
    assert covered == dict.fromkeys(norms(sd_v1_5), 1)


def test_every_group_norm_has_32_groups(sd_v1_5):
    assert {norm.num_groups for norm in norms(sd_v1_5).values() if isinstance(norm, nn.GroupNorm)} == {32}


# --- how the networks are joined


def test_the_scale_factor_and_the_defaults_are_stable_diffusions():
    config = ModelConfig()
    assert config.scale_factor == 0.18215
    assert config.defaults == Defaults(image_size=512, steps=20, guidance_scale=7.5, guidance_until=0, eta=0.0)
    assert config.schedule == ScheduleConfig(num_timesteps=1000, beta_start=0.00085, beta_end=0.012)


@pytest.mark.parametrize(("config", "multiple"), [(ModelConfig(), 64), (SMALL, 4)], ids=["sd", "small"])
def test_sides_must_be_multiples_of_both_networks_downsamplings(config, multiple):
    assert config.size_multiple == multiple


@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig().unet, ModelConfig().vae, ModelConfig().text], ids=type)
def test_configs_cannot_be_changed(config):
    with pytest.raises(FrozenInstanceError):
        config.norm_groups = 1


def test_the_schedule_is_real_even_on_meta_and_stands_in_no_checkpoint(sd_v1_5):
    assert torch.equal(sd_v1_5.schedule.alphas_cumprod, NoiseSchedule().alphas_cumprod)
    assert [name for name, _ in sd_v1_5.named_buffers() if "position_ids" not in name] == []


def test_decoding_divides_by_the_scale_factor_and_leaves_the_latent_as_it_was(small):
    z = normal(2, 4, 4, 6)
    before = z.clone()
    picture = small.decode_first_stage(z)
    assert torch.equal(z, before)
    assert_close(picture, small.first_stage_model.decode(before / 0.18215), rtol=0, atol=1e-6)


def test_encoding_samples_the_posterior_and_multiplies_by_the_scale_factor(small):
    pictures = normal(2, 3, 8, 12)
    before = pictures.clone()
    latent = small.encode_first_stage(pictures, torch.Generator().manual_seed(5))
    posterior = small.first_stage_model.encode(before)
    assert torch.equal(pictures, before)
    assert_close(latent, 0.18215 * posterior.sample(torch.Generator().manual_seed(5)), rtol=0, atol=1e-6)
    assert (latent - 0.18215 * posterior.mode()).std() > 0.01


def test_the_autoencoder_itself_knows_no_scale_factor():
    config = ModelConfig(text=SMALL.text, unet=SMALL.unet, vae=SMALL.vae, scale_factor=0.5)
    half, small = randomise(LatentDiffusion(config)), randomise(LatentDiffusion(SMALL))
    z = normal(1, 4, 4, 6)
    assert torch.equal(half.first_stage_model.decode(z), small.first_stage_model.decode(z))
    assert_close(half.decode_first_stage(z), small.decode_first_stage(z * 2 * 0.18215), rtol=0, atol=1e-5)


def test_learned_conditioning_is_the_text_encoders_last_layer(small):
    states = small.get_learned_conditioning(["a cat", ""])
    assert states.shape == (2, 77, 16)
    assert torch.equal(states, small.cond_stage_model(["a cat", ""]))


def test_apply_model_is_the_unet(small):
    x, t, context = normal(2, 4, 4, 6), torch.tensor([1, 999]), normal(2, 5, 16, seed=2)
    answer = small.apply_model(x, t, context)
    assert 0.3 < answer.std() < 3
    assert torch.equal(answer, small.model.diffusion_model(x, t, context))


def test_a_unet_in_half_precision_is_fed_and_answers_the_samplers_float32(small):
    x, t, context = normal(2, 4, 4, 6), torch.tensor([1, 999]), normal(2, 5, 16, seed=2)
    exact = small.apply_model(x, t, context)
    small.model.bfloat16()
    answer = small.apply_model(x, t, context)
    assert answer.dtype == x.dtype == torch.float32
    assert 1e-4 < (answer - exact).abs().max() < 0.2
    assert torch.equal(answer, small.model.diffusion_model(x.bfloat16(), t, context.bfloat16()).float())


def test_the_wrapper_joins_text_states_one_after_the_other():
    unet = randomise(UNetModel(SMALL.unet))
    x, t = normal(2, 4, 4, 6), torch.tensor([1, 999])
    first, second = normal(2, 5, 16, seed=2), normal(2, 3, 16, seed=3)
    joined = unet(x, t, torch.cat([first, second], dim=1))
    assert torch.equal(DiffusionWrapper(unet)(x, t, [first, second]), joined)
