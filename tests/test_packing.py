"""Packed networks answer as the networks they were made of."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_bf16, normal
from parity.diffusers_twins import randomise
from torch import nn
from torch.testing import assert_close

from sd_teach.attention import CrossAttention, FeedForward
from sd_teach.packing import Packed, attention_by_rows, can_pack, pack
from sd_teach.unet import Downsample, UNetConfig, UNetModel, Upsample
from sd_teach.unet_options import UNetModelWithOptions, UNetOptions
from sd_teach.vae import AttnBlock, AutoencoderKL, ResnetBlock, VAEConfig

pytestmark = pytest.mark.skipif(not can_pack(), reason="this machine has no packed layers")

UNETS = {
    "SD's four levels": UNetConfig(model_channels=32, context_dim=48),
    "odd widths, depth 2": UNetConfig(
        model_channels=24, channel_mult=(1, 3), num_res_blocks=1, attention_resolutions=(1,), num_heads=3,
        transformer_depth=2, context_dim=17, norm_groups=8,
    ),
}  # fmt: skip
VAES = {
    "SD's four levels": VAEConfig(ch=32),
    "odd widths": VAEConfig(ch=12, ch_mult=(1, 3, 2), num_res_blocks=1, z_channels=5, norm_groups=6),
}


def packed(network: nn.Module) -> nn.Module:
    """A packed copy."""
    return pack(copy.deepcopy(network))


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS.keys())
@pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 40)])  # 64 places, and 960
def test_a_packed_unet_answers_as_the_unet(config, height, width):
    network = randomise(UNetModel(config)).eval()
    x, t, context = normal(2, 4, height, width), torch.tensor([1, 999]), normal(2, 7, config.context_dim, seed=2)
    answer = network(x, t, context)
    assert 0.3 < answer.std() < 3
    assert_close(packed(network)(x, t, context), answer, rtol=0, atol=2e-5)
    assert_close(packed(network)(x[:1], t[:1], context), network(x[:1], t[:1], context), rtol=0, atol=2e-5)


def test_a_packed_unet_with_its_switches_on_answers_as_that_unet():
    options = UNetOptions(
        model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2,), norm_groups=8,
        use_spatial_transformer=False, use_scale_shift_norm=True, resblock_updown=True,
    )  # fmt: skip
    network = randomise(UNetModelWithOptions(options)).eval()
    x, t = normal(2, 4, 16, 24), torch.tensor([1, 999])
    assert_close(packed(network)(x, t), network(x, t), rtol=0, atol=2e-5)


@needs_bf16
def test_a_packed_unet_in_bfloat16_is_as_exact_as_the_unet_in_bfloat16():
    network = randomise(UNetModel(UNETS["SD's four levels"])).eval()
    given = normal(2, 4, 24, 40), torch.tensor([1, 999]), normal(2, 7, 48, seed=2)
    exact = network(*given)
    half, (x, t, context) = network.bfloat16(), given
    answers = [unet(x.bfloat16(), t, context.bfloat16()) for unet in (half, packed(half))]
    errors = [((answer - exact).norm() / exact.norm()).item() for answer in answers]
    assert all(answer.dtype == torch.bfloat16 for answer in answers)
    assert 1e-3 < errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize("config", VAES.values(), ids=VAES.keys())
@pytest.mark.parametrize(("height", "width"), [(2, 3), (16, 24)])
def test_a_packed_autoencoder_answers_as_the_autoencoder(config, height, width):
    network = randomise(AutoencoderKL(config)).eval()
    twin, factor = packed(network), config.downsampling
    z, picture = normal(2, config.z_channels, height, width), normal(2, 3, height * factor, width * factor)
    decoded, moments = network.decode(z), network.encode(picture).mode()
    assert 0.3 < decoded.std() < 3
    assert_close(twin.decode(z), decoded, rtol=0, atol=1e-4)
    assert_close(twin.encode(picture).mode(), moments, rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm_groups", [8, 6])  # four slices of the channels, and one
def test_a_packed_resnet_block_leaves_its_input_as_it_was(norm_groups):
    for channels, out_channels in ((24, 24), (24, 48), (48, 24)):
        block = randomise(ResnetBlock(channels, out_channels, VAEConfig(norm_groups=norm_groups)))
        x = normal(2, channels, 5, 7)
        before = x.clone()
        answer = packed(nn.Sequential(block))(x)
        assert torch.equal(x, before)
        assert_close(answer, block(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("height", [1, 31, 32, 33, 65])  # 32 rows of this width go at once
def test_a_packed_upsample_of_many_pieces_has_no_seams(height):
    layer = randomise(Upsample(16))
    x = normal(1, 16, height, 4096)
    assert_close(packed(nn.Sequential(layer))(x), layer(x), rtol=0, atol=1e-5)


def test_a_packed_downsample_pads_as_before():
    layer = randomise(Downsample(16))
    x = normal(2, 16, 6, 10)
    assert_close(packed(nn.Sequential(layer))(x), layer(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("places", [3, 1024, 1030])
def test_a_packed_feed_forward_answers_as_before(places):
    layer = randomise(FeedForward(12))
    x = normal(2, places, 12)
    assert_close(packed(nn.Sequential(layer))(x), layer(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(1, 256), (300, 256), (256, 700), (512, 77), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
def test_attention_by_rows_is_attention(queries, keys, dtype):
    # as the layers hand them over: the heads of a place side by side
    q, k, v = (normal(2, n, 3, 20, seed=n).to(dtype).transpose(1, 2) for n in (queries, keys, keys + 1000))
    v = v[:, :, :keys]
    exact = F.scaled_dot_product_attention(3 * q.double(), k.double(), v.double())
    answer = attention_by_rows(3 * q, k, v, scores=2**14)  # 64 queries or fewer at a time
    assert answer.dtype == dtype and answer.shape == exact.shape
    if dtype == torch.float32:
        assert_close(answer.double(), exact, rtol=0, atol=1e-5)
    else:  # scores between 8 and 16 are rounded by up to 2**-5, and their weights change by as much
        assert (answer.double() - exact).norm() < 2**-6 * exact.norm()


def test_every_layer_is_packed_and_every_attention_goes_by_rows():
    with torch.device("cpu"):
        network = nn.ModuleDict(
            {"unet": UNetModel(UNETS["odd widths, depth 2"]), "vae": AutoencoderKL(VAES["odd widths"])}
        )
    norms = sum(
        p.numel() for m in network.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm) for p in m.parameters()
    )
    twin = pack(network)
    assert twin is network
    assert not any(isinstance(module, nn.Linear | nn.Conv2d) for module in twin.modules())
    assert sum(parameter.numel() for parameter in twin.parameters()) == norms
    attentions = [module for module in twin.modules() if isinstance(module, CrossAttention | AttnBlock)]
    assert attentions and all(module.attend is attention_by_rows for module in attentions)
    assert CrossAttention(8, None, 2, 4).attend is F.scaled_dot_product_attention


def test_packed_weights_say_that_they_cannot_be_saved():
    twin = packed(nn.Sequential(nn.Linear(3, 4), nn.Conv2d(4, 4, 3)))
    assert all(isinstance(layer, Packed) for layer in twin)
    with pytest.raises(ValueError, match="packed weights cannot be saved"):
        twin.state_dict()
