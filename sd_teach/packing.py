"""Networks made ready for a CPU: the same layers and the same numbers, in less time and less memory.

What is computed stays as it is in the modules that the course reads; here is how it is computed when a model is large.
Weights are put once into the order that oneDNN's kernels read, as `torch.compile` with freezing does and through the
same operators: as PyTorch keeps them they are rearranged at every call, or go to slower kernels. Large intermediate
results are made in pieces, so that they stay in the processor's cache and never exist as a whole.

Shape letters: b batch, c channels, h and w sides of the feature map, l places, n keys, d width of a head.
"""

import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_teach.attention import CrossAttention, FeedForward
from sd_teach.unet import Upsample
from sd_teach.vae import AttnBlock, Decoder, ResnetBlock


def can_pack() -> bool:
    """Whether this machine has the operators: PyTorch with oneDNN, on an x86 processor."""
    return torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")


@torch.no_grad()
def pack(network: nn.Module) -> nn.Module:
    """Replace the layers within `network` by packed ones, one after the other; returns network.

    For inference on the CPU: packed weights cannot be trained, saved or moved. state_dict() says so by ValueError.
    """
    for i, (name, child) in enumerate(network.named_children()):
        if make := _PACKED.get(type(child)):
            setattr(network, name, make(child))
        elif isinstance(child, nn.SiLU):
            child.inplace = isinstance(network, nn.Sequential) and i > 0  # nobody else reads what the layer before made
        else:
            pack(child)
            if isinstance(child, CrossAttention | AttnBlock):
                child.attend = attention_by_rows
    return network


def attention_by_rows(q: Tensor, k: Tensor, v: Tensor, scores: int = 2**20) -> Tensor:
    """What F.scaled_dot_product_attention computes, one head and about as many scores at a time.

    q: [b, heads, l, d]; k, v: [b, heads, n, d]. Returns [b, heads, l, d]. In bfloat16 the scores are rounded, too.
    """
    rows = max(1, scores // k.shape[2])
    out = q.new_empty(q.transpose(1, 2).shape).transpose(1, 2)  # the heads of a place side by side
    for b in range(len(q)):
        for head in range(q.shape[1]):
            keys, values = k[b, head].contiguous() * q.shape[-1] ** -0.5, v[b, head].T.contiguous()
            for some, into in zip(q[b, head].split(rows), out[b, head].split(rows), strict=True):
                into.copy_(_linear(_linear(some, keys).softmax(-1), values))
    return out


class Packed(nn.Module):
    """What packed layers have in common: a weight out of PyTorch's sight, and perhaps a bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else bias.detach().clone()  # a view would hold on to the file it came from

    def _save_to_state_dict(self, *_):
        raise ValueError("packed weights cannot be saved: take those that load_model gives")


class PackedLinear(Packed):
    """nn.Linear with these weights, [..., dim_in] -> [..., dim_out]; then: what is done to the result, "gelu" say."""

    def __init__(self, weight: Tensor, bias: Tensor | None, then: str = "none"):
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous()), bias)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight, self.bias, self.then)


class PackedConv1x1(PackedLinear):
    """nn.Conv2d of 1 x 1, a linear layer at every place: [b, c, h, w] -> [b, out_channels, h, w]."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__(conv.weight.flatten(1), conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PackedConv2d(Packed):
    """nn.Conv2d, whose activations are channels_last: the channels of a place side by side in memory.

    channels: of the input, a slice of them; the others must be added by another layer.
    """

    def __init__(self, conv: nn.Conv2d, channels: slice = slice(None)):
        self.geometry = conv.padding, conv.stride, conv.dilation, conv.groups
        weight = conv.weight.detach()[:, channels].contiguous()
        bias = None if channels.start else conv.bias  # once is enough
        super().__init__(torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry), bias)

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the convolution of x, or add it to `out` in place."""
        x = x.contiguous(memory_format=torch.channels_last)
        if out is None:
            return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, "none", [], "")
        add = torch.ops.mkldnn._convolution_pointwise_.binary
        return add(out, x, self.weight, self.bias, *self.geometry, "add", 1.0, None, [], None)


class PackedFeedForward(nn.Module):
    """FeedForward for a few places at a time; gelu and gate are applied while a layer's results are in the cache."""

    def __init__(self, feed_forward: FeedForward):
        super().__init__()
        geglu, _, last = feed_forward.net
        weights, biases = geglu.proj.weight.chunk(2), geglu.proj.bias.chunk(2)
        self.value = PackedLinear(weights[0], biases[0])
        self.gate = PackedLinear(weights[1], biases[1], "gelu")
        self.last = PackedLinear(last.weight, last.bias)

    def forward(self, x: Tensor, rows: int = 1024) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for some, into in zip(x.flatten(0, 1).split(rows), out.flatten(0, 1).split(rows), strict=True):
            times_gate = torch.ops.mkldnn._linear_pointwise.binary
            into.copy_(self.last(times_gate(some, self.gate(some), self.value.weight, self.value.bias, "mul")))
        return out


class PackedResnetBlock(nn.Module):
    """The VAE's ResnetBlock. Where the channels change, a convolution is the sum of four, each over some of them."""

    def __init__(self, block: ResnetBlock):
        super().__init__()
        self.shortcut = PackedConv1x1(block.nin_shortcut) if hasattr(block, "nin_shortcut") else None
        self.first = self._slices(block.norm1, block.conv1)
        self.second = self._slices(block.norm2, block.conv2)

    def _slices(self, norm: nn.GroupNorm, conv: nn.Conv2d) -> nn.ModuleList:
        pieces = 4 if self.shortcut and norm.num_groups % 4 == 0 else 1
        step = norm.num_channels // pieces
        slices = nn.ModuleList()
        for start in range(0, norm.num_channels, step):
            channels = slice(start, start + step)
            part = nn.GroupNorm(norm.num_groups // pieces, step, eps=norm.eps, dtype=norm.weight.dtype)
            part.weight.copy_(norm.weight[channels])
            part.bias.copy_(norm.bias[channels])
            slices.append(nn.ModuleList([part.requires_grad_(False), PackedConv2d(conv, channels)]))
        return slices

    def forward(self, x: Tensor) -> Tensor:
        h = _norm_silu_conv(self.first, x)
        if self.shortcut:
            return _norm_silu_conv(self.second, h, self.shortcut(x))
        return _norm_silu_conv(self.second, h).add_(x)


class PackedUpsample(nn.Module):
    """Upsample some rows at a time, for the enlarged map alone is four times what comes in."""

    def __init__(self, upsample: Upsample):
        super().__init__()
        self.conv = PackedConv2d(upsample.conv)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        out = x.new_empty(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
        rows = max(1, 2**21 // (c * w))
        for top in range(0, h, rows):
            above = min(top, 1)  # one row more on each side, which the convolution looks at
            enlarged = F.interpolate(x[:, :, top - above : top + rows + 1], scale_factor=2.0, mode="nearest")
            out[:, :, 2 * top : 2 * (top + rows)] = self.conv(enlarged)[:, :, 2 * above : 2 * (above + rows)]
        return out


def _in_a_row(decoder: Decoder) -> nn.Module:
    """The VAE's decoder without its levels, which would hold on to their inputs until their ends."""
    blocks = [layer for level in reversed(decoder.up) for layer in (*level.block, *list(level.children())[1:])]
    first, last = (decoder.conv_in, *decoder.mid.children()), (decoder.norm_out, nn.SiLU(), decoder.conv_out)
    return pack(nn.Sequential(*first, *blocks, *last))


_PACKED: dict[type, Callable[[nn.Module], nn.Module]] = {
    nn.Linear: lambda linear: PackedLinear(linear.weight, linear.bias),
    nn.Conv2d: lambda conv: PackedConv1x1(conv) if conv.kernel_size == (1, 1) else PackedConv2d(conv),
    FeedForward: PackedFeedForward,
    ResnetBlock: PackedResnetBlock,
    Upsample: PackedUpsample,
    Decoder: _in_a_row,
}


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
    # the last argument chooses between two gelus: "none" is the exact one
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")


def _norm_silu_conv(slices: nn.ModuleList, x: Tensor, out: Tensor | None = None) -> Tensor:
    """conv(silu(norm(x))), added to `out` if there is one, for one slice of the channels after the other."""
    for part, (norm, conv) in zip(x.chunk(len(slices), dim=1), slices, strict=True):
        out = conv(F.silu(norm(part.contiguous(memory_format=torch.channels_last)), inplace=True), out)
    return out
