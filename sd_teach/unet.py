"""Step 5 of the pipeline: the network that sees the noise in a latent.

Shape letters: b batch, c channels, h and w sides of the feature map, n = 77 token slots, d context width.
Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597; Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233;
Rombach et al. 2022, https://arxiv.org/abs/2112.10752, section 3.3. Attribute names are the checkpoint's.

What the block numbers mean in Stable Diffusion v1.5 (a 64 x 64 latent; R ResBlock, T SpatialTransformer):

    input_blocks    side  channels            output_blocks   side  channels (h + skip -> out)
     0 convolution   64     4 ->  320          0  R            8    1280 + 1280 -> 1280
     1 R T           64   320 ->  320          1  R            8    1280 + 1280 -> 1280
     2 R T           64   320 ->  320          2  R, up        8    1280 + 1280 -> 1280
     3 down          32   320 ->  320          3  R T         16    1280 + 1280 -> 1280
     4 R T           32   320 ->  640          4  R T         16    1280 + 1280 -> 1280
     5 R T           32   640 ->  640          5  R T, up     16    1280 +  640 -> 1280
     6 down          16   640 ->  640          6  R T         32    1280 +  640 ->  640
     7 R T           16   640 -> 1280          7  R T         32     640 +  640 ->  640
     8 R T           16  1280 -> 1280          8  R T, up     32     640 +  320 ->  640
     9 down           8  1280 -> 1280          9  R T         64     640 +  320 ->  320
    10 R              8  1280 -> 1280         10  R T         64     320 +  320 ->  320
    11 R              8  1280 -> 1280         11  R T         64     320 +  320 ->  320
    middle_block     R T R   8   1280
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_teach.attention import SpatialTransformer


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet; the defaults are Stable Diffusion v1.5's (859,520,964 parameters).

    Raises ValueError for attention at a resolution that no level has.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320  # channels of the finest level
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # channels of a level / model_channels
    num_res_blocks: int = 2  # a level on the way down; one more on the way up
    attention_resolutions: tuple[int, ...] = (4, 2, 1)  # downsampling factors with attention; the middle always has it
    num_heads: int = 8  # at every level, so heads are 40, 80 and 160 wide; cannot be read from the weights' shapes
    transformer_depth: int = 1  # transformer blocks in a SpatialTransformer
    context_dim: int = 768  # d, width of the text states
    norm_groups: int = 32

    def __post_init__(self):
        factors = [2**level for level in range(len(self.channel_mult))]
        if unknown := set(self.attention_resolutions) - set(factors):
            raise ValueError(f"attention_resolutions {sorted(unknown)} fit no level, they are downsampled by {factors}")

    @property
    def downsampling(self) -> int:
        """Sides of a latent must be multiples of this: 8 for four levels."""
        return 2 ** (len(self.channel_mult) - 1)


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """[cos(t f_0) ... sin(t f_0) ...], f_i = 10000^(-2i / dim), cosines first. t: [b] -> [b, dim], float32.

    Diffusers' bare get_timestep_embedding puts the sines first, at slightly other frequencies, unless told otherwise.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    """[b, c, h, w] -> [b, out_channels, h, w]: two convolutions, the time embedding added in between.

    emb_channels: width of the time embedding. Starts as its shortcut, because the last convolution starts at zero.
    """

    def __init__(self, channels: int, emb_channels: int, out_channels: int, norm_groups: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, channels, eps=1e-5), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, out_channels, eps=1e-5),
            nn.SiLU(),
            nn.Identity(),  # where LDM has a Dropout of 0: gives the convolution its name, `out_layers.3`
            _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: [b, c, h, w]; emb: [b, emb_channels]. Returns [b, out_channels, h, w]."""
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """[b, c, h, w] -> [b, c, h/2, w/2]: a convolution of stride 2, padded by 1 on all sides (the VAE's is not)."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """[b, c, h, w] -> [b, c, 2h, 2w]: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TimestepEmbedSequential(nn.Sequential):
    """Layers in a row, each handed what it needs: ResBlocks the time embedding, transformers the text states."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    """The noise predictor: latent [b, 4, h, w], time step [b], text states [b, n, d] -> noise [b, 4, h, w].

    A new one answers exactly 0 to everything: its last convolution starts at zero.
    """

    def __init__(self, config: UNetConfig = UNetConfig()):
        super().__init__()
        self.config = config
        base, groups = config.model_channels, config.norm_groups
        emb_channels = 4 * base
        widths = [base * mult for mult in config.channel_mult]

        def res(channels: int, out_channels: int) -> ResBlock:
            return ResBlock(channels, emb_channels, out_channels, groups)

        def transformer(channels: int) -> SpatialTransformer:
            return SpatialTransformer(channels, config.num_heads, config.transformer_depth, config.context_dim, groups)

        self.time_embed = nn.Sequential(nn.Linear(base, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels))
        conv_in = nn.Conv2d(config.in_channels, base, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(conv_in)])
        channels, skips = base, [base]  # skips: channels of every input block's output, for the way up
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                layers = [res(channels, width)]
                if 2**level in config.attention_resolutions:
                    layers.append(transformer(width))
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.input_blocks.append(TimestepEmbedSequential(Downsample(channels)))
                skips.append(channels)

        self.middle_block = TimestepEmbedSequential(
            res(channels, channels), transformer(channels), res(channels, channels)
        )

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for i in range(config.num_res_blocks + 1):
                layers = [res(channels + skips.pop(), width)]
                if 2**level in config.attention_resolutions:
                    layers.append(transformer(width))
                if level > 0 and i == config.num_res_blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(TimestepEmbedSequential(*layers))
                channels = width

        self.out = nn.Sequential(
            nn.GroupNorm(groups, channels, eps=1e-5),
            nn.SiLU(),
            _zero(nn.Conv2d(channels, config.out_channels, 3, padding=1)),
        )

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """x: [b, 4, h, w], latent, about unit variance; t: [b], time steps; context: [b, n, d], text states.

        One x and t, [1, ...], may go with several texts: what comes before the first of them is then computed once.

        Returns the predicted noise, [b, 4, h, w].
        Raises ValueError where h or w is not a multiple of 2^(levels - 1): the way up would miss the way down.
        """
        factor = self.config.downsampling
        if x.shape[-2] % factor or x.shape[-1] % factor:
            raise ValueError(f"sides of the latent must be multiples of {factor}, got {tuple(x.shape[-2:])}")
        return self.predict(x, self.embed(t, x.dtype), context)

    def embed(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Time steps [b] -> what every ResBlock is told of them, [b, 4 model_channels]."""
        return self.time_embed(timestep_embedding(t, self.config.model_channels).to(dtype))

    def predict(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """forward, once the time steps are embedded."""
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop().expand(len(h), -1, -1, -1)], dim=1)  # [h, skip], in this order
            h = block(h, emb, context)
        return self.out(h)


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv
