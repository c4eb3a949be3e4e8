"""The UNet's other switches against diffusers: same random weights, same answer, in float64.

With spatial transformers their twin is UNet2DConditionModel, with AttentionBlocks it is UNet2DModel.
"""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from parity.diffusers_twins import UNET_INSIDE, _copy_weights, _names, randomise, unet_blocks
from torch import nn
from torch.testing import assert_close

from sd_teach.unet_options import AttentionBlock, ResBlockWithOptions, UNetModelWithOptions, UNetOptions

SIZES = dict(model_channels=32, num_res_blocks=1, norm_groups=8)
WITH_TEXT = {
    "plain": UNetOptions(**SIZES, channel_mult=(1, 2), attention_resolutions=(2,), context_dim=24),
    "classes": UNetOptions(**SIZES, channel_mult=(1, 2), attention_resolutions=(2,), context_dim=24, num_classes=5),
    "scale and shift": UNetOptions(
        **SIZES, channel_mult=(1, 2), attention_resolutions=(2,), context_dim=24, use_scale_shift_norm=True
    ),
    "heads of one width, two transformer blocks": UNetOptions(
        **SIZES, channel_mult=(1, 2), attention_resolutions=(1, 2), context_dim=24, num_head_channels=16,
        transformer_depth=2,
    ),
    "picture beside the latent, all together": UNetOptions(
        **SIZES, channel_mult=(1, 3), attention_resolutions=(1,), context_dim=24, in_channels=9, num_classes=3,
        use_scale_shift_norm=True, num_head_channels=8, dropout=0.5, use_checkpoint=True,
    ),
}  # fmt: skip
WITHOUT_TEXT = {
    "attention blocks": UNetOptions(
        **SIZES, channel_mult=(1, 2), attention_resolutions=(1, 2), num_head_channels=8, use_spatial_transformer=False
    ),
    "attention at one level": UNetOptions(
        **SIZES, channel_mult=(1, 2, 3), attention_resolutions=(2,), num_head_channels=16,
        use_spatial_transformer=False,
    ),
    "resolutions changed by ResBlocks, classes, scale and shift": UNetOptions(
        **SIZES, channel_mult=(1, 2), attention_resolutions=(1, 2), num_head_channels=32,
        use_spatial_transformer=False, resblock_updown=True, num_classes=4, use_scale_shift_norm=True,
    ),
}  # fmt: skip


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shared(config):
    return dict(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=tuple(config.model_channels * mult for mult in config.channel_mult),
        layers_per_block=config.num_res_blocks,
        norm_num_groups=config.norm_groups,
        num_class_embeds=config.num_classes,
        resnet_time_scale_shift="scale_shift" if config.use_scale_shift_norm else "default",
    )


def block_types(config, kind):
    """Theirs, on the way down and on the way up; kind: what a level with attention is called after."""
    attends = [2**level in config.attention_resolutions for level in range(len(config.channel_mult))]
    down = tuple(f"{kind}DownBlock2D" if each else "DownBlock2D" for each in attends)
    return dict(down_block_types=down, up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)))


def with_text(config):
    widths = [config.model_channels * mult for mult in config.channel_mult]
    heads = [width // config.num_head_channels if config.num_head_channels else config.num_heads for width in widths]
    return UNet2DConditionModel(
        **shared(config),
        **block_types(config, "CrossAttn"),
        attention_head_dim=tuple(heads),  # so it is called there
        transformer_layers_per_block=config.transformer_depth,
        cross_attention_dim=config.context_dim,
    )


def without_text(config):
    kind = "resnet" if config.resblock_updown else "conv"
    return UNet2DModel(
        **shared(config),
        **block_types(config, "Attn"),
        attention_head_dim=config.num_head_channels,
        attn_norm_num_groups=config.norm_groups,
        downsample_type=kind,
        upsample_type=kind,
    )


class Separated:
    """Our UNet's weights with each AttentionBlock's qkv taken apart, as they are in diffusers."""

    def __init__(self, unet):
        self.state = {}
        heads = {name: block.heads for name, block in unet.named_modules() if isinstance(block, AttentionBlock)}
        for name, tensor in unet.state_dict().items():
            block, _, leaf = name.rpartition(".qkv.")
            if block not in heads:
                self.state[name] = tensor
                continue
            width = len(tensor) // (3 * heads[block])
            by_head = tensor.view(heads[block], 3, width, *tensor.shape[1:])
            for k, part in enumerate("qkv"):
                self.state[f"{block}.{part}.{leaf}"] = by_head[:, k].flatten(0, 1)

    def state_dict(self):
        return self.state


def twins(config):
    ours = randomise(UNetModelWithOptions(config))
    theirs = (with_text if config.use_spatial_transformer else without_text)(config)
    inside = dict(UNET_INSIDE)
    if not config.use_spatial_transformer:
        inside["attentions"] = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    if config.resblock_updown:
        inside["downsamplers"] = inside["upsamplers"] = UNET_INSIDE["resnets"]
    blocks = unet_blocks(config) | {"class_embedding": "label_emb"}
    _copy_weights(Separated(ours), theirs, _names(theirs, blocks, inside))
    return ours.double().eval(), theirs.double().eval()


@pytest.mark.parametrize("config", [*WITH_TEXT.values(), *WITHOUT_TEXT.values()], ids=[*WITH_TEXT, *WITHOUT_TEXT])
@torch.no_grad()
def test_the_unet_equals_diffusers(config):
    ours, theirs = twins(config)
    x, t = normal(3, config.in_channels, 8, 12), torch.tensor([1, 500, 999])
    context = normal(3, 5, config.context_dim, seed=2) if config.use_spatial_transformer else None
    y = torch.arange(3) if config.num_classes else None
    texts = () if context is None else (context,)
    expected = theirs(x, t, *texts, class_labels=y).sample
    assert 0.3 < expected.std() < 3
    assert_close(ours(x, t, context, y), expected, rtol=0, atol=1e-11)
    if y is not None:
        assert (expected - theirs(x, t, *texts, class_labels=y.flip(0)).sample).std() > 0.01


@pytest.mark.parametrize("resample", ["up", "down", None])
@pytest.mark.parametrize("scale_shift", [False, True])
@torch.no_grad()
def test_a_res_block_equals_diffusers_on_small_numbers(resample, scale_shift):
    """Of standard deviation 1e-3, so that the norms' eps shapes the answer."""
    resize = {"up": nn.Upsample(scale_factor=2.0, mode="nearest"), "down": nn.AvgPool2d(2), None: None}[resample]
    ours = randomise(ResBlockWithOptions(16, 24, 16, 4, use_scale_shift_norm=scale_shift, resample=resize)).double()
    theirs = ResnetBlock2D(
        in_channels=16, out_channels=16, temb_channels=24, groups=4, eps=1e-5, up=resample == "up",
        down=resample == "down", time_embedding_norm="scale_shift" if scale_shift else "default",
    ).double()  # fmt: skip
    names = {name: name for name in theirs.state_dict()}
    for inside, outside in UNET_INSIDE["resnets"].items():
        names = {name: ours_.replace(inside, outside) for name, ours_ in names.items()}
    _copy_weights(ours, theirs, names)
    x, emb = 1e-3 * normal(2, 16, 4, 6), normal(2, 24, seed=3)
    expected = theirs(x, emb)
    assert 0.3 < expected.std() < 3
    assert expected.shape[2] == {"up": 8, "down": 2, None: 4}[resample]
    assert_close(ours(x, emb), expected, rtol=0, atol=1e-12)


def resamplers(config):
    unet = UNetModelWithOptions(config)
    return unet.input_blocks[2][0], unet.output_blocks[1][-1]


def test_without_conv_resample_resolutions_change_as_in_diffusers():
    down, up = resamplers(UNetOptions(**SIZES, channel_mult=(1, 2), attention_resolutions=(), conv_resample=False))
    x = normal(2, 32, 6, 10)
    assert_close(down(x), Downsample2D(32, use_conv=False)(x), rtol=0, atol=0)
    assert_close(up(x), Upsample2D(32, use_conv=False)(x), rtol=0, atol=0)
    assert not [*down.parameters(), *up.parameters()]
