"""Attention maps against diffusers, whose attention can be made to compute its weights in the open."""

import torch
from diffusers.models.attention_processor import AttnProcessor
from parity.diffusers_twins import unet_blocks, unet_twins
from torch.testing import assert_close

from sd_teach.trace import attention_maps
from sd_teach.unet import UNetConfig

CONFIG = UNetConfig(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2, 1), num_heads=4,
    transformer_depth=2, context_dim=24, norm_groups=16,
)  # fmt: skip


@torch.no_grad()
def test_attention_maps_equal_diffusers_attention_probabilities(monkeypatch):
    ours, theirs = unet_twins(CONFIG)
    theirs.set_attn_processor(AttnProcessor())
    blocks, expected = unet_blocks(CONFIG), {}

    def spy(name, attention):
        scores = attention.get_attention_scores

        def get_attention_scores(*args):
            probabilities = scores(*args)
            expected[name] = probabilities.unflatten(0, (-1, attention.heads)).mean(1)
            return probabilities

        monkeypatch.setattr(attention, "get_attention_scores", get_attention_scores)

    for name, module in theirs.named_modules():
        if name.endswith(".attn2"):
            block, _, inside = name.partition(".transformer_blocks")
            spy(f"{blocks[block]}.transformer_blocks{inside}", module)

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 16, generator=generator, dtype=torch.float64)
    context = torch.randn(2, 7, CONFIG.context_dim, generator=generator, dtype=torch.float64)
    t = torch.tensor([1, 500])
    with attention_maps(ours) as maps:
        ours(x, t, context)
    theirs(x, t, context)
    (call,) = maps.calls
    assert call.keys() == expected.keys() and len(call) == 14
    for name, weights in call.items():
        assert expected[name].std() > 0.01  # far from the same everywhere
        assert_close(weights.flatten(1, 2).double(), expected[name], rtol=0, atol=1e-6)
