"""Watching without changing: which shapes pass through a network, the states of a run, and who looks at what.

Shape letters: b batch, h and w sides of a feature map, l = h·w places, n = 77 token slots.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd_teach.attention import CrossAttention
from sd_teach.ddim import DDIMState
from sd_teach.unet import UNetModel

if TYPE_CHECKING:  # transformers takes seconds to import, and only its tokenizer's owner needs it
    from sd_teach.text_encoder import FrozenCLIPEmbedder


@dataclass(frozen=True)
class LedgerRow:
    """One module's line in a shape ledger."""

    block: str  # its name in the network
    type: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int


def shape_ledger(module: nn.Module, *inputs: Tensor, depth: int = 2) -> list[LedgerRow]:
    """Run `module(*inputs)` once, print a table of every block's shapes and parameters, and return its rows.

    depth: how many levels of names to go down; `input_blocks.1` is at level 2.
    On the meta device (`with torch.device("meta"): ...`) nothing is computed and no memory is used, so the UNet of
    860 million parameters is traced in about a second.
    """
    rows, handles = [], []

    def watch(name: str, block: nn.Module) -> None:
        def note(block: nn.Module, args: tuple, output: Tensor) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                parameters = sum(p.numel() for p in block.parameters())
                rows.append(LedgerRow(name, _type(block), tuple(args[0].shape), tuple(output.shape), parameters))

        handles.append(block.register_forward_hook(note))

    for name, block in _blocks(module, depth):
        watch(name, block)
    try:
        module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    _print_table(rows, total=sum(p.numel() for p in module.parameters()))
    return rows


def _blocks(module: nn.Module, depth: int, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        # a ModuleList is never called itself, so what it holds is listed in its place, however deep
        if isinstance(child, nn.ModuleList) or (depth > 1 and list(child.children())):
            yield from _blocks(child, max(depth - 1, 1), f"{prefix}{name}.")
        else:
            yield prefix + name, child


def _type(block: nn.Module) -> str:
    # what a sequence of layers does is said by its layers
    return " + ".join(type(part).__name__ for part in (block if isinstance(block, nn.Sequential) else [block]))


def _print_table(rows: list[LedgerRow], total: int) -> None:
    lines = [("block", "type", "input -> output", "parameters")]
    lines += [
        (row.block, row.type, f"{_shape(row.input)} -> {_shape(row.output)}", f"{row.parameters:,}") for row in rows
    ]
    lines.append(("total", "", "", f"{total:,}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for *texts, number in lines:
        print(
            *(text.ljust(width) for text, width in zip(texts, widths, strict=False)), number.rjust(widths[-1]), sep="  "
        )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


_TENSORS = ("x", "eps", "pred_x0", "x_prev")  # of a DDIMState, each [b, 4, h, w]


def save_states(states: Sequence[DDIMState], path: Path) -> None:
    """Save a run's states, in their order, as one safetensors file of float32: t [S], and x, eps, ... [S, b, 4, h, w].

    A list is all it takes to record them: `sd.text_to_image(..., callback=states.append)`.
    Raises ValueError where there is no state, or the file cannot be written.
    """
    if not states:
        raise ValueError("there are no states to save")
    tensors = {name: torch.stack([getattr(state, name) for state in states]).cpu().contiguous() for name in _TENSORS}
    tensors["t"] = torch.tensor([state.t for state in states])
    try:
        save_file(tensors, path)
    except Exception as error:  # the library has one of its own for every trouble with a file
        raise ValueError(f"cannot write {path}: {error}") from None


def load_states(path: Path) -> list[DDIMState]:
    """The states that save_states saved, on the CPU.

    Raises ValueError where the file is missing or holds something else.
    """
    try:
        tensors = load_file(path)
        columns = [tensors[name] for name in ("t", *_TENSORS)]
    except Exception as error:
        raise ValueError(f"{path} holds no states of a run: {error}") from None
    return [DDIMState(index, int(t), *row) for index, (t, *row) in enumerate(zip(*columns, strict=True))]


@dataclass(frozen=True)
class AttentionMaps:
    """What `attention_maps` recorded: how much each place of a feature map looked at each token slot.

    calls: one dictionary for each call of the UNet, in order: name of a cross-attention layer -> weights [b, h, w, n],
        float32, on the CPU, averaged over the heads. Over n they sum to 1.
    """

    calls: list[dict[str, Tensor]] = field(default_factory=list)

    def mean(
        self,
        calls: slice = slice(None),
        layers: Collection[str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """The mean over calls and layers: [b, n, h, w], one map for each slot; over n they still sum to 1.

        calls: which of them, all by default. layers: their names, all by default.
        size: (h, w) that maps are enlarged to before they are averaged, the finest layer's by default.
        Raises ValueError where nothing was recorded, or calls of different batch sizes or numbers of slots are mixed.
        Tang et al. 2022 (DAAM), https://arxiv.org/abs/2210.04885, section 3, but with a mean instead of a sum.
        """
        maps = [m for call in self.calls[calls] for name, m in call.items() if layers is None or name in layers]
        if not maps:
            raise ValueError("no attention maps were recorded for these calls and layers")
        if len({(m.shape[0], m.shape[-1]) for m in maps}) > 1:
            raise ValueError("the calls differ in batch size or number of slots: average only some of them")
        size = size or max(tuple(m.shape[1:3]) for m in maps)
        return sum(F.interpolate(rearrange(m, "b h w n -> b n h w"), size, mode="bilinear") for m in maps) / len(maps)


@contextmanager
def attention_maps(unet: UNetModel) -> Iterator[AttentionMaps]:
    """Record where the UNet looks, for every call inside `with attention_maps(unet) as maps: ...`.

    The forward pass never has the weights in hand (scaled_dot_product_attention keeps them to itself), so a hook on
    every cross-attention layer computes softmax(q kᵀ / sqrt(dim_head)) a second time, from the layer's own input.
    """
    maps, handles = AttentionMaps(), []
    height = width = 0  # of the latent

    def begin(unet: UNetModel, args: tuple, kwargs: dict) -> None:
        nonlocal height, width
        height, width = (args[0] if args else kwargs["x"]).shape[-2:]
        maps.calls.append({})

    def watch(name: str, attention: CrossAttention) -> None:
        @torch.no_grad()
        def note(attention: CrossAttention, args: tuple, output: Tensor) -> None:
            weights = _attention_weights(attention, *args)
            factor = math.isqrt(height * width // weights.shape[1])  # latent side / side of this feature map
            maps.calls[-1][name] = rearrange(weights, "b (h w) n -> b h w n", h=height // factor).cpu()

        handles.append(attention.register_forward_hook(note))

    handles.append(unet.register_forward_pre_hook(begin, with_kwargs=True))
    for name, module in unet.named_modules():
        if name.endswith(".attn2"):
            watch(name, module)
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _attention_weights(attention: CrossAttention, x: Tensor, context: Tensor) -> Tensor:
    """x: [b, l, c], context: [b, n, d] -> softmax weights [b, l, n], mean over the heads."""
    # forward() instead of a call: hooks of others on these layers must not see a run that is none
    q, k = (
        rearrange(tensor, "b l (heads dim) -> b heads l dim", heads=attention.heads).float()
        for tensor in (attention.to_q.forward(x), attention.to_k.forward(context))
    )
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)


def word_slots(text_encoder: "FrozenCLIPEmbedder", prompt: str) -> list[tuple[str, list[int]]]:
    """The words of a prompt, each with its token slots: "a zebra" -> [("a", [1]), ("zebra", [2])].

    A rare word takes several slots: one for each of its byte pairs. Slot 0 is the start token; the slots after the last
    word hold the end token. What does not fit into 75 slots is dropped, with a warning.
    """
    tokenizer = text_encoder.tokenizer
    ids = text_encoder.tokenize([prompt])[0].tolist()
    words: list[list[int]] = [[]]
    for slot, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        if token not in tokenizer.all_special_tokens:
            words[-1].append(slot)
            if token.endswith("</w>"):  # the tokenizer's mark of a word's last byte pair
                words.append([])
    return [(tokenizer.decode([ids[slot] for slot in slots]), slots) for slots in words if slots]
