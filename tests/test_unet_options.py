"""The UNet's other switches: what each one does; diffusers is asked in parity/."""

from dataclasses import fields

import pytest
import torch
from conftest import normal
from parity.diffusers_twins import randomise
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from sd_teach.attention import SpatialTransformer
from sd_teach.unet import UNetConfig, UNetModel
from sd_teach.unet_options import AttentionBlock, ResBlockWithOptions, UNetModelWithOptions, UNetOptions

SIZES = dict(
    model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2,), num_heads=4, context_dim=7,
    norm_groups=4,
)  # fmt: skip


def unet(**options):
    return randomise(UNetModelWithOptions(UNetOptions(**SIZES | options)))


def answer(network, *, y=None, seed=1, **inputs):
    context = normal(3, 5, 7, seed=2) if network.config.use_spatial_transformer else None
    inputs = {"context": context, "y": y} | inputs
    return network(normal(3, 4, 8, 12, seed=seed), torch.tensor([1, 500, 999]), **inputs)


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def of_kind(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


# nothing chosen


def test_with_the_defaults_it_is_stable_diffusions_unet():
    with torch.device("meta"):
        assert shapes(UNetModelWithOptions()) == shapes(UNetModel())
    plain = randomise(UNetModel(UNetConfig(**SIZES)))
    ours = unet()
    ours.load_state_dict(plain.state_dict())
    x, t, context = normal(3, 4, 8, 12), torch.tensor([1, 500, 999]), normal(3, 5, 7, seed=2)
    assert torch.equal(ours(x, t, context), plain(x, t, context))


def test_every_option_is_one_of_ldm_under_its_name():
    assert [field.name for field in fields(UNetOptions)[len(fields(UNetConfig)) :]] == [
        "dropout", "conv_resample", "num_classes", "num_head_channels", "use_scale_shift_norm", "resblock_updown",
        "use_spatial_transformer", "use_checkpoint",
    ]  # fmt: skip


# dropout


def test_dropout_drops_what_goes_into_the_last_convolution_in_training_only():
    block = randomise(ResBlockWithOptions(8, 6, 8, 4, dropout=0.3))
    seen = []
    block.out_layers[3].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x, emb = normal(4, 8, 32, 32), normal(4, 6, seed=2)
    block.eval()(x, emb)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block.train()(x, emb)
    whole, dropped = seen
    gone = dropped == 0
    assert float(gone.float().mean()) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / gone.numel()) ** 0.5)
    assert_close(dropped[~gone], whole[~gone] / 0.7)


def test_dropout_stands_in_every_res_block():
    blocks = of_kind(unet(dropout=0.3), ResBlockWithOptions)
    assert len(blocks) == 8
    assert all(isinstance(block.out_layers[2], nn.Dropout) and block.out_layers[2].p == 0.3 for block in blocks)


# resolutions


def test_without_conv_resample_nothing_is_learned_where_resolutions_change():
    names = shapes(unet()).keys() - shapes(unet(conv_resample=False)).keys()
    assert names == {
        "input_blocks.2.0.op.weight", "input_blocks.2.0.op.bias",
        "output_blocks.1.2.conv.weight", "output_blocks.1.2.conv.bias",
    }  # fmt: skip
    assert answer(unet(conv_resample=False)).shape == (3, 4, 8, 12)


def test_resblock_updown_puts_res_blocks_where_resolutions_change():
    network = unet(resblock_updown=True)
    down, up = network.input_blocks[2][0], network.output_blocks[1][2]
    emb = normal(1, 64)
    assert down(normal(1, 16, 8, 12), emb).shape == (1, 16, 4, 6)
    assert up(normal(1, 32, 4, 6), emb).shape == (1, 32, 8, 12)
    assert "input_blocks.2.0.in_layers.2.weight" in shapes(network)
    assert (answer(network) - answer(network, seed=3)).std() > 0.1


def test_a_res_block_that_does_not_resample_by_an_option_is_a_res_block():
    plain = randomise(unet().input_blocks[1][0])
    x, emb = normal(2, 16, 4, 4), normal(2, 64, seed=3)
    expected = plain.in_layers(x) + plain.emb_layers(emb)[:, :, None, None]
    assert_close(plain(x, emb), plain.skip_connection(x) + plain.out_layers(expected))


# labels


def test_labels_are_added_to_the_time_embedding():
    network = unet(num_classes=5)
    y = torch.tensor([0, 4, 2])
    before = answer(network, y=y)
    with torch.no_grad():
        network.label_emb.weight[4] = network.label_emb.weight[1]
        assert torch.equal(answer(network, y=torch.tensor([0, 1, 2])), answer(network, y=y))
        assert (answer(network, y=y) - before)[1].std() > 0.01
        network.label_emb.weight.zero_()
    plain = UNetModelWithOptions(UNetOptions(**SIZES))
    plain.load_state_dict({name: each for name, each in network.state_dict().items() if "label_emb" not in name})
    assert torch.equal(answer(network, y=y), answer(plain))


@pytest.mark.parametrize("y", [None, [0, 1], [0, 1, 5], [0, -1, 2], [[0, 1, 2]]])
def test_labels_that_are_missing_or_out_of_range_are_refused(y):
    with pytest.raises(ValueError, match="labels are"):
        answer(unet(num_classes=5), y=None if y is None else torch.tensor(y))


def test_labels_and_contexts_given_in_vain_are_refused():
    with pytest.raises(ValueError, match="labels are given if and only if"):
        answer(unet(), y=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="a context is given if and only if"):
        answer(unet(use_spatial_transformer=False), context=normal(3, 5, 7))
    with pytest.raises(ValueError, match="a context is given if and only if"):
        answer(unet(), context=None)


# norms


def test_scale_and_shift_act_on_the_second_norms_output():
    block = randomise(ResBlockWithOptions(8, 6, 12, 4, use_scale_shift_norm=True))
    x, emb = normal(2, 8, 4, 4), normal(2, 6, seed=2)
    scale, shift = block.emb_layers(emb).split(12, dim=1)
    normed = block.out_layers[0](block.in_layers(x))
    moved = normed * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    expected = block.skip_connection(x) + block.out_layers[3](moved * moved.sigmoid())
    assert_close(block(x, emb), expected, rtol=0, atol=1e-5)
    assert block.emb_layers[1].out_features == 24


# attention


def attention_by_hand(block, x):
    """Place by place, head by head, with LDM's order of weights: head 0's q, k, v, then head 1's, ..."""
    b, c, height, width = x.shape
    places = block.norm(x).flatten(2).transpose(1, 2)
    qkv = places @ block.qkv.weight[:, :, 0].T + block.qkv.bias
    size = c // block.heads
    out = []
    for head in range(block.heads):
        q, k, v = (qkv[..., (3 * head + part) * size : (3 * head + part + 1) * size] for part in range(3))
        out.append(torch.softmax(q @ k.transpose(1, 2) / size**0.5, dim=-1) @ v)
    mixed = torch.cat(out, dim=-1) @ block.proj_out.weight[:, :, 0].T + block.proj_out.bias
    return x + mixed.transpose(1, 2).reshape(b, c, height, width)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_an_attention_block_is_the_papers_formula_over_all_places(heads):
    block = randomise(AttentionBlock(16, heads, norm_groups=4)).double()
    x = normal(2, 16, 3, 5).double()
    assert_close(block(x), attention_by_hand(block, x), rtol=0, atol=1e-12)
    assert (block(x) - x).std() > 0.1


def test_a_new_attention_block_is_the_identity_under_ldms_names():
    block = AttentionBlock(16, 2, norm_groups=4)
    x = normal(2, 16, 3, 5)
    assert torch.equal(block(x), x)
    assert shapes(block) == {
        "norm.weight": (16,), "norm.bias": (16,), "qkv.weight": (48, 16, 1), "qkv.bias": (48,),
        "proj_out.weight": (16, 16, 1), "proj_out.bias": (16,),
    }  # fmt: skip
    assert block.norm.eps == 1e-5


def test_without_spatial_transformers_attention_blocks_take_their_places():
    network = unet(use_spatial_transformer=False)
    assert not of_kind(network, SpatialTransformer)
    assert len(of_kind(network, AttentionBlock)) == len(of_kind(unet(), SpatialTransformer)) == 4
    assert (answer(network) - answer(network, seed=3)).std() > 0.1


@pytest.mark.parametrize("transformer", [True, False])
def test_num_head_channels_says_how_many_heads_there_are_instead_of_num_heads(transformer):
    network = unet(num_heads=5, num_head_channels=8, attention_resolutions=(1, 2), use_spatial_transformer=transformer)
    kind = SpatialTransformer if transformer else AttentionBlock
    heads = [
        block.transformer_blocks[0].attn1.heads if transformer else block.heads for block in of_kind(network, kind)
    ]
    assert heads == [2, 4, 4, 4, 4, 2, 2]


def test_transformer_depth_is_kept():
    network = unet(transformer_depth=3)
    assert {len(block.transformer_blocks) for block in of_kind(network, SpatialTransformer)} == {3}


@pytest.mark.parametrize("options", [{"num_heads": 3}, {"num_heads": 3, "use_spatial_transformer": False}])
def test_heads_that_do_not_divide_the_channels_are_refused(options):
    with pytest.raises(ValueError, match="channels cannot be shared by 3 heads"):
        UNetModelWithOptions(UNetOptions(**SIZES | options))


# gradient checkpointing


def gradients_and_bytes(use_checkpoint):
    """Every parameter's gradient, and how much the forward pass keeps for computing them."""
    network = unet(use_checkpoint=use_checkpoint, num_classes=5)
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = answer(network, y=torch.tensor([0, 4, 2])).square().mean()
    loss.backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}, sum(kept.values())


def test_checkpointing_gives_equal_gradients_and_keeps_less():
    plain, plain_bytes = gradients_and_bytes(False)
    checkpointed, checkpointed_bytes = gradients_and_bytes(True)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)
    assert min(float(gradient.abs().max()) for gradient in plain.values()) > 0
    assert checkpointed_bytes < 0.2 * plain_bytes, (checkpointed_bytes, plain_bytes)


def test_checkpointing_changes_no_answer_and_no_name():
    plain, checkpointed = unet(), unet(use_checkpoint=True)
    assert shapes(plain) == shapes(checkpointed)
    assert torch.equal(answer(plain), answer(checkpointed))
