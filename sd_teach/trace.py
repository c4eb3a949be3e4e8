"""Watching the networks without changing them: which shapes pass through, and how many parameters sit where."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn


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
