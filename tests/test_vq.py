"""The other first stage: latents that are entries of a codebook, and DDIM that keeps to them."""

from functools import partial

import pytest
import torch
from conftest import randomize
from test_ddim import SCHEDULE, fake_eps, randn
from torch.testing import assert_close

from sd_teach.ddim import ddim_sample, ddim_timesteps, run_steps
from sd_teach.vae import VAEConfig
from sd_teach.vq import VectorQuantizer, VQModel, quantized_ddim_step

SMALL = VAEConfig(ch=4, ch_mult=(1, 2), num_res_blocks=1, z_channels=3, norm_groups=2)


@pytest.fixture
def quantize():
    return randomize(VectorQuantizer(11, 4)).double().requires_grad_(False)


def is_a_code(z, quantize):
    """Per place [b, h, w]."""
    return (z[:, None] == quantize.embedding.weight[None, :, :, None, None]).all(2).any(1)


def test_every_place_gets_the_code_nearest_to_it(quantize):
    z = randn(2, 4, 3, 5).double()
    quantized = quantize(z)
    assert quantized.shape == z.shape
    for b, h, w in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)):
        distances = (quantize.embedding.weight - z[b, :, h, w]).square().sum(1)
        assert torch.equal(quantized[b, :, h, w], quantize.embedding.weight[distances.argmin()])
    assert len(torch.unique(quantized.permute(0, 2, 3, 1).flatten(0, 2), dim=0)) > 4


def test_a_latent_on_the_codes_stays_where_it_is(quantize):
    on_codes = quantize(randn(2, 4, 3, 5).double())
    assert torch.equal(quantize(on_codes), on_codes)


def test_decoding_quantizes_unless_told_otherwise():
    model = randomize(VQModel(SMALL, n_embed=7)).requires_grad_(False)
    z = 0.5 * randn(2, 3, 4, 6)
    picture = model.decode(z)
    assert picture.shape == (2, 3, 8, 12)
    assert torch.equal(picture, model.decode(model.quantize(z), force_not_quantize=True))
    assert (picture - model.decode(z, force_not_quantize=True)).std() > 0.1


def test_encoding_gives_one_latent_not_yet_on_the_codes():
    model = randomize(VQModel(SMALL, n_embed=7)).requires_grad_(False)
    z = model.encode(randn(2, 3, 8, 12))
    assert z.shape == (2, 3, 4, 6)
    assert not is_a_code(z, model.quantize).any()


def test_a_latent_diffusion_model_decodes_with_it(sd):
    """`first_stage_model` may be either; VQ models have a scale factor of 1."""
    vq = randomize(VQModel(sd.model.config.vae, n_embed=7)).requires_grad_(False)
    z = 0.5 * randn(1, 4, 2, 2)
    usual, sd.model.first_stage_model = sd.model.first_stage_model, vq
    try:
        assert torch.equal(sd.model.decode_first_stage(z), vq.decode(z / 0.5))
    finally:
        sd.model.first_stage_model = usual


def run(quantize, steps=10):
    step = partial(quantized_ddim_step, quantize)
    return list(run_steps(step, fake_eps, randn(2, 4, 3, 5).double(), SCHEDULE, ddim_timesteps(steps)))


def test_with_quantize_denoised_every_step_goes_by_way_of_the_codes(quantize):
    states = run(quantize)
    alphas = SCHEDULE.alphas_cumprod.double()
    for state, t_prev in zip(states, [*[state.t for state in states[1:]], 0], strict=True):
        now, before = alphas[state.t], alphas[t_prev]
        assert is_a_code(state.pred_x0, quantize).all()
        pred_x0 = quantize((state.x - (1 - now).sqrt() * state.eps) / now.sqrt())
        assert torch.equal(state.pred_x0, pred_x0)
        assert_close(state.x_prev, before.sqrt() * pred_x0 + (1 - before).sqrt() * state.eps, rtol=0, atol=1e-6)
    plain = list(ddim_sample(fake_eps, randn(2, 4, 3, 5).double(), SCHEDULE, 10))
    assert (states[-1].x_prev - plain[-1].x_prev).std() > 0.1


def test_quantize_denoised_without_codes_is_ddim():
    *_, plain = ddim_sample(fake_eps, randn(2, 4, 3, 5).double(), SCHEDULE, 10)
    assert_close(run(lambda z: z)[-1].x_prev, plain.x_prev, rtol=0, atol=1e-12)
