"""The autoencoder against diffusers' AutoencoderKL: same random weights, same moments, same pictures.

In float64, where a wrong GroupNorm eps stands far above rounding.
"""

import pytest
import torch
from parity.diffusers_twins import vae_blocks, vae_twins
from torch.testing import assert_close

from sd_teach.vae import VAEConfig

SMALL = VAEConfig(ch=16, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)
CONFIGS = {
    "two levels": SMALL,
    "SD's four levels": VAEConfig(ch=32),
    "uneven widths, groups of 3, other latents": VAEConfig(
        in_channels=4, ch=24, ch_mult=(1, 3, 2), num_res_blocks=1, z_channels=5, norm_groups=8
    ),
    "one level, 3 blocks": VAEConfig(ch=32, ch_mult=(1,), num_res_blocks=3, norm_groups=4),
}
SIZES = [(16, 16), (8, 40), (24, 16)]


def normal(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@torch.no_grad()
def compare(config, size, dtype, atol):
    ours, theirs = vae_twins(config, dtype)
    height, width = size
    pictures = normal(2, config.in_channels, height, width, dtype=dtype)
    latents = normal(2, config.z_channels, height // config.downsampling, width // config.downsampling, dtype=dtype)
    posterior, their_posterior = ours.encode(pictures), theirs.encode(pictures).latent_dist
    decoded = theirs.decode(latents).sample
    for expected in (their_posterior.mean, their_posterior.logvar, decoded):
        assert 0.3 < expected.std() < 3
    assert_close(posterior.mean, their_posterior.mean, rtol=0, atol=atol)
    assert_close(posterior.logvar, their_posterior.logvar, rtol=0, atol=atol)
    assert_close(ours.decode(latents), decoded, rtol=0, atol=atol)


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_moments_and_decoded_pictures_equal_diffusers(config, size):
    compare(config, size, torch.float64, atol=1e-11)


def test_moments_and_decoded_pictures_equal_diffusers_in_float32():
    compare(CONFIGS["SD's four levels"], (16, 24), torch.float32, atol=1e-5)


def test_the_bare_encoder_equals_diffusers_on_sides_that_do_not_halve():
    ours, theirs = vae_twins(CONFIGS["SD's four levels"])
    picture = normal(1, 3, 21, 38)
    with torch.no_grad():
        assert_close(ours.encoder(picture), theirs.encoder(picture), rtol=0, atol=1e-11)


BLOCKS = vae_blocks(SMALL)


def pairs_of_kind(ours, theirs, kind):
    return [(ours.get_submodule(BLOCKS[name]), theirs.get_submodule(name)) for name in BLOCKS if kind in name]


def quiet_twins():
    """Residual blocks whose second norm sees small numbers too."""
    ours, theirs = vae_twins(SMALL)
    with torch.no_grad():
        for pair in pairs_of_kind(ours, theirs, "resnets"):
            for block in pair:
                block.conv1.weight.mul_(1e-3)
                block.conv1.bias.mul_(1e-3)
    return ours, theirs


@torch.no_grad()
def run(ours, theirs):
    norm = next(ours.children())
    x = 1e-3 * normal(2, norm.num_channels, 4, 6, seed=2)
    return ours(x), theirs(x, None)


@pytest.mark.parametrize(("kind", "count"), [("resnets", 10), ("attentions", 2)])
def test_every_block_fed_small_numbers_equals_diffusers(kind, count):
    pairs = pairs_of_kind(*quiet_twins(), kind)
    assert len(pairs) == count
    for ours, theirs in pairs:
        answer, expected = run(ours, theirs)
        assert_close(answer, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "norm"), [("resnets", "norm1"), ("resnets", "norm2"), ("attentions", "norm")])
def test_a_block_with_the_unets_eps_is_far_from_diffusers(kind, norm):
    for ours, theirs in pairs_of_kind(*quiet_twins(), kind):
        getattr(ours, norm).eps = 1e-5
        answer, expected = run(ours, theirs)
        assert (answer - expected).abs().max() > 0.05


@pytest.mark.parametrize("size", [(6, 10), (7, 9)], ids=str)
@pytest.mark.parametrize("kind", ["downsamplers", "upsamplers"])
@torch.no_grad()
def test_resampling_equals_diffusers(kind, size):
    pairs = pairs_of_kind(*vae_twins(SMALL), kind)
    assert len(pairs) == 1
    for ours, theirs in pairs:
        x = normal(2, ours.conv.in_channels, *size)
        assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
