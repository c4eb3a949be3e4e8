"""The UNet's other switches: what LDM's UNetModel can do and Stable Diffusion leaves off.

The network is Stable Diffusion's with parts exchanged, so that unet.py stays the one that Stable Diffusion needs.
Shape letters: b batch, c channels, h and w sides of the feature map, l = h·w places, n token slots, d context width.
Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233, section 3, for all but the checkpointing.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sd_teach.attention import SpatialTransformer
from sd_teach.unet import Downsample, ResBlock, TimestepEmbedSequential, UNetConfig, UNetModel, Upsample


@dataclass(frozen=True)
class UNetOptions(UNetConfig):
    """UNetConfig and the switches under LDM's names; the defaults are Stable Diffusion's."""

    dropout: float = 0.0  # share of a ResBlock's values dropped before its last convolution, in training
    conv_resample: bool = True  # a convolution where the resolution changes; else only averaging, or repeating
    num_classes: int | None = None  # a label y beside the time step, embedded by a table of so many rows
    num_head_channels: int | None = None  # width of a head, which then says how many there are instead of num_heads
    use_scale_shift_norm: bool = False  # the embedding scales and shifts the second norm's output; else it is added
    resblock_updown: bool = False  # ResBlocks change the resolution
    use_spatial_transformer: bool = True  # else AttentionBlocks, which know no text; context_dim is not used
    use_checkpoint: bool = False  # keep each block's input only, and compute the rest again for the gradient


class ResBlockWithOptions(ResBlock):
    """A ResBlock with dropout, the embedding as scale and shift, and a change of resolution.

    resample: what makes [b, c, h, w] larger or smaller without a weight, applied to both branches; None for neither.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int,
        norm_groups: int,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = False,
        resample: nn.Module | None = None,
    ):
        super().__init__(channels, emb_channels, out_channels, norm_groups)
        self.out_layers[2] = nn.Dropout(dropout)
        self.use_scale_shift_norm = use_scale_shift_norm
        if use_scale_shift_norm:
            self.emb_layers[1] = nn.Linear(emb_channels, 2 * out_channels)
        self.resample = resample or nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: [b, c, h, w]; emb: [b, emb_channels]. Returns [b, out_channels, h, w], or twice or half these sides."""
        norm, activation, convolution = self.in_layers
        h = convolution(self.resample(activation(norm(x))))
        emb = self.emb_layers(emb)[:, :, None, None]
        if self.use_scale_shift_norm:
            norm, *rest = self.out_layers
            scale, shift = emb.chunk(2, dim=1)
            h = nn.Sequential(*rest)(norm(h) * (1.0 + scale) + shift)
        else:
            h = self.out_layers(h + emb)
        return self.skip_connection(self.resample(x)) + h


class AttentionBlock(nn.Module):
    """[b, c, h, w] -> same: all places look at each other, and at nothing else.

    Starts as the identity, because proj_out starts at zero. Raises ValueError where heads does not divide channels.
    """

    def __init__(self, channels: int, heads: int, norm_groups: int):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} heads")
        self.heads = heads
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-5)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [b, c, h, w]. Returns [b, c, h, w]."""
        qkv = self.qkv(self.norm(x).flatten(2))
        # head by head, each with its q, k and v: LDM's QKVAttentionLegacy, the order in trained weights
        q, k, v = rearrange(qkv, "b (heads three dim) l -> three b heads l dim", heads=self.heads, three=3)
        h = rearrange(F.scaled_dot_product_attention(q, k, v), "b heads l dim -> b (heads dim) l")
        return x + self.proj_out(h).view(x.shape)


class CheckpointedSequential(TimestepEmbedSequential):
    """A block that forgets what happened inside it, and runs again when the gradient needs it. Chen et al. 2016."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        return checkpoint(super().forward, x, emb, context, use_reentrant=False)


class UNetModelWithOptions(UNetModel):
    """UNetModel under UNetOptions; with the defaults the same network, with the same names."""

    def __init__(self, config: UNetOptions = UNetOptions()):
        # num_heads may not divide the channels where num_head_channels takes its place
        super().__init__(config if config.num_head_channels is None else replace(config, num_heads=1))
        self.config = config
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, 4 * config.model_channels)
        self.input_blocks = nn.ModuleList(self._exchanged(block) for block in self.input_blocks)
        self.middle_block = self._exchanged(self.middle_block)
        self.output_blocks = nn.ModuleList(self._exchanged(block) for block in self.output_blocks)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """As UNetModel; context: [b, n, d], only with use_spatial_transformer; y: [b], labels, only with num_classes.

        Raises ValueError for a context or labels missing or given in vain, and as UNetModel does.
        """
        if (context is not None) != self.config.use_spatial_transformer:
            raise ValueError("a context is given if and only if the network has spatial transformers")
        if (y is not None) != (self.config.num_classes is not None):
            raise ValueError("labels are given if and only if the network has classes")
        if y is not None and (y.shape != (len(x),) or y.min() < 0 or y.max() >= self.config.num_classes):
            raise ValueError(f"labels are {len(x)} whole numbers from 0 to {self.config.num_classes - 1}, got {y}")
        emb = self.embed(t, x.dtype)
        return self.predict(x, emb if y is None else emb + self.label_emb(y), context)

    def _exchanged(self, block: TimestepEmbedSequential) -> TimestepEmbedSequential:
        kind = CheckpointedSequential if self.config.use_checkpoint else TimestepEmbedSequential
        return kind(*map(self._layer, block))

    def _layer(self, layer: nn.Module) -> nn.Module:
        """The layer that the options want in the place of one of Stable Diffusion's."""
        config = self.config
        if isinstance(layer, ResBlock):
            return self._res_block(layer.in_layers[0].num_channels, layer.out_layers[0].num_channels)
        if isinstance(layer, SpatialTransformer):
            channels = layer.norm.num_channels
            heads = config.num_heads if config.num_head_channels is None else channels // config.num_head_channels
            if not config.use_spatial_transformer:
                return AttentionBlock(channels, heads, config.norm_groups)
            return SpatialTransformer(channels, heads, config.transformer_depth, config.context_dim, config.norm_groups)
        if isinstance(layer, Downsample | Upsample):
            down = isinstance(layer, Downsample)
            resample = nn.AvgPool2d(2) if down else nn.Upsample(scale_factor=2.0, mode="nearest")
            if config.resblock_updown:
                channels = (layer.op if down else layer.conv).in_channels
                return self._res_block(channels, channels, resample)
            return layer if config.conv_resample else resample
        return layer

    def _res_block(self, channels: int, out_channels: int, resample: nn.Module | None = None) -> ResBlockWithOptions:
        config, emb_channels = self.config, 4 * self.config.model_channels
        return ResBlockWithOptions(
            channels,
            emb_channels,
            out_channels,
            config.norm_groups,
            config.dropout,
            config.use_scale_shift_norm,
            resample,
        )
