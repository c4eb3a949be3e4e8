"""Right, missing and wrong answers to the exercises of chapter 1, and what is said of each."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from sd_teach.checks import text_encoder as check


def pairs(words, weigh=True):
    counts = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            counts[pair] += count if weigh else 1
    return counts


def most_frequent_pair(words):
    counts = pairs(words)
    return max(counts, key=counts.get)


def slots(ids):
    ids = [49406, *ids[:75], 49407]
    return ids + [49407] * (77 - len(ids))


def causal_weights(q, k):
    scores = q @ k.T / q.shape[-1] ** 0.5
    return (scores + torch.full_like(scores, -torch.inf).triu(1)).softmax(-1)


def pooled(ids, states):
    return states[torch.arange(len(ids)), (ids == 49407).int().argmax(1)]


def answered(exercise, answer, words):
    verdict = exercise(answer)
    assert verdict.state == "wrong" and words in verdict.sentence, verdict


EXERCISES = [check.most_frequent_pair, check.slots, check.causal_weights, check.pooled]


@pytest.mark.parametrize(
    ("exercise", "answer"),
    list(zip(EXERCISES, [most_frequent_pair, slots, causal_weights, pooled], strict=True)),
)
def test_a_right_answer_is_right(exercise, answer):
    assert exercise(answer).state == "right"


@pytest.mark.parametrize(("number", "exercise"), list(enumerate(EXERCISES, 1)))
def test_without_an_answer_they_ask(number, exercise):
    verdict = exercise(lambda *arguments: None)
    assert (verdict.exercise, verdict.state) == (f"1.{number}", "open")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda words: pairs(words, weigh=False).most_common(1)[0][0], "every word once"),
        (lambda words: Counter(s for w, n in words.items() for s in w * n).most_common(1)[0][0], "count pairs"),
        (lambda words: max(pairs(words)), "key=counts.get"),
        (lambda words: most_frequent_pair(words)[::-1], "(left, right)"),
        (lambda words: max(pairs(words).values()), "how often"),
        (lambda words: pairs(words).most_common(1)[0], "the pair alone"),
        (lambda words: ("c", "a"), "is not it"),
    ],
)
def test_a_wrong_pair(answer, words):
    answered(check.most_frequent_pair, answer, words)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda ids: ([49406, *ids, 49407] + [49407] * 77)[:77], "without an end token"),
        (lambda ids: [49406, *ids, 49407] + [49407] * (75 - len(ids)), "more than 77"),
        (lambda ids: [49406, *ids, 49407] if len(ids) == 76 else slots(ids), "these are 78"),
        (lambda ids: [49406, *ids[:75], 49407] + [0] * (75 - len(ids)), "exclamation mark"),
        (lambda ids: (ids[:76] + [49407] * 77)[:77], "49406 is missing"),
        (lambda ids: [49406, *ids[-75:], 49407] + [49407] * (75 - len(ids)), "these are the last"),
    ],
)
def test_wrong_slots(answer, words):
    answered(check.slots, answer, words)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda q, k: (q @ k.T / 8**0.5).softmax(-1), "see the later ones"),
        (lambda q, k: causal_weights(q * 8**0.5, k), "not divided"),
        (lambda q, k: causal_weights(q / 8**0.5, k), "square root is wanted"),
        (lambda q, k: (q @ k.T / 8**0.5 + torch.full((5, 5), -torch.inf).tril(-1)).softmax(-1), "came before"),
        (lambda q, k: (q @ k.T / 8**0.5 + torch.full((5, 5), -torch.inf).triu(0)).softmax(-1), "see itself"),
        (lambda q, k: (q @ k.T / 8**0.5 + torch.full((5, 5), -torch.inf).triu(1)).softmax(0), "columns"),
        (lambda q, k: (q @ k.T / 8**0.5).softmax(-1).tril(), "less than 1"),
        (lambda q, k: causal_weights(k, q), "changed places"),
        (lambda q, k: (q @ k.T + torch.ones(5, 5).triu(1) * -torch.inf).softmax(-1), "0 times -inf"),
    ],
)
def test_wrong_weights(answer, words):
    answered(check.causal_weights, answer, words)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda ids, states: states[:, -1], "last slot"),
        (lambda ids, states: states[torch.arange(3), (ids == 49407).int().argmax(1) - 1], "too early"),
        (lambda ids, states: states[:, (ids[0] == 49407).int().argmax()], "each has its own"),
        (lambda ids, states: states[torch.arange(3), ids.argmin(1) * 0], "start token"),
        (lambda ids, states: pooled(ids, states)[:, None], "one dimension too many"),
        (lambda ids, states: states[:, (ids == 49407).int().argmax(1)], "torch.arange(b)"),
    ],
)
def test_a_wrong_pooled_state(answer, words):
    answered(check.pooled, answer, words)
