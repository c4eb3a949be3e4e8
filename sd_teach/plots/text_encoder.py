"""Figures of chapter 1: how words become tokens, who attends to whom, what changes in which slot."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from sd_teach.plots import ACCENT, BLUE, INK, PALE

_BLUES = LinearSegmentedColormap.from_list("blues", ["#ffffff", BLUE, "#16294f"])
_START, _END = "<|startoftext|>", "<|endoftext|>"


def merge_steps(steps: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> Figure:
    """One row for each state of a word, from letters to tokens; what a row has newly merged is coloured.

    steps: the symbols of each row, `</w>` marking the word's end. notes: a text for each row, on its right.
    """
    letters = len("".join(steps[0]).removesuffix("</w>"))
    figure, axis = plt.subplots(figsize=(0.62 * letters + 3.2, 0.42 * len(steps)))
    plt.close(figure)
    axis.set(xlim=(-0.1, letters + 5), ylim=(len(steps), 0))
    axis.axis("off")
    for row, symbols in enumerate(steps):
        lengths = [len(symbol.removesuffix("</w>")) for symbol in symbols]
        before = _spans(steps[row - 1]) if row else {(0, 0)}
        for symbol, length, end in zip(symbols, lengths, accumulate(lengths), strict=True):
            new = row and (end - length, end) not in before
            _box(axis, end - length, row, length, symbol, ACCENT if new else PALE)
        if row < len(notes):
            axis.text(letters + 0.7, row + 0.5, notes[row], va="center", fontsize=9, color=INK)
    figure.subplots_adjust(0, 0, 1, 1)
    return figure


def _spans(symbols: Sequence[str]) -> set[tuple[int, int]]:
    """From which letter to which each symbol reaches."""
    ends = list(accumulate(len(symbol.removesuffix("</w>")) for symbol in symbols))
    return set(zip([0, *ends], ends, strict=False))


def token_slots(prompts: Sequence[Sequence[str]], shown: int = 11) -> Figure:
    """The token in each slot, one row a prompt: the first `shown` slots and the last one.

    prompts: for each prompt its 77 tokens as text, with CLIP's start and end tokens.
    """
    figure, axis = _slot_rows(len(prompts), shown, len(prompts[0]))
    for row, tokens in enumerate(prompts):
        first_end = tokens.index(_END)
        for column, slot in enumerate([*range(shown), len(tokens) - 1]):
            colour = BLUE if slot == first_end else ACCENT if 0 < slot < first_end else PALE
            x = column + (column == shown)  # a gap before the last slot
            _box(axis, x, row, 1, _short(tokens[slot]), colour, "white" if slot == first_end else INK)
    return figure


def slot_changes(changes: Tensor, prompts: Sequence[Sequence[str]], shown: int = 11) -> Figure:
    """How much each slot changed, white for not at all, one row a prompt; the tokens are written into the boxes.

    changes: [rows, n], 0 or more. prompts: for each row the n tokens as text.
    """
    figure, axis = _slot_rows(len(prompts), shown, len(prompts[0]))
    top = float(changes.max())
    for row, tokens in enumerate(prompts):
        for column, slot in enumerate([*range(shown), len(tokens) - 1]):
            level = float(changes[row, slot]) / top
            colour = "white" if level > 0.35 else INK
            _box(axis, column + (column == shown), row, 1, _short(tokens[slot]), _BLUES(0.8 * level), colour)
    return figure


def _slot_rows(rows: int, shown: int, slots: int) -> tuple[Figure, Axes]:
    figure, axis = plt.subplots(figsize=(9.6, 0.4 * rows + 0.3))
    plt.close(figure)
    axis.set(xlim=(-0.05, shown + 2.05), ylim=(rows, -0.7))
    axis.axis("off")
    for column, slot in enumerate([*range(shown), slots - 1]):
        axis.text(column + (column == shown) + 0.5, -0.3, slot, ha="center", va="center", fontsize=8, color=INK)
    for row in range(rows):
        axis.text(shown + 0.5, row + 0.5, "…", ha="center", va="center", fontsize=11, color=INK)
    figure.subplots_adjust(0, 0, 1, 1)
    return figure, axis


def _box(axis: Axes, x: float, row: int, width: float, text: str, colour: object, ink: str = INK) -> None:
    axis.add_patch(plt.Rectangle((x + 0.03, row + 0.08), width - 0.06, 0.84, facecolor=colour, edgecolor=INK, lw=0.8))
    size = 9 if len(text) <= 9 * width else 8
    axis.text(x + width / 2, row + 0.5, text, ha="center", va="center", fontsize=size, color=ink)


def _short(token: str) -> str:
    return {_START: "start", _END: "end"}.get(token, token.removesuffix("</w>"))


def slot_matrices(
    matrices: Mapping[str, Tensor], tokens: Sequence[str], columns: int | None = None, side: float = 2.6
) -> Figure:
    """Matrices over slots as heat maps: row = the slot that looks, column = the slot it looks at.

    matrices: title -> [m, m]; -inf is drawn grey. tokens: the m tokens as text. side: inches a matrix.
    """
    columns = columns or len(matrices)
    rows = -(-len(matrices) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * side + 0.8, rows * side + 0.6), squeeze=False)
    plt.close(figure)
    names = [_short(token) for token in tokens]
    colours = _BLUES.with_extremes(bad="#d5d5da")
    for axis in axes.flat[len(matrices) :]:
        axis.axis("off")
    for (title, matrix), axis in zip(matrices.items(), axes.flat, strict=False):
        axis.imshow(matrix.masked_fill(matrix == -float("inf"), float("nan")).numpy(), cmap=colours)
        axis.set_title(title, fontsize=9, pad=4, color=INK)
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.tick_params(length=0)
        axis.label_outer()
    figure.tight_layout(pad=0.4)
    return figure


def similarity_map(similarity: Tensor, labels: Sequence[str]) -> Figure:
    """A symmetric matrix of cosines with its numbers. similarity: [m, m]; labels: m texts."""
    side = 0.52 * len(labels)
    figure, axis = plt.subplots(figsize=(side + 2.6, side + 0.3))
    plt.close(figure)
    axis.imshow(similarity.numpy(), cmap=_BLUES, vmin=0.0, vmax=1.25)
    axis.set_yticks(range(len(labels)), labels, fontsize=9)
    axis.set_xticks([])
    axis.tick_params(length=0)
    for i, row in enumerate(similarity.tolist()):
        for j, value in enumerate(row):
            ink = "white" if value > 0.45 else INK
            axis.text(j, i, f"{value:.2f}".replace("-0.00", "0.00"), ha="center", va="center", fontsize=8, color=ink)
    figure.tight_layout(pad=0.4)
    return figure
