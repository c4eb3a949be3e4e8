"""Twins: networks of diffusers and transformers in the shape of one of ours, carrying the weights of ours.

The names are translated by explicit tables, block by block. Both sides are strict: every tensor of ours is used, every
tensor of theirs is set. The same tables turn the other libraries' full-size models, built on the meta device, into the
listing of names and shapes that a Stable Diffusion v1.5 checkpoint must have.
"""

from dataclasses import asdict

import torch
from conftest import randomize
from diffusers import AutoencoderKL as TheirAutoencoderKL
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sd_teach.diffusion import ModelConfig
from sd_teach.text_encoder import FrozenCLIPEmbedder, TextConfig
from sd_teach.unet import UNetConfig, UNetModel
from sd_teach.vae import AutoencoderKL, VAEConfig

# inside a block, their module -> ours; what is not listed has the same name on both sides
UNET_INSIDE = {
    "resnets": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
}
VAE_INSIDE = {
    "resnets": {"conv_shortcut": "nin_shortcut"},
    "attentions": {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
}


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter at random, so that no layer is silent and none explodes."""
    return randomize(network, seed, gain=1.0)


def unet_blocks(config: UNetConfig) -> dict[str, str]:
    """Every block of the UNet, diffusers' name -> the checkpoint's."""
    levels, n = len(config.channel_mult), config.num_res_blocks
    blocks = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for level in range(levels):
        attends = 2**level in config.attention_resolutions
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        first_in, first_out = 1 + level * (n + 1), (levels - 1 - level) * (n + 1)
        for i in range(n):
            blocks[f"{down}.resnets.{i}"] = f"input_blocks.{first_in + i}.0"
            if attends:
                blocks[f"{down}.attentions.{i}"] = f"input_blocks.{first_in + i}.1"
        if level < levels - 1:
            blocks[f"{down}.downsamplers.0"] = f"input_blocks.{first_in + n}.0"
        for i in range(n + 1):
            blocks[f"{up}.resnets.{i}"] = f"output_blocks.{first_out + i}.0"
            if attends:
                blocks[f"{up}.attentions.{i}"] = f"output_blocks.{first_out + i}.1"
        if level > 0:
            blocks[f"{up}.upsamplers.0"] = f"output_blocks.{first_out + n}.{2 if attends else 1}"
    return blocks


def vae_blocks(config: VAEConfig) -> dict[str, str]:
    """Every block of the autoencoder, diffusers' name -> the checkpoint's."""
    levels, n = len(config.ch_mult), config.num_res_blocks
    blocks = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        blocks |= {
            f"{half}.conv_in": f"{half}.conv_in",
            f"{half}.mid_block.resnets.0": f"{half}.mid.block_1",
            f"{half}.mid_block.attentions.0": f"{half}.mid.attn_1",
            f"{half}.mid_block.resnets.1": f"{half}.mid.block_2",
            f"{half}.conv_norm_out": f"{half}.norm_out",
            f"{half}.conv_out": f"{half}.conv_out",
        }
    for level in range(levels):
        up = f"decoder.up_blocks.{levels - 1 - level}"
        for i in range(n):
            blocks[f"encoder.down_blocks.{level}.resnets.{i}"] = f"encoder.down.{level}.block.{i}"
        if level < levels - 1:
            blocks[f"encoder.down_blocks.{level}.downsamplers.0"] = f"encoder.down.{level}.downsample"
        for i in range(n + 1):
            blocks[f"{up}.resnets.{i}"] = f"decoder.up.{level}.block.{i}"
        if level > 0:
            blocks[f"{up}.upsamplers.0"] = f"decoder.up.{level}.upsample"
    return blocks


def their_unet(config: UNetConfig) -> UNet2DConditionModel:
    attends = [2**level in config.attention_resolutions for level in range(len(config.channel_mult))]
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=tuple(config.model_channels * mult for mult in config.channel_mult),
        layers_per_block=config.num_res_blocks,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=config.num_heads,  # so it is called there; it is the number of heads
        transformer_layers_per_block=config.transformer_depth,
        cross_attention_dim=config.context_dim,
        norm_num_groups=config.norm_groups,
    ).eval()


def their_vae(config: VAEConfig) -> TheirAutoencoderKL:
    levels = len(config.ch_mult)
    return TheirAutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        block_out_channels=tuple(config.ch * mult for mult in config.ch_mult),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        norm_num_groups=config.norm_groups,
    ).eval()


def their_text_model(config: TextConfig) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**asdict(config), bos_token_id=49406, eos_token_id=49407)).eval()


def unet_twins(config: UNetConfig, dtype: torch.dtype = torch.float64) -> tuple[UNetModel, UNet2DConditionModel]:
    ours, theirs = randomise(UNetModel(config)), their_unet(config)
    _copy_weights(ours, theirs, _names(theirs, unet_blocks(config), UNET_INSIDE))
    return ours.to(dtype), theirs.to(dtype)


def vae_twins(config: VAEConfig, dtype: torch.dtype = torch.float64) -> tuple[AutoencoderKL, TheirAutoencoderKL]:
    ours, theirs = randomise(AutoencoderKL(config)), their_vae(config)
    _copy_weights(ours, theirs, _names(theirs, vae_blocks(config), VAE_INSIDE))
    return ours.to(dtype), theirs.to(dtype)


def text_twin(ours: FrozenCLIPEmbedder) -> CLIPTextModel:
    theirs = their_text_model(ours.config)
    _copy_weights(ours, theirs, _text_names(theirs))
    return theirs.to(ours.transformer["text_model"].embeddings.token_embedding.weight.dtype)


def checkpoint_listing(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor a checkpoint of this config must hold, from the other libraries' models."""
    with torch.device("meta"):
        unet, vae, text = their_unet(config.unet), their_vae(config.vae), their_text_model(config.text)
    parts = (
        ("model.diffusion_model", unet, _names(unet, unet_blocks(config.unet), UNET_INSIDE)),
        ("first_stage_model", vae, _names(vae, vae_blocks(config.vae), VAE_INSIDE)),
        ("cond_stage_model", text, _text_names(text)),
    )
    listing = {}
    for prefix, network, names in parts:
        for theirs, tensor in network.state_dict().items():
            # LDM's autoencoder attends by 1 x 1 convolutions, diffusers' by linear layers
            square = prefix == "first_stage_model" and tensor.ndim == 2
            listing[f"{prefix}.{names[theirs]}"] = (*tensor.shape, 1, 1) if square else tuple(tensor.shape)
    return listing


def _names(theirs: nn.Module, blocks: dict[str, str], inside: dict[str, dict[str, str]]) -> dict[str, str]:
    """Every tensor of theirs -> our name of it."""

    def translate(name: str) -> str:
        block = next(block for block in blocks if name.startswith(f"{block}."))
        kind = block.split(".")[-2] if "." in block else block
        module, _, leaf = name.removeprefix(f"{block}.").rpartition(".")
        module = inside.get(kind, {}).get(module, module)
        return ".".join(part for part in (blocks[block], module, leaf) if part)

    return {name: translate(name) for name in theirs.state_dict()}


def _text_names(theirs: CLIPTextModel) -> dict[str, str]:
    return {name: f"transformer.text_model.{name}" for name in theirs.state_dict()}


def _copy_weights(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    state: dict[str, Tensor] = ours.state_dict()
    assert sorted(names.values()) == sorted(state), sorted(set(names.values()) ^ set(state))
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    # a 1 x 1 convolution of ours may be a linear layer of theirs
    copied = {name: state[names[name]].flatten(1) if len(shapes[name]) == 2 else state[names[name]] for name in names}
    theirs.load_state_dict(copied, strict=True)
