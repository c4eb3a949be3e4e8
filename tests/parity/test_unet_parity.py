"""The UNet against diffusers' UNet2DConditionModel: same random weights, same answer.

In float64, where a GroupNorm eps of 1e-6 instead of 1e-5 (1e-5 in the whole UNet's output) stands far above rounding.
"""

import pytest
import torch
from parity.diffusers_twins import unet_blocks, unet_twins
from torch.testing import assert_close

from sd_teach.unet import UNetConfig

SMALL = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2, 1),
    context_dim=24,
    norm_groups=16,
)
CONFIGS = {
    "two levels": SMALL,
    "SD's four levels": UNetConfig(model_channels=32, context_dim=48),
    "attention at the finest level only": UNetConfig(
        model_channels=32, channel_mult=(1, 2, 2), attention_resolutions=(1,), num_heads=4, context_dim=40
    ),
    "attention in the middle only, groups of 3": UNetConfig(
        model_channels=24, channel_mult=(1, 2), attention_resolutions=(), num_heads=2, context_dim=16, norm_groups=8
    ),
    "no attention at the finest level, depth 2": UNetConfig(
        model_channels=32,
        channel_mult=(1, 3, 4),
        num_res_blocks=1,
        attention_resolutions=(2, 4),
        num_heads=4,
        transformer_depth=2,
        context_dim=24,
        norm_groups=8,
    ),
    "one level": UNetConfig(
        model_channels=32, channel_mult=(1,), attention_resolutions=(1,), context_dim=32, norm_groups=8
    ),
    "narrowing again, 3 blocks, other latents": UNetConfig(
        in_channels=9,
        out_channels=8,
        model_channels=32,
        channel_mult=(1, 2, 1),
        num_res_blocks=3,
        attention_resolutions=(2,),
        num_heads=2,
        context_dim=24,
        norm_groups=16,
    ),
}


def inputs(config, dtype=torch.float64, height=8, width=16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, config.in_channels, height, width, generator=generator, dtype=dtype)
    context = torch.randn(4, 7, config.context_dim, generator=generator, dtype=dtype)
    return x, torch.tensor([0, 1, 500, 999]), context


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_unet_equals_diffusers(config):
    ours, theirs = unet_twins(config)
    x, t, context = inputs(config)
    with torch.no_grad():
        answer, expected = ours(x, t, context), theirs(x, t, context).sample
        other_times, other_texts = theirs(x, t.flip(0), context).sample, theirs(x, t, context.flip(0)).sample
    assert 0.3 < expected.std() < 3
    # norms with one channel a group would take the time embedding away again
    assert min((expected - other_times).std(), (expected - other_texts).std()) > 0.01
    assert_close(answer, expected, rtol=0, atol=1e-11)


def test_the_unet_equals_diffusers_in_float32():
    config = CONFIGS["SD's four levels"]
    ours, theirs = unet_twins(config, torch.float32)
    x, t, context = inputs(config, torch.float32)
    with torch.no_grad():
        answer, expected = ours(x, t, context), theirs(x, t, context).sample
    assert 0.3 < expected.std() < 3
    assert_close(answer, expected, rtol=0, atol=1e-5)


def quiet(*shape):
    """Standard deviation 1e-3: the variance, 1e-6, is no larger than the norms' eps, so that eps shapes the answer."""
    return 1e-3 * torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


BLOCKS = unet_blocks(SMALL)


def block_twins(kind):
    ours, theirs = unet_twins(SMALL)
    return [(ours.get_submodule(BLOCKS[name]), theirs.get_submodule(name)) for name in BLOCKS if kind in name]


def res_blocks_all_quiet():
    """ResBlocks whose second norm sees small numbers too."""
    pairs = block_twins("resnets")
    with torch.no_grad():
        for ours, theirs in pairs:
            for module in (ours.in_layers[2], ours.emb_layers[1], theirs.conv1, theirs.time_emb_proj):
                for parameter in module.parameters():
                    parameter.mul_(1e-3)
    return pairs


@torch.no_grad()
def run_res_block(ours, theirs):
    channels, emb_channels = ours.in_layers[0].num_channels, ours.emb_layers[1].in_features
    x = quiet(2, channels, 4, 6)
    emb = torch.randn(2, emb_channels, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return ours(x, emb), theirs(x, emb)


@torch.no_grad()
def run_transformer(ours, theirs):
    x = quiet(2, ours.norm.num_channels, 4, 6)
    context = torch.randn(2, 7, SMALL.context_dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return ours(x, context), theirs(x, encoder_hidden_states=context, return_dict=False)[0]


def test_every_res_block_fed_small_numbers_equals_diffusers():
    pairs = res_blocks_all_quiet()
    assert len(pairs) == 8
    for ours, theirs in pairs:
        answer, expected = run_res_block(ours, theirs)
        assert_close(answer, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layers", ["in_layers", "out_layers"])
def test_a_res_block_with_the_transformers_eps_is_far_from_diffusers(layers):
    for ours, theirs in res_blocks_all_quiet():
        getattr(ours, layers)[0].eps = 1e-6
        answer, expected = run_res_block(ours, theirs)
        assert (answer - expected).abs().max() > 0.1


def test_every_spatial_transformer_fed_small_numbers_equals_diffusers():
    pairs = block_twins("attentions")
    assert len(pairs) == 7
    for ours, theirs in pairs:
        answer, expected = run_transformer(ours, theirs)
        assert 0.3 < expected.std() < 3
        assert_close(answer, expected, rtol=0, atol=1e-12)


def test_a_spatial_transformer_with_the_res_blocks_eps_is_far_from_diffusers():
    for ours, theirs in block_twins("attentions"):
        ours.norm.eps = 1e-5
        answer, expected = run_transformer(ours, theirs)
        assert (answer - expected).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["downsamplers", "upsamplers"])
@torch.no_grad()
def test_resampling_equals_diffusers(kind):
    pairs = block_twins(kind)
    assert len(pairs) == 1
    for ours, theirs in pairs:
        x = 1e3 * quiet(2, next(ours.parameters()).shape[1], 6, 10)
        assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
