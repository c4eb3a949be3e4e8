"""Attention inside the UNet: places look at each other (attn1), then at the prompt's words (attn2).

Shape letters: b batch, c channels, h and w sides of the feature map, l = h·w places, n = 77 slots, d context width.
Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2; Rombach et al. 2022, appendix E.2.1.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """softmax(q kᵀ / sqrt(dim_head)) v: queries from x, keys and values from the context, or from x itself.

    query_dim: channels of x. context_dim: width of the context, None for self-attention.
    heads, dim_head: number and width of the heads.
    """

    attend = staticmethod(F.scaled_dot_product_attention)  # packing.py may put a faster one of the same result here

    def __init__(self, query_dim: int, context_dim: int | None, heads: int, dim_head: int):
        super().__init__()
        self.heads = heads
        inner = heads * dim_head
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim or query_dim, inner, bias=False)
        # a list, because the checkpoint calls the projection `to_out.0`
        self.to_out = nn.ModuleList([nn.Linear(inner, query_dim)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [b, l, c]; context: [b, n, d], None for self-attention. Returns [b, l, c]."""
        context = x if context is None else context
        q, k, v = (
            rearrange(tensor, "b l (heads dim) -> b heads l dim", heads=self.heads)
            for tensor in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = self.attend(q, k, v)  # softmax(q kᵀ / sqrt(dim)) v
        return self.to_out[0](rearrange(out, "b heads l dim -> b l (heads dim)"))


class GEGLU(nn.Module):
    """[..., dim_in] -> [..., dim_out]: a linear layer gated by the exact (erf) gelu of another. Shazeer 2020."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """[b, l, c] -> same: every place for itself, four times as wide in between."""

    def __init__(self, channels: int):
        super().__init__()
        # the Identity stands where LDM has a Dropout of 0: it gives the second layer its name, `net.2`
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """[b, l, c] -> same: self-attention, cross-attention to the text, feed-forward; each added to its input.

    An x of one row, [1, l, c], goes with any number of texts.
    """

    def __init__(self, channels: int, heads: int, dim_head: int, context_dim: int):
        super().__init__()
        self.attn1 = CrossAttention(channels, None, heads, dim_head)
        self.attn2 = CrossAttention(channels, context_dim, heads, dim_head)
        self.ff = FeedForward(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x.expand(len(context), -1, -1)  # one latent, several texts: up to here their work was the same
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """[b, c, h, w] -> same: the feature map as a sequence of places through `depth` transformer blocks.

    Starts as the identity, because proj_out starts at zero. Raises ValueError where heads does not divide channels.
    """

    def __init__(self, channels: int, heads: int, depth: int, context_dim: int, norm_groups: int):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} heads")
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)  # the ResBlocks beside it use 1e-5
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, heads, channels // heads, context_dim) for _ in range(depth)
        )
        self.proj_out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: [b, c, h, w]; context: [b, n, d]. Returns [b, c, h, w]."""
        height = x.shape[2]
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=height))
