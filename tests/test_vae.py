import math

import pytest
import torch
import torch.nn.functional as F
from parity.diffusers_twins import randomise
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from sd_teach.vae import AttnBlock, AutoencoderKL, DiagonalGaussian, Downsample, ResnetBlock, Upsample, VAEConfig

SMALL = VAEConfig(ch=8, ch_mult=(1, 2, 3), num_res_blocks=1, norm_groups=4)


def normal(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- the whole autoencoder


def test_sd_has_83_653_863_parameters():
    with torch.device("meta"):
        vae = AutoencoderKL()
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_decoder_has_one_block_a_level_more_than_the_encoder(blocks):
    with torch.device("meta"):
        vae = AutoencoderKL(VAEConfig(num_res_blocks=blocks))
    assert [len(level.block) for level in vae.encoder.down] == [blocks] * 4
    assert [len(level.block) for level in vae.decoder.up] == [blocks + 1] * 4


def test_pictures_become_latents_eight_times_smaller_and_come_back():
    with torch.device("meta"):
        vae = AutoencoderKL()
        assert vae.encode(torch.zeros(2, 3, 512, 384)).mean.shape == (2, 4, 64, 48)
        assert vae.decode(torch.zeros(2, 4, 64, 48)).shape == (2, 3, 512, 384)


def test_up_0_is_the_finest_level_and_runs_last():
    vae = randomise(AutoencoderKL(SMALL))
    ran = []
    for index, level in enumerate(vae.decoder.up):
        level.register_forward_hook(lambda level, args, out, index=index: ran.append((index, tuple(out.shape[1:]))))
    vae.decode(torch.zeros(1, 4, 2, 3))
    assert ran == [(2, (24, 4, 6)), (1, (16, 8, 12)), (0, (8, 8, 12))]


def test_encoding_applies_quant_conv_and_decoding_post_quant_conv():
    vae = randomise(AutoencoderKL(SMALL)).double()
    x, z = normal(1, 3, 8, 12), normal(1, 4, 2, 3)
    mean, logvar = vae.quant_conv(vae.encoder(x)).chunk(2, dim=1)
    assert torch.equal(vae.encode(x).mean, mean)
    assert torch.equal(vae.encode(x).logvar, logvar)
    assert torch.equal(vae.decode(z), vae.decoder(vae.post_quant_conv(z)))


@pytest.mark.parametrize(("height", "width"), [(8, 10), (6, 8), (7, 7)])
def test_pictures_that_do_not_halve_are_refused(height, width):
    with pytest.raises(ValueError, match=f"height and width must be multiples of 4, got {height} x {width}"):
        AutoencoderKL(SMALL).encode(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize(("config", "factor"), [(VAEConfig(), 8), (SMALL, 4), (VAEConfig(ch_mult=(1,)), 1)])
def test_downsampling_is_two_to_the_levels_less_one(config, factor):
    assert config.downsampling == factor


# --- its parts


def test_downsampling_pads_right_and_below_only_and_not_as_the_unet_does():
    module = randomise(Downsample(3)).double()
    x, weight, bias = normal(2, 3, 6, 8), module.conv.weight, module.conv.bias
    assert_close(module(x), F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2), rtol=0, atol=1e-12)
    for padding in ((1, 1, 1, 1), (1, 0, 1, 0)):
        otherwise = F.conv2d(F.pad(x, padding), weight, bias, stride=2)
        assert otherwise.shape == module(x).shape
        assert (module(x) - otherwise).abs().max() > 0.5


def test_upsampling_repeats_each_place_then_convolves():
    module = randomise(Upsample(3)).double()
    x = normal(2, 3, 4, 5)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(repeated, module.conv.weight, module.conv.bias, padding=1)
    assert_close(module(x), expected, rtol=0, atol=1e-12)


def test_a_block_has_a_shortcut_convolution_only_where_the_channels_change():
    assert not hasattr(ResnetBlock(8, 8, SMALL), "nin_shortcut")
    assert ResnetBlock(8, 12, SMALL).nin_shortcut.weight.shape == (12, 8, 1, 1)


@pytest.mark.parametrize("out_channels", [8, 12])
def test_a_block_is_two_normed_convolutions_beside_a_shortcut(out_channels):
    block = randomise(ResnetBlock(8, out_channels, SMALL)).double()
    x = normal(2, 8, 4, 6)
    h = x
    for norm, conv in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
        h = F.silu(F.group_norm(h, 4, norm.weight, norm.bias, eps=1e-6))
        h = F.conv2d(h, conv.weight, conv.bias, padding=1)
    shortcut = x if out_channels == 8 else F.conv2d(x, block.nin_shortcut.weight, block.nin_shortcut.bias)
    assert_close(block(x), shortcut + h, rtol=0, atol=1e-12)


def test_attention_has_one_head_over_all_places():
    block = randomise(AttnBlock(8, SMALL)).double()
    x = normal(2, 8, 3, 5)
    normed = F.group_norm(x, 4, block.norm.weight, block.norm.bias, eps=1e-6)
    q, k, v = (conv(normed).flatten(2) for conv in (block.q, block.k, block.v))  # [b, c, hw]
    weights = (torch.einsum("bci,bcj->bij", q, k) / math.sqrt(8)).softmax(dim=-1)
    h = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
    assert_close(block(x), x + block.proj_out(h), rtol=0, atol=1e-12)


# --- the posterior


def test_the_first_half_of_the_moments_is_the_mean_the_second_the_log_variance():
    moments = normal(2, 8, 3, 5)
    posterior = DiagonalGaussian(moments)
    assert torch.equal(posterior.mean, moments[:, :4])
    assert torch.equal(posterior.logvar, moments[:, 4:])


def test_the_mode_is_the_mean():
    moments = normal(2, 8, 3, 5)
    assert torch.equal(DiagonalGaussian(moments).mode(), moments[:, :4])


def test_log_variances_are_kept_between_minus_30_and_20():
    moments = torch.tensor([0.0, -31.0, 0.0, 21.0]).view(2, 2, 1, 1)
    assert DiagonalGaussian(moments).logvar.flatten().tolist() == [-30.0, 20.0]


def test_a_sample_is_the_mean_and_a_standard_deviation_of_noise_from_the_generator():
    moments = normal(2, 8, 3, 5)
    noise = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(7)).double()
    expected = moments[:, :4] + moments[:, 4:].exp().sqrt() * noise
    assert_close(DiagonalGaussian(moments).sample(torch.Generator().manual_seed(7)), expected, rtol=0, atol=1e-12)


def test_samples_are_spread_as_the_moments_say():
    mean, std = 3.0, 0.5
    moments = torch.stack([torch.full((1, 200, 200), mean), torch.full((1, 200, 200), 2 * math.log(std))], dim=1)
    sample = DiagonalGaussian(moments).sample(torch.Generator().manual_seed(0))
    assert sample.mean().item() == pytest.approx(mean, abs=0.01)
    assert sample.std().item() == pytest.approx(std, abs=0.01)


def test_without_a_generator_a_sample_follows_torchs_seed():
    posterior = DiagonalGaussian(normal(1, 8, 2, 2))
    torch.manual_seed(3)
    first = posterior.sample()
    torch.manual_seed(3)
    assert torch.equal(posterior.sample(), first)
    assert not torch.equal(posterior.sample(), first)


def test_kl_is_the_divergence_from_the_unit_gaussian_summed_over_each_picture():
    moments = normal(3, 8, 2, 5)
    mean, std = moments[:, :4], (0.5 * moments[:, 4:]).exp()
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    assert_close(DiagonalGaussian(moments).kl(), expected, rtol=1e-12, atol=0)


def test_kl_of_the_unit_gaussian_is_zero():
    assert DiagonalGaussian(torch.zeros(2, 8, 3, 3)).kl().tolist() == [0.0, 0.0]


def test_a_sample_is_where_its_moments_are():
    assert DiagonalGaussian(torch.zeros(1, 8, 2, 2, device="meta")).sample().device.type == "meta"
