"""Marks the exercises of chapter 1, the text encoder."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sd_teach.checks import Verdict, mark

START, END, SLOTS = 49406, 49407, 77
WORDS = {
    ("t", "h", "a", "t</w>"): 5,
    ("t", "h", "e", "n</w>"): 4,
    ("h", "e", "n</w>"): 2,
    ("c", "a", "t</w>"): 1,
    ("m", "a", "t</w>"): 1,
    ("z", "o", "o</w>"): 1,
}


def most_frequent_pair(answer: Callable[[dict[tuple[str, ...], int]], object]) -> Verdict:
    """1.1: {symbols of a word: how often the word occurs} -> the pair of neighbours that occurs most often."""
    weighted, unweighted, symbols = Counter(), Counter(), Counter()
    for word, count in WORDS.items():
        for pair in pairwise(word):
            weighted[pair] += count
            unweighted[pair] += 1
        for symbol in word:
            symbols[symbol] += count
    pair, times = weighted.most_common(1)[0]
    return mark(
        "1.1",
        answer,
        dict(WORDS),
        ask="return the pair of neighbouring symbols that occurs most often, as a tuple of two strings",
        expected=pair,
        mistakes={
            "you count every word once: a word that occurs five times has its pairs five times": (
                unweighted.most_common(1)[0][0]
            ),
            "that is the most frequent symbol: a merge joins two neighbours, so count pairs": (
                symbols.most_common(1)[0][0]
            ),
            "max(counts) compares the pairs as words in a lexicon; max(counts, key=counts.get) their numbers": (
                max(weighted)
            ),
            "the right two in the wrong order: a pair is (left, right)": pair[::-1],
            "that is how often the pair occurs; the pair itself is wanted": times,
            "that is the pair together with its number; the pair alone is wanted": (pair, times),
        },
        right="merge it in every word, write it down, count again: 48,894 times, and merges.txt is done",
    )


def slots(answer: Callable[[list[int]], object]) -> Verdict:
    """1.2: ids of a prompt's tokens -> the ids in all 77 slots. Tried with three: short, one id too long, long."""
    prompts = [320, 2368], list(range(1000, 1076)), list(range(1000, 1100))

    def each(fill: Callable[[list[int]], object]) -> object:
        rows = [fill(list(ids)) for ids in prompts]
        return None if rows[0] is None or rows[0] is ... else rows

    def padded(ids: list[int], pad: int = END) -> list[int]:
        return ids + [pad] * (SLOTS - len(ids))

    def cut(ids: list[int]) -> list[int]:
        return [START, *ids[: SLOTS - 2], END]

    return mark(
        "1.2",
        lambda: each(answer),
        ask="return a list of 77 ids: start, the prompt's ids as far as there is room, end tokens up to the last slot",
        expected=each(lambda ids: padded(cut(ids))),
        mistakes={
            "the long prompt is left without an end token: the last slot is kept for it": (
                each(lambda ids: padded([START, *ids, END])[:SLOTS])
            ),
            "the long prompt takes more than 77 slots: cut it to the 75 that start and end leave": (
                each(lambda ids: padded([START, *ids, END]))
            ),
            "CLIP pads with its end token 49407; 0 is the token of an exclamation mark": (
                each(lambda ids: padded(cut(ids), pad=0))
            ),
            "the start token 49406 is missing: it takes slot 0": each(lambda ids: padded([*ids[: SLOTS - 1], END])),
            "of the long prompt the first words are to be kept, these are the last": (
                each(lambda ids: padded([START, *ids[2 - SLOTS :], END]))
            ),
        },
        right="a prompt of any length fills 77 slots, and the last of them is an end token",
    )


def causal_weights(answer: Callable[[Tensor, Tensor], object]) -> Verdict:
    """1.3: q, k [n, d] of one head -> its attention weights [n, n]."""
    q, k = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    raw = q @ k.T
    scores = raw / 8**0.5
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)

    def hidden(scores: Tensor, where: Tensor = later, dim: int = -1) -> Tensor:
        return scores.masked_fill(where, -torch.inf).softmax(dim).nan_to_num(-1.0)

    def finite(q: Tensor, k: Tensor) -> object:  # a row that sees nothing is 0 / 0
        weights = answer(q, k)
        return weights.nan_to_num(-1.0) if isinstance(weights, Tensor) else weights

    return mark(
        "1.3",
        finite,
        q,
        k,
        ask="return weights [n, n]: what slot i (row) takes from slot j (column); rows sum to 1 and never look ahead",
        expected=hidden(scores),
        mistakes={
            "slots see the later ones: add -inf to the scores above the diagonal, before the softmax": (
                scores.softmax(-1)
            ),
            "the scores are not divided by the square root of the head's width: too few slots take it all": hidden(raw),
            "0 times -inf is not a number: torch.full((n, n), -torch.inf).triu(1), or masked_fill": (
                torch.full((5, 5), -1.0)
            ),
            "the scores are divided by the head's width, its square root is wanted": hidden(raw / 8),
            "the mask hides what came before: slot i must see slots 0 to i, so hide what is above the diagonal": (
                hidden(scores, later.T)
            ),
            "a slot must see itself too: the mask begins one above the diagonal, triu(1)": (
                hidden(scores, torch.ones_like(later).triu())
            ),
            "the softmax runs down the columns; a slot shares itself out along its row, dim=-1": hidden(scores, dim=0),
            "hiding after the softmax leaves rows that sum to less than 1: put -inf into the scores before it": (
                scores.softmax(-1).tril()
            ),
            "queries and keys have changed places: row i belongs to the query of slot i, q @ k.T": hidden(scores.T),
        },
        right="row 0 is all on the start token, which has nothing else to look at",
    )


def pooled(answer: Callable[[Tensor, Tensor], object]) -> Verdict:
    """1.4: ids [b, 77], states [b, 77, d] -> the state of each prompt's first end token, [b, d]."""
    lengths = [3, 0, 10]
    ids = torch.tensor([[START, *range(1000, 1000 + m), *[END] * (SLOTS - 1 - m)] for m in lengths])
    states = torch.randn(3, SLOTS, 4, generator=torch.Generator().manual_seed(0))
    rows, last_word = torch.arange(3), torch.tensor(lengths)
    end = last_word + 1
    return mark(
        "1.4",
        answer,
        ids,
        states,
        ask="return one state a prompt, [b, d]: that of its first end token",
        expected=states[rows, end],
        mistakes={
            "these are the states of the last slot, padding; the first end token comes right after the words": (
                states[:, -1]
            ),
            "these are the states of the last words, one slot too early": states[rows, last_word],
            "you took the first prompt's end for all of them; each has its own": states[:, end[0]],
            "these are the states of the start token, which has seen no word": states[:, 0],
            "the right states in one dimension too many: [b, d] is wanted": states[rows, end][:, None],
            "[:, end] takes all the ends from every prompt; [torch.arange(b), end] takes each prompt's own": (
                states[:, end]
            ),
        },
        right="the one slot that has read the whole prompt, and the one that CLIP compared with pictures",
    )
