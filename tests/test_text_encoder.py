import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from parity.diffusers_twins import randomise
from torch.testing import assert_close

from sd_teach.text_encoder import FrozenCLIPEmbedder, TextConfig

SMALL = TextConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)
PROMPTS = ["a cat", "", "a photograph of an astronaut riding a horse"]
START, END, CAT = 49406, 49407, 2368


@pytest.fixture(scope="module")
def embedder():
    return randomise(FrozenCLIPEmbedder(SMALL)).double()


def other_layer(embedder, layer, layer_idx=None):
    """The same weights, asked for another layer."""
    other = FrozenCLIPEmbedder(SMALL, layer, layer_idx).double()
    other.load_state_dict(embedder.state_dict(), strict=True)
    return other


def test_the_defaults_are_the_real_encoders():
    # no tensor of a checkpoint tells the number of heads, nor which gelu
    assert TextConfig() == TextConfig(49408, 768, 3072, 12, 12, 77, "quick_gelu")
    with torch.device("meta"):
        layers = FrozenCLIPEmbedder().transformer["text_model"].encoder.layers
    assert [layer.self_attn.head_dim for layer in layers] == [64] * 12


def test_token_ids_go_where_the_weights_are(monkeypatch):
    embedder = FrozenCLIPEmbedder(SMALL).to("meta")
    monkeypatch.setattr(embedder, "encode_tokens", lambda ids: ids)
    assert embedder(["a cat"]).device.type == "meta"


# --- the tokenizer


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("a cat", [320, CAT]),
        ("a photograph of an astronaut riding a horse", [320, 8853, 539, 550, 18376, 6765, 320, 4558]),
        ("", []),
        ("  A  CAT ", [320, CAT]),
    ],
)
def test_a_prompt_is_a_start_token_its_byte_pairs_and_end_tokens_up_to_77(embedder, prompt, ids):
    expected = [START, *ids, *[END] * (76 - len(ids))]
    assert embedder.tokenize([prompt]).tolist() == [expected]


def test_prompts_are_tokenized_each_for_itself(embedder):
    together = embedder.tokenize(PROMPTS)
    assert together.dtype == torch.int64
    assert torch.equal(together, torch.cat([embedder.tokenize([prompt]) for prompt in PROMPTS]))


def test_75_tokens_fit_without_a_warning(embedder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = embedder.tokenize(["cat " * 75])
    assert ids.tolist() == [[START, *[CAT] * 75, END]]


@pytest.mark.parametrize(
    ("words", "dropped"), [("dog", "dog"), ("zebra giraffe", "zebra giraffe"), ("red fox " * 20, "red fox " * 20)]
)
def test_what_is_over_75_tokens_is_cut_and_a_warning_names_it(embedder, words, dropped):
    message = f"the prompt has more than 75 tokens; dropped: {dropped.strip()!r}"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        ids = embedder.tokenize(["cat " * 75 + words])
    assert ids.tolist() == [[START, *[CAT] * 75, END]]


def test_every_over_long_prompt_of_a_batch_is_named_and_the_others_are_not(embedder):
    with pytest.warns(UserWarning) as caught:
        ids = embedder.tokenize(["cat " * 75 + "zebra", "a dog", "cat " * 75 + "giraffe"])
    assert [str(warning.message).split()[-1] for warning in caught] == ["'zebra'", "'giraffe'"]
    assert ids.shape == (3, 77)


def test_the_cut_follows_the_configs_length():
    embedder = FrozenCLIPEmbedder(TextConfig(16, 8, 8, 1, 1, max_position_embeddings=5))
    with pytest.warns(UserWarning, match="more than 3 tokens; dropped: 'blue background'"):
        assert embedder.tokenize(["a cat, blue background"]).tolist() == [[START, 320, CAT, 267, END]]


# --- the network


def test_sd_has_123_060_480_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in FrozenCLIPEmbedder().parameters()) == 123_060_480


def test_the_weights_are_frozen(embedder):
    assert not any(p.requires_grad for p in embedder.parameters())
    assert not any(module.training for module in embedder.modules())
    assert not embedder(["a cat"]).requires_grad


def test_the_names_are_the_checkpoints_and_hold_no_position_ids(embedder):
    names = list(embedder.state_dict())
    assert all(name.startswith("transformer.text_model.") for name in names)
    assert not [name for name in names if "position_ids" in name]


def clip_by_hand(state, ids, heads):
    """CLIP's text transformer from its weights: the hidden states, embeddings first, and the last one normed."""
    state = {name.removeprefix("transformer.text_model."): tensor for name, tensor in state.items()}

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    length = ids.shape[1]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    x = state["embeddings.token_embedding.weight"][ids] + state["embeddings.position_embedding.weight"][:length]
    hidden = [x]
    for layer in range(SMALL.num_hidden_layers):
        name = f"encoder.layers.{layer}"
        normed = norm(x, f"{name}.layer_norm1")
        q, k, v = (
            linear(normed, f"{name}.self_attn.{which}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
            for which in "qkv"
        )
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf)
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(out, f"{name}.self_attn.out_proj")
        h = linear(norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        x = x + linear(h * torch.sigmoid(1.702 * h), f"{name}.mlp.fc2")  # quick_gelu
        hidden.append(x)
    return hidden, norm(x, "final_layer_norm")


def by_hand(embedder):
    return clip_by_hand(embedder.state_dict(), embedder.tokenize(PROMPTS), SMALL.num_attention_heads)


def test_the_last_layer_is_causal_attention_and_quick_gelu_under_a_final_norm(embedder):
    assert_close(embedder(PROMPTS), by_hand(embedder)[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer_idx", [0, 1, 2, -1, -2, -3])
def test_hidden_layers_are_taken_before_the_final_norm_and_counted_from_the_embeddings(embedder, layer_idx):
    expected = by_hand(embedder)[0][layer_idx]
    assert_close(other_layer(embedder, "hidden", layer_idx)(PROMPTS), expected, rtol=0, atol=1e-12)


def test_the_last_hidden_layer_normed_is_the_last_layer(embedder):
    hidden = other_layer(embedder, "hidden", -1)(PROMPTS)
    assert (hidden - embedder(PROMPTS)).abs().max() > 0.5
    norm = embedder.transformer["text_model"].final_layer_norm
    assert_close(norm(hidden), embedder(PROMPTS), rtol=0, atol=1e-12)


def test_the_pooled_state_is_the_first_end_tokens(embedder):
    last = embedder(PROMPTS)
    ends = [3, 1, 9]  # after "a cat", nothing, and eight tokens
    expected = torch.stack([last[i, end : end + 1] for i, end in enumerate(ends)])
    assert_close(other_layer(embedder, "pooled")(PROMPTS), expected, rtol=0, atol=1e-12)


def test_no_token_sees_a_later_one(embedder):
    a, b = embedder(["a cat on a mat", "a cat in the rain"])
    assert_close(a[:3], b[:3], rtol=0, atol=1e-12)
    assert (a[3] - b[3]).abs().max() > 0.1


@pytest.mark.parametrize(("layer", "layer_idx", "n"), [("last", None, 77), ("hidden", 1, 77), ("pooled", None, 1)])
def test_states_are_77_vectors_a_prompt_and_the_pooled_one_is_1(embedder, layer, layer_idx, n):
    assert other_layer(embedder, layer, layer_idx)(PROMPTS).shape == (3, n, 24)


def test_an_embedder_built_on_meta_works_once_its_weights_are_there(embedder):
    with torch.device("meta"):
        other = FrozenCLIPEmbedder(SMALL)
    other.load_state_dict(embedder.state_dict(), strict=True, assign=True)
    assert torch.equal(other(PROMPTS), embedder(PROMPTS))


@pytest.mark.parametrize(
    ("layer", "layer_idx", "message"),
    [
        ("penultimate", None, "layer must be one of last, pooled, hidden, got 'penultimate'"),
        ("hidden", None, "layer_idx goes with layer='hidden', and only with it"),
        ("last", 1, "layer_idx goes with layer='hidden', and only with it"),
        ("pooled", 0, "layer_idx goes with layer='hidden', and only with it"),
        ("hidden", 3, "layer_idx must lie between -3 and 2, got 3"),
        ("hidden", -4, "layer_idx must lie between -3 and 2, got -4"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(layer, layer_idx, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FrozenCLIPEmbedder(SMALL, layer, layer_idx)
