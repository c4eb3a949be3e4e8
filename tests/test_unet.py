import math
import re

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from parity.diffusers_twins import randomise
from torch import nn
from torch.testing import assert_close

from sd_teach import unet
from sd_teach.attention import CrossAttention, SpatialTransformer
from sd_teach.unet import Downsample, ResBlock, UNetConfig, UNetModel, Upsample, timestep_embedding

SMALL = UNetConfig(
    model_channels=16,
    channel_mult=(1, 2, 3),
    num_res_blocks=1,
    attention_resolutions=(2,),
    context_dim=7,
    norm_groups=4,
)


def normal(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small_unet():
    return randomise(UNetModel(SMALL)).double()


def inputs(batch=3, height=8, width=12):
    return normal(batch, 4, height, width), torch.tensor([1, 500, 999])[:batch], normal(batch, 5, 7, seed=2)


@pytest.fixture(scope="module")
def sd_unet():
    """Stable Diffusion's own: names and shapes, no numbers."""
    with torch.device("meta"):
        return UNetModel()


# --- the whole network


def test_a_new_unet_answers_exactly_zero():
    torch.manual_seed(0)
    assert torch.count_nonzero(UNetModel(SMALL).double()(*inputs())) == 0


def test_a_randomised_unet_answers_about_unit_variance():
    assert 0.3 < small_unet()(*inputs()).std() < 3


def test_sd_has_859_520_964_parameters(sd_unet):
    assert sum(p.numel() for p in sd_unet.parameters()) == 859_520_964


def test_eight_heads_at_every_level_are_40_80_and_160_wide(sd_unet):
    attentions = [module for module in sd_unet.modules() if isinstance(module, CrossAttention)]
    assert len(attentions) == 32
    assert {module.heads for module in attentions} == {8}
    widths = {(module.to_q.in_features, module.to_q.out_features // module.heads) for module in attentions}
    assert widths == {(320, 40), (640, 80), (1280, 160)}


def blocks_with_attention(blocks):
    return [i for i, block in enumerate(blocks) if any(isinstance(layer, SpatialTransformer) for layer in block)]


def test_sd_attends_at_downsampling_1_2_4_and_in_the_middle_but_not_at_8(sd_unet):
    assert blocks_with_attention(sd_unet.input_blocks) == [1, 2, 4, 5, 7, 8]
    assert blocks_with_attention(sd_unet.output_blocks) == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert [type(layer) for layer in sd_unet.middle_block] == [ResBlock, SpatialTransformer, ResBlock]


def docstring_table():
    """Index, kinds of layers, side, channels in, channels out of every block that the module's docstring lists."""
    row = re.compile(r"(\d+) +([A-Za-z]+(?:,? [A-Za-z]+)*) +(\d+) +(\d+)(?: \+ +(\d+))? -> +(\d+)")
    blocks = {"input": {}, "output": {}}
    for line in unet.__doc__.splitlines():
        for half, found in zip(blocks, row.findall(line), strict=False):
            index, kinds, side, channels, skip, out = found
            blocks[half][int(index)] = (re.findall(r"\w+", kinds), int(side), int(channels), int(skip or 0), int(out))
    return blocks


KINDS = {"Conv2d": "convolution", "ResBlock": "R", "SpatialTransformer": "T", "Downsample": "down", "Upsample": "up"}


def test_the_table_of_blocks_in_the_docstring_is_true(sd_unet):
    seen = {"input": {}, "output": {}}
    outs = []  # channels of what left the last block

    def watch(half, index):
        def hook(block, args, out):
            kinds = [KINDS[type(layer).__name__] for layer in block]
            x = args[0]
            # on the way down a side is what comes out, on the way up what comes in
            side = (out if half == "input" else x).shape[-1]
            h, skip = (x.shape[1], 0) if half == "input" else (outs[-1], x.shape[1] - outs[-1])
            seen[half][index] = (kinds, side, h, skip, out.shape[1])
            outs.append(out.shape[1])

        return hook

    handles = [
        block.register_forward_hook(watch(half, i))
        for half, blocks in (("input", sd_unet.input_blocks), ("output", sd_unet.output_blocks))
        for i, block in enumerate(blocks)
    ]
    with torch.device("meta"):
        sd_unet(torch.zeros(1, 4, 64, 64), torch.zeros(1), torch.zeros(1, 77, 768))
    for handle in handles:
        handle.remove()
    assert len(seen["input"]) == len(seen["output"]) == 12
    assert docstring_table() == seen


def test_every_output_block_gets_the_latest_activation_first_and_its_skip_second():
    network = small_unet()
    outs, output_inputs = [], []
    for block in (*network.input_blocks, network.middle_block, *network.output_blocks):
        block.register_forward_hook(lambda block, args, out: outs.append(out))
    for block in network.output_blocks:
        block.register_forward_pre_hook(lambda block, args: output_inputs.append(args[0]))
    network(*inputs())
    downs = len(network.input_blocks)
    assert len(output_inputs) == downs
    for i, x in enumerate(output_inputs):
        latest, skip = outs[downs + i], outs[downs - 1 - i]
        assert torch.equal(x, torch.cat([latest, skip], dim=1))


def test_every_picture_of_a_batch_has_its_own_time_step_and_text():
    network = small_unet()
    x, t, context = inputs()
    together = network(x, t, context)
    for i in range(len(x)):
        alone = network(x[i : i + 1], t[i : i + 1], context[i : i + 1])
        assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


def test_one_latent_with_several_texts_is_answered_as_if_repeated_but_begun_once():
    network, (x, t, context) = small_unet(), inputs()
    rows = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda module, args, out, name=name: rows.update({name: len(out)}))
    answer = network(x[:1], t[:1], context)
    first = "input_blocks.3.1.transformer_blocks.0"  # the only attention on the way down of SMALL
    before = ["input_blocks.0.0", "input_blocks.1.0", "input_blocks.2.0", "input_blocks.3.0", f"{first}.attn1"]
    assert {rows[name] for name in before} == {1}
    assert {rows[name] for name in (f"{first}.attn2", "input_blocks.4.0", "middle_block", "out")} == {3}
    repeated = network(x[:1].expand(3, -1, -1, -1), t[:1].expand(3), context)
    assert (repeated[0] - repeated[1]).std() > 0.01
    assert_close(answer, repeated, rtol=0, atol=1e-12)


def test_the_time_step_and_the_text_change_the_answer():
    network = small_unet()
    x, t, context = inputs()
    answer = network(x, t, context)
    assert (network(x, t + 100, context) - answer).std() > 0.01
    assert (network(x, t, context.flip(0)) - answer).std() > 0.01


def test_the_unet_leaves_its_inputs_as_they_were():
    given = inputs()
    copies = [tensor.clone() for tensor in given]
    small_unet()(*given)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, copies, strict=True))


def test_the_unet_answers_in_the_precision_of_its_weights():
    x, t, context = inputs()
    half = randomise(UNetModel(SMALL)).bfloat16()
    assert half(x.bfloat16(), t, context.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("height", "width"), [(8, 10), (6, 8), (7, 7)])
def test_sides_that_would_miss_each_other_on_the_way_up_are_refused(height, width):
    x, t, context = inputs(height=height, width=width)
    with pytest.raises(ValueError, match=rf"sides of the latent must be multiples of 4, got \({height}, {width}\)"):
        small_unet()(x, t, context)


@pytest.mark.parametrize(
    ("config", "factor"), [(UNetConfig(), 8), (SMALL, 4), (UNetConfig(channel_mult=(1,), attention_resolutions=()), 1)]
)
def test_downsampling_is_two_to_the_levels_less_one(config, factor):
    assert config.downsampling == factor


@pytest.mark.parametrize(("mult", "factors"), [((1, 2), (4, 2, 1)), ((1, 2, 4, 4), (3,)), ((1,), (0,))])
def test_attention_at_a_resolution_that_no_level_has_is_refused(mult, factors):
    with pytest.raises(ValueError, match=r"attention_resolutions \[\d\] fit no level"):
        UNetConfig(channel_mult=mult, attention_resolutions=factors)


def test_heads_that_do_not_divide_a_level_are_refused():
    with pytest.raises(ValueError, match="32 channels cannot be shared by 5 heads"):
        UNetModel(UNetConfig(model_channels=32, num_heads=5))


# --- its parts


def test_the_timestep_embedding_has_cosines_first_then_sines():
    t, dim = [0, 1, 37, 999], 20
    angles = [[step * 10000 ** (-2 * i / dim) for i in range(dim // 2)] for step in t]
    expected = torch.tensor([[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angles])
    assert_close(timestep_embedding(torch.tensor(t), dim), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dim", [16, 320])
def test_the_timestep_embedding_is_the_diffusers_unets_and_not_the_bare_functions(dim):
    t = torch.arange(1000)
    ours = timestep_embedding(t, dim)
    as_in_its_unet = get_timestep_embedding(t, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert_close(ours, as_in_its_unet, rtol=0, atol=1e-6)
    assert (ours - get_timestep_embedding(t, dim)).abs().max() > 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bfloat16])
def test_the_timestep_embedding_is_float32(dtype):
    assert timestep_embedding(torch.tensor([1, 2], dtype=dtype), 8).dtype == torch.float32


def test_the_timestep_embedding_is_made_where_the_time_steps_are():
    assert timestep_embedding(torch.tensor([1, 999], device="meta"), 8).device.type == "meta"


def test_time_steps_become_vectors_before_they_become_bfloat16():
    # bfloat16 has no 999: it would be 1000
    network, told = randomise(UNetModel(SMALL)).bfloat16(), []
    network.time_embed.register_forward_hook(lambda module, inputs, output: told.append(inputs[0]))
    network.embed(torch.tensor([999]), torch.bfloat16)
    assert torch.equal(told[0], timestep_embedding(torch.tensor([999]), SMALL.model_channels).bfloat16())
    assert not torch.equal(told[0], timestep_embedding(torch.tensor([1000]), SMALL.model_channels).bfloat16())


def test_downsampling_pads_one_on_all_sides_and_not_as_the_vae_does():
    module = randomise(Downsample(3)).double()
    x, weight, bias = normal(2, 3, 6, 8), module.op.weight, module.op.bias
    assert_close(module(x), F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, bias, stride=2), rtol=0, atol=1e-12)
    as_in_the_vae = F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2)
    assert as_in_the_vae.shape == module(x).shape
    assert (module(x) - as_in_the_vae).abs().max() > 0.5


def test_upsampling_repeats_each_place_then_convolves():
    module = randomise(Upsample(3)).double()
    x = normal(2, 3, 4, 5)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(repeated, module.conv.weight, module.conv.bias, padding=1)
    assert_close(module(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("out_channels", [8, 12])
def test_a_new_res_block_is_its_shortcut(out_channels):
    torch.manual_seed(0)
    block = ResBlock(8, emb_channels=16, out_channels=out_channels, norm_groups=4).double()
    x = normal(2, 8, 4, 6)
    assert torch.equal(block(x, normal(2, 16, seed=2)), block.skip_connection(x))


def test_the_shortcut_of_a_res_block_is_a_convolution_only_where_the_channels_change():
    assert isinstance(ResBlock(8, 16, 8, norm_groups=4).skip_connection, nn.Identity)
    assert ResBlock(8, 16, 12, norm_groups=4).skip_connection.weight.shape == (12, 8, 1, 1)


def test_a_res_block_adds_the_time_embedding_between_its_convolutions():
    block = randomise(ResBlock(8, 16, 12, norm_groups=4)).double()
    x, emb = normal(2, 8, 4, 6), normal(2, 16, seed=2)

    def normed_conv(x, norm, conv):
        x = F.silu(F.group_norm(x, 4, norm.weight, norm.bias, eps=1e-5))
        return F.conv2d(x, conv.weight, conv.bias, padding=1)

    h = normed_conv(x, block.in_layers[0], block.in_layers[2])
    h = h + (F.silu(emb) @ block.emb_layers[1].weight.T + block.emb_layers[1].bias)[:, :, None, None]
    h = normed_conv(h, block.out_layers[0], block.out_layers[3])
    shortcut = F.conv2d(x, block.skip_connection.weight, block.skip_connection.bias)
    assert_close(block(x, emb), shortcut + h, rtol=0, atol=1e-12)
