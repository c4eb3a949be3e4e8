"""What the exercises of chapter 5 say of right answers, of none, and of the likeliest mistakes."""

import pytest
import torch
import torch.nn.functional as F

from sd_teach.checks import unet as check
from sd_teach.unet import timestep_embedding


@pytest.mark.parametrize("exercise", [check.time_embedding, check.res_block, check.attention, check.skip_channels])
def test_no_answer_is_asked_for(exercise):
    assert exercise(lambda *arguments: ...).state == "open"


def embed(t, dim, exponent=lambda i, dim: -2 * i / dim, order=("cos", "sin")):
    angles = t[:, None] * 10000.0 ** exponent(torch.arange(dim // 2), dim)
    return torch.cat([getattr(angles, name)() for name in order], dim=-1)


def test_the_time_embedding_is_right():
    assert check.time_embedding(timestep_embedding).state == "right"
    assert check.time_embedding(embed).state == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda t, dim: embed(t, dim, order=("sin", "cos")), "sines come first"),
        (lambda t, dim: embed(t, dim).unflatten(1, (2, -1)).mT.flatten(1), "alternate"),
        (lambda t, dim: embed(t, dim, lambda i, dim: -i / (dim // 2 - 1)), "never reaches"),
        (lambda t, dim: embed(t, dim, lambda i, dim: -i / dim), "too slowly"),
        (lambda t, dim: embed(t, dim, lambda i, dim: 2 * i / dim), "grow"),
        (lambda t, dim: embed(t, 2 * dim), "[3, 8] is wanted"),
        (lambda t, dim: embed(t[0], dim), "stops with IndexError"),
    ],
)
def test_time_embeddings_gone_wrong(answer, words):
    said = check.time_embedding(answer)
    assert said.state == "wrong" and words in said.sentence


def shift(block, emb, layers=slice(None)):
    return block.emb_layers[layers](emb)[:, :, None, None]


def test_the_res_block_is_right():
    assert check.res_block(lambda block, x, emb: block(x, emb)).state == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda b, x, e: b.skip_connection(x) + b.out_layers(b.in_layers(x)), "time is missing"),
        (lambda b, x, e: b.skip_connection(x) + b.out_layers(b.in_layers(x)) + shift(b, e), "at the end"),
        (lambda b, x, e: b.out_layers(b.in_layers(x) + shift(b, e)), "shortcut is missing"),
        (lambda b, x, e: b.out_layers(b.skip_connection(x) + b.in_layers(x) + shift(b, e)), "before out_layers"),
        (lambda b, x, e: b.skip_connection(x) + b.in_layers(x) + shift(b, e), "second half"),
        (lambda b, x, e: b.skip_connection(x) + b.out_layers(b.in_layers(x) + shift(b, e, slice(1, 2))), "SiLU"),
        (lambda b, x, e: b.skip_connection(x) + b.out_layers(b.in_layers(x) * shift(b, e)), "here it is added"),
        (lambda b, x, e: x + b.out_layers(b.in_layers(x) + shift(b, e)), "stops with RuntimeError"),
    ],
)
def test_res_blocks_gone_wrong(answer, words):
    said = check.res_block(answer)
    assert said.state == "wrong" and words in said.sentence


def test_attention_is_right():
    assert check.attention(F.scaled_dot_product_attention).state == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda q, k, v: (q @ k.mT).softmax(-1) @ v, "did not divide"),
        (lambda q, k, v: (q @ k.mT / q.shape[-1]).softmax(-1) @ v, "divided by d"),
        (lambda q, k, v: (q @ k.mT * q.shape[-1] ** 0.5).softmax(-1) @ v, "it divides"),
        (lambda q, k, v: (q @ k.mT / k.shape[2] ** 0.5).softmax(-1) @ v, "number of slots"),
        (lambda q, k, v: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-2) @ v, "places that ask"),
        (lambda q, k, v: q @ k.mT / q.shape[-1] ** 0.5 @ v, "softmax is missing"),
        (lambda q, k, v: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1), "mix the values"),
        (lambda q, k, v: (q @ k / q.shape[-1] ** 0.5).softmax(-1) @ v, "stops with RuntimeError"),
    ],
)
def test_attention_gone_wrong(answer, words):
    said = check.attention(answer)
    assert said.state == "wrong" and words in said.sentence


def test_the_skips_are_right():
    assert check.skip_channels(lambda config: [50] * 3 + [20] * 4 + [10] * 5).state == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([10] * 5 + [20] * 4 + [50] * 3, "last one down"),
        ([50] * 3 + [20] * 3 + [10] * 4, "halve the sides are missing"),
        ([50] * 3 + [20] * 4 + [10] * 4, "first convolution"),
        ([50] * 4 + [20] * 4 + [10] * 5, "after the lowest"),
        ([50] * 4 + [20] * 4 + [10] * 4, "does not change the channels"),
        ([50, 50, 20, 20, 20, 10, 10, 10, 10], "12 values are wanted, these are 9"),  # two blocks a level, always
    ],
)
def test_skips_gone_wrong(answer, words):
    said = check.skip_channels(lambda config: answer)
    assert said.state == "wrong" and words in said.sentence
