"""The codebook's first stage against diffusers' VQModel: same random weights, same latents, same pictures."""

import pytest
import torch
from diffusers import VQModel as TheirVQModel
from parity.diffusers_twins import VAE_INSIDE, _copy_weights, _names, randomise, vae_blocks
from torch.testing import assert_close

from sd_teach.vae import VAEConfig
from sd_teach.vq import VQModel

CONFIG = VAEConfig(ch=16, ch_mult=(1, 2), num_res_blocks=1, z_channels=3, norm_groups=8)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def twins():
    ours = randomise(VQModel(CONFIG, n_embed=13))
    theirs = TheirVQModel(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=13,
        norm_num_groups=8,
        mid_block_add_attention=True,
    ).eval()
    blocks = vae_blocks(CONFIG) | {"quantize": "quantize"}
    _copy_weights(ours, theirs, _names(theirs, blocks, VAE_INSIDE))
    return ours.double(), theirs.double()


@torch.no_grad()
def test_latents_equal_diffusers(twins):
    ours, theirs = twins
    picture = normal(2, 3, 16, 24)
    expected = theirs.encode(picture).latents
    assert 0.3 < expected.std() < 3
    assert_close(ours.encode(picture), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("force_not_quantize", [False, True])
@torch.no_grad()
def test_decoded_pictures_equal_diffusers(twins, force_not_quantize):
    ours, theirs = twins
    z = normal(2, 3, 8, 12)
    expected = theirs.decode(z, force_not_quantize=force_not_quantize).sample
    assert 0.3 < expected.std() < 3
    assert_close(ours.decode(z, force_not_quantize), expected, rtol=0, atol=1e-11)


@torch.no_grad()
def test_the_codes_chosen_are_diffusers(twins):
    ours, theirs = twins
    z = normal(2, 3, 8, 12)
    expected = theirs.quantize(z)[0]
    assert len(torch.unique(expected.permute(0, 2, 3, 1).flatten(0, 2), dim=0)) > 6
    assert_close(ours.quantize(z), expected, rtol=0, atol=1e-12)
