import math

import pytest
import torch
import torch.nn.functional as F
from parity.diffusers_twins import randomise
from torch import nn
from torch.testing import assert_close

from sd_teach.attention import GEGLU, BasicTransformerBlock, CrossAttention, FeedForward, SpatialTransformer


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention_by_hand(module, x, context):
    """softmax(q kᵀ / sqrt(d)) v, one head after the other, each on its own slice of the channels."""
    q, k, v = x @ module.to_q.weight.T, context @ module.to_k.weight.T, context @ module.to_v.weight.T
    outs = []
    for q_head, k_head, v_head in zip(*(m.chunk(module.heads, dim=-1) for m in (q, k, v)), strict=True):
        scores = q_head @ k_head.transpose(1, 2) / math.sqrt(q_head.shape[-1])
        outs.append(scores.softmax(dim=-1) @ v_head)
    return torch.cat(outs, dim=-1) @ module.to_out[0].weight.T + module.to_out[0].bias


@pytest.mark.parametrize(("heads", "dim_head"), [(1, 12), (2, 6), (4, 5)])
def test_cross_attention_is_its_formula_head_by_head(heads, dim_head):
    module = randomise(CrossAttention(12, 7, heads, dim_head)).double()
    x, context = 3 * normal(2, 6, 12), normal(2, 5, 7, seed=2)
    assert_close(module(x, context), attention_by_hand(module, x, context), rtol=0, atol=1e-12)


def test_without_a_context_the_places_look_at_each_other():
    module = randomise(CrossAttention(12, None, 3, 4)).double()
    x = normal(2, 6, 12)
    assert_close(module(x), attention_by_hand(module, x, x), rtol=0, atol=1e-12)


def test_queries_keys_and_values_have_no_bias_and_the_projection_has_one():
    shapes = {name: tuple(p.shape) for name, p in CrossAttention(12, 7, 2, 5).named_parameters()}
    assert shapes == {
        "to_q.weight": (10, 12),
        "to_k.weight": (10, 7),
        "to_v.weight": (10, 7),
        "to_out.0.weight": (12, 10),
        "to_out.0.bias": (12,),
    }


def test_the_number_of_heads_changes_the_answer_but_no_shape():
    two, four = CrossAttention(16, 8, 2, 8).double(), CrossAttention(16, 8, 4, 4).double()
    randomise(two)
    four.load_state_dict(two.state_dict(), strict=True)
    x, context = normal(1, 6, 16), normal(1, 5, 8, seed=2)
    assert (two(x, context) - four(x, context)).abs().max() > 0.1


def test_the_order_of_the_context_does_not_matter():
    module = randomise(CrossAttention(12, 7, 2, 6)).double()
    x, context = normal(2, 6, 12), normal(2, 5, 7, seed=2)
    assert_close(module(x, context.flip(1)), module(x, context), rtol=0, atol=1e-12)


def geglu_parts():
    module = randomise(GEGLU(6, 10)).double()
    x = 2 * normal(3, 6)
    value, gate = module.proj.weight[:10], module.proj.weight[10:]
    value, gate = x @ value.T + module.proj.bias[:10], x @ gate.T + module.proj.bias[10:]
    return module(x), value, gate


def test_geglu_gates_its_first_half_by_the_exact_gelu_of_its_second():
    answer, value, gate = geglu_parts()
    assert_close(answer, value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))), rtol=0, atol=1e-12)


def test_neither_quick_gelu_nor_the_tanh_gelu_would_pass_for_the_exact_one():
    answer, value, gate = geglu_parts()
    assert (answer - value * gate * torch.sigmoid(1.702 * gate)).abs().max() > 1e-2
    assert (answer - value * F.gelu(gate, approximate="tanh")).abs().max() > 1e-4


def test_the_feed_forward_is_four_times_as_wide_inside_and_named_as_in_the_checkpoint():
    shapes = {name: tuple(p.shape) for name, p in FeedForward(6).named_parameters()}
    assert shapes == {
        "net.0.proj.weight": (48, 6),
        "net.0.proj.bias": (48,),
        "net.2.weight": (6, 24),
        "net.2.bias": (6,),
    }


def test_a_transformer_block_adds_self_attention_then_cross_attention_then_feed_forward():
    block = randomise(BasicTransformerBlock(12, 2, 6, 7)).double()
    x, context = normal(2, 6, 12), normal(2, 5, 7, seed=2)

    def norm(module, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return module.weight * scaled + module.bias

    first = x + attention_by_hand(block.attn1, norm(block.norm1, x), norm(block.norm1, x))
    second = first + attention_by_hand(block.attn2, norm(block.norm2, first), context)
    third = second + block.ff(norm(block.norm3, second))
    assert_close(block(x, context), third, rtol=0, atol=1e-12)


def test_a_new_spatial_transformer_is_the_identity():
    torch.manual_seed(0)
    module = SpatialTransformer(16, heads=2, depth=2, context_dim=7, norm_groups=4).double()
    x = normal(2, 16, 4, 6)
    assert torch.equal(module(x, normal(2, 5, 7, seed=2)), x)


def test_a_randomised_spatial_transformer_is_not_the_identity():
    module = randomise(SpatialTransformer(16, heads=2, depth=2, context_dim=7, norm_groups=4)).double()
    x = normal(2, 16, 4, 6)
    assert (module(x, normal(2, 5, 7, seed=2)) - x).std() > 0.3


def test_a_spatial_transformer_moves_with_the_picture():
    """It has no positions: mirrored in, mirrored out. A mix-up of rows and columns would not be."""
    module = randomise(SpatialTransformer(16, heads=2, depth=1, context_dim=7, norm_groups=4)).double()
    x, context = normal(2, 16, 3, 5), normal(2, 5, 7, seed=2)
    assert_close(module(x.flip(3), context), module(x, context).flip(3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 3])
def test_depth_is_the_number_of_transformer_blocks(depth):
    module = SpatialTransformer(16, heads=2, depth=depth, context_dim=7, norm_groups=4)
    assert [type(block) for block in module.transformer_blocks] == [BasicTransformerBlock] * depth


def test_a_spatial_transformer_projects_by_convolutions_and_norms_with_1e_6():
    module = SpatialTransformer(16, heads=2, depth=1, context_dim=7, norm_groups=4)
    assert isinstance(module.proj_in, nn.Conv2d)
    assert isinstance(module.proj_out, nn.Conv2d)
    assert (module.norm.eps, module.norm.num_groups) == (1e-6, 4)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="20 channels cannot be shared by 8 heads"):
        SpatialTransformer(20, heads=8, depth=1, context_dim=7, norm_groups=4)
