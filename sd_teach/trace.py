"""Watching without changing: which shapes pass through a network, and the states a run went through."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd_teach.ddim import DDIMState


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
