"""FrozenCLIPEmbedder against transformers' CLIPTextModel: the same weights, asked for the same layer."""

import pytest
import torch
from parity.diffusers_twins import randomise, text_twin
from torch.testing import assert_close

from sd_teach.text_encoder import FrozenCLIPEmbedder, TextConfig

CONFIG = TextConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
PROMPTS = ["a cat", "", "a photograph of an astronaut riding a horse"]


def embedder(layer, layer_idx=None):
    return randomise(FrozenCLIPEmbedder(CONFIG, layer, layer_idx)).double()


@torch.no_grad()
def compare(ours, pick):
    theirs = text_twin(ours)
    ids = ours.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    expected = pick(theirs(input_ids=ids, output_hidden_states=True))
    assert 0.3 < expected.std() < 3
    assert_close(ours(PROMPTS), expected, rtol=0, atol=1e-12)


def test_the_last_layer_equals_transformers():
    compare(embedder("last"), lambda output: output.last_hidden_state)


def test_the_pooled_state_equals_transformers():
    compare(embedder("pooled"), lambda output: output.pooler_output[:, None])


@pytest.mark.parametrize("layer_idx", range(-4, 4))
def test_every_hidden_layer_equals_transformers(layer_idx):
    compare(embedder("hidden", layer_idx), lambda output: output.hidden_states[layer_idx])
