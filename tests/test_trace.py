"""What passes through which block, what it weighs, the states of a run, and who looks at what."""

import copy

import pytest
import torch
from torch import nn

from sd_teach.trace import AttentionMaps, attention_maps, load_states, save_states, shape_ledger, word_slots
from sd_teach.unet import UNetModel

TOTAL = 859_520_964


@pytest.fixture(scope="module")
def real_unet():
    with torch.device("meta"):
        return UNetModel()


@pytest.fixture(scope="module")
def inputs():
    with torch.device("meta"):
        return torch.empty(2, 4, 64, 64), torch.empty(2, dtype=torch.long), torch.empty(2, 77, 768)


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_rows_of_the_real_unet_add_up_to_its_860_million_parameters(real_unet, inputs):
    assert sum(row.parameters for row in shape_ledger(real_unet, *inputs)) == TOTAL


@pytest.mark.parametrize(
    ("block", "kind", "before", "after"),
    [
        ("time_embed.0", "Linear", (2, 320), (2, 1280)),
        ("input_blocks.0", "Conv2d", (2, 4, 64, 64), (2, 320, 64, 64)),
        ("input_blocks.1", "ResBlock + SpatialTransformer", (2, 320, 64, 64), (2, 320, 64, 64)),
        ("input_blocks.3", "Downsample", (2, 320, 64, 64), (2, 320, 32, 32)),
        ("input_blocks.7", "ResBlock + SpatialTransformer", (2, 640, 16, 16), (2, 1280, 16, 16)),
        ("input_blocks.11", "ResBlock", (2, 1280, 8, 8), (2, 1280, 8, 8)),
        ("middle_block.1", "SpatialTransformer", (2, 1280, 8, 8), (2, 1280, 8, 8)),
        ("output_blocks.2", "ResBlock + Upsample", (2, 2560, 8, 8), (2, 1280, 16, 16)),
        ("output_blocks.5", "ResBlock + SpatialTransformer + Upsample", (2, 1920, 16, 16), (2, 1280, 32, 32)),
        ("output_blocks.9", "ResBlock + SpatialTransformer", (2, 960, 64, 64), (2, 320, 64, 64)),
        ("out.2", "Conv2d", (2, 320, 64, 64), (2, 4, 64, 64)),
    ],
)
def test_shapes_of_the_real_unet(real_unet, inputs, block, kind, before, after):
    (row,) = [row for row in shape_ledger(real_unet, *inputs) if row.block == block]
    assert (row.type, row.input, row.output) == (kind, before, after)


def test_rows_come_in_the_order_of_the_run(real_unet, inputs):
    blocks = [row.block.split(".")[0] for row in shape_ledger(real_unet, *inputs)]
    order = list(dict.fromkeys(blocks))
    assert order == ["time_embed", "input_blocks", "middle_block", "output_blocks", "out"]
    assert blocks == sorted(blocks, key=order.index)


def test_the_table_shows_every_row_and_the_total(real_unet, inputs, capsys):
    rows = shape_ledger(real_unet, *inputs)
    head, *lines, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["block", "type", "input", "->", "output", "parameters"]
    assert [line.split()[0] for line in lines] == [row.block for row in rows]
    assert [line.split()[-1] for line in lines] == [f"{row.parameters:,}" for row in rows]
    assert total.split() == ["total", f"{TOTAL:,}"]
    assert "2 x 320 x 64 x 64 -> 2 x 320 x 32 x 32" in next(line for line in lines if "input_blocks.3 " in line)


def test_at_every_depth_the_rows_add_up_to_the_network(sd):
    """Also where the blocks of that depth are lists, which are never called themselves."""
    unet = sd.model.model.diffusion_model
    inputs = torch.zeros(1, 4, 8, 8), torch.zeros(1, dtype=torch.long), torch.zeros(1, 77, 4)
    ledgers = [shape_ledger(unet, *inputs, depth=depth) for depth in (1, 2, 3, 4, 9)]
    total = sum(parameter.numel() for parameter in unet.parameters())
    assert [sum(row.parameters for row in rows) for rows in ledgers] == [total] * 5
    lengths = [len(rows) for rows in ledgers]
    assert lengths == sorted(set(lengths))


def test_a_traced_network_answers_as_before_and_keeps_no_hooks(sd):
    unet = sd.model.model.diffusion_model
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 4, generator=generator)
    t = torch.tensor([500])
    before = unet(x, t, context)
    shape_ledger(unet, x, t, context)
    assert hooks(unet) == 0
    assert torch.equal(unet(x, t, context), before)


def test_hooks_are_removed_when_the_forward_pass_raises(real_unet):
    with torch.device("meta"), pytest.raises(ValueError, match="multiples of 8"):
        shape_ledger(real_unet, torch.empty(1, 4, 60, 60), torch.empty(1), torch.empty(1, 77, 768))
    assert hooks(real_unet) == 0
    with torch.device("meta"), pytest.raises(RuntimeError):  # deep inside, with some hooks already run
        shape_ledger(real_unet, torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 700))
    assert hooks(real_unet) == 0


def test_hooks_of_others_are_left_where_they_are():
    layer = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    seen = []
    layer[0].register_forward_hook(lambda *_: seen.append(1))
    rows = shape_ledger(layer, torch.zeros(1, 2))
    assert [(row.block, row.output, row.parameters) for row in rows] == [("0", (1, 3), 9), ("1", (1, 4), 16)]
    assert hooks(layer) == 1 and seen == [1]


@pytest.fixture
def states(sd) -> list:
    recorded = []
    sd.text_to_image("a cat", seed=1, num_images=2, steps=3, callback=recorded.append)
    return recorded


def test_saved_states_come_back_as_they_were(states, tmp_path):
    save_states(states, tmp_path / "run.safetensors")
    loaded = load_states(tmp_path / "run.safetensors")
    assert [(state.index, state.t) for state in loaded] == [(state.index, state.t) for state in states]
    for name in ("x", "eps", "pred_x0", "x_prev"):
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(loaded, states, strict=True))


def test_states_that_cannot_be_saved_or_read_are_refused_in_one_line(states, tmp_path):
    with pytest.raises(ValueError, match="no states to save"):
        save_states([], tmp_path / "run.safetensors")
    with pytest.raises(ValueError, match="cannot write"):
        save_states(states, tmp_path / "nowhere" / "run.safetensors")
    with pytest.raises(ValueError, match="holds no states"):
        load_states(tmp_path / "run.safetensors")
    (tmp_path / "other").write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="holds no states"):
        load_states(tmp_path / "other")


@pytest.fixture
def unet(sd):
    return sd.model.model.diffusion_model


@pytest.fixture
def wide():
    """What the small UNet takes, with a height that is not the width."""
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 4, 8, generator=generator), torch.randn(2, 77, 4, generator=generator)
    return x, torch.tensor([1, 500]), context


ATTENDING = ["input_blocks.1", "input_blocks.3", "middle_block", *(f"output_blocks.{i}" for i in range(4))]
LAYERS = [f"{block}.1.transformer_blocks.0.attn2" for block in ATTENDING]


def test_maps_come_one_for_each_call_and_layer_in_the_shape_of_the_feature_map_and_sum_to_1(unet, wide):
    with attention_maps(unet) as maps:
        unet(*wide), unet(*wide)
    assert [list(call) for call in maps.calls] == [LAYERS, LAYERS]
    coarse = {LAYERS[1], *LAYERS[2:5]}
    for call in maps.calls:
        for name, weights in call.items():
            assert weights.shape == ((2, 2, 4, 77) if name in coarse else (2, 4, 8, 77))
            assert weights.min() >= 0
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), rtol=0, atol=1e-6)
            assert weights.std() > 1e-3  # not the same everywhere


def test_watching_attention_changes_no_bit_and_leaves_no_hook(unet, wide):
    before = unet(*wide)
    with attention_maps(unet):
        assert torch.equal(unet(*wide), before)
        assert hooks(unet) == len(LAYERS) + 1
    assert hooks(unet) == 0
    assert torch.equal(unet(*wide), before)


def test_watching_a_picture_being_made_changes_no_bit_of_it(sd, unet):
    before = sd.text_to_image("a cat", steps=3, seed=1, num_images=2)
    with attention_maps(unet) as maps:
        after = sd.text_to_image("a cat", steps=3, seed=1, num_images=2)
    assert torch.equal(before.latents, after.latents)
    assert len(maps.calls) == 3
    assert maps.mean().shape == (4, 77, 8, 8)  # both halves of the guidance, of two images


def test_the_network_is_released_when_the_watched_code_raises(unet, wide):
    with pytest.raises(ValueError, match="multiples of 2"), attention_maps(unet):
        unet(torch.zeros(1, 4, 5, 5), *wide[1:])
    assert hooks(unet) == 0


def test_hooks_of_others_see_one_run_not_two(unet, wide):
    seen = []
    handle = unet.get_submodule(LAYERS[0]).to_q.register_forward_hook(lambda *_: seen.append(1))
    with attention_maps(unet):
        unet(*wide)
    handle.remove()
    assert seen == [1]


def test_arguments_may_have_names(unet, wide):
    x, t, context = wide
    with attention_maps(unet) as maps:
        unet(x=x, t=t, context=context)
        unet(*wide)
    assert all(torch.equal(maps.calls[0][name], maps.calls[1][name]) for name in LAYERS)


def test_one_latent_with_two_texts_has_a_map_for_each(unet, wide):
    x, t, context = wide
    with attention_maps(unet) as maps:
        unet(x[:1], t[:1], context)
        unet(x[:1].expand(2, -1, -1, -1), t[:1].expand(2), context)
    for name in LAYERS:
        assert maps.calls[0][name].shape[0] == 2
        torch.testing.assert_close(maps.calls[0][name], maps.calls[1][name], rtol=0, atol=2e-5)


def test_maps_of_a_run_with_gradients_hold_none(unet, wide):
    with torch.enable_grad(), attention_maps(unet) as maps:
        unet(wide[0].requires_grad_(), *wide[1:]).sum().backward()
    assert wide[0].grad is not None
    assert not any(weights.requires_grad for weights in maps.calls[0].values())


def test_the_mean_is_over_the_calls_and_layers_asked_for_at_one_size():
    coarse, fine = torch.rand(2, 1, 2, 3, 5), torch.rand(2, 1, 4, 6, 5)  # two calls each
    maps = AttentionMaps([{"coarse": coarse[i], "fine": fine[i]} for i in range(2)])
    torch.testing.assert_close(maps.mean(layers=["fine"]), fine.mean(0).permute(0, 3, 1, 2))
    torch.testing.assert_close(maps.mean(slice(1, 2), ["coarse"]), coarse[1].permute(0, 3, 1, 2))
    assert maps.mean().shape == (1, 5, 4, 6)
    assert maps.mean(size=(8, 12)).shape == (1, 5, 8, 12)
    flat = AttentionMaps([{"coarse": torch.full((1, 2, 3, 5), 0.25), "fine": torch.full((1, 4, 6, 5), 0.75)}])
    torch.testing.assert_close(flat.mean(), torch.full((1, 5, 4, 6), 0.5))


def test_means_sum_to_1_over_the_slots_too(unet, wide):
    with attention_maps(unet) as maps:
        unet(*wide)
    torch.testing.assert_close(maps.mean(size=(13, 7)).sum(1), torch.ones(2, 13, 7), rtol=0, atol=1e-6)


def test_a_mean_of_nothing_or_of_what_does_not_fit_together_is_refused(unet, wide):
    with attention_maps(unet) as maps:
        unet(*wide)
        unet(wide[0], wide[1], wide[2][:, :10])
    for nothing in (dict(calls=slice(5, 6)), dict(layers=["attn1"])):
        with pytest.raises(ValueError, match="no attention maps"):
            maps.mean(**nothing)
    with pytest.raises(ValueError, match="number of slots"):
        maps.mean()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", []),
        ("a zebra", [("a", [1]), ("zebra", [2])]),
        ("A cat, a café.", [("a", [1]), ("cat", [2]), (",", [3]), ("a", [4]), ("café", [5]), (".", [6])]),
        ("an axolotl 🦊", [("an", [1]), ("axolotl", [2, 3, 4, 5]), ("🦊", [6, 7])]),
    ],
)  # fmt: skip
def test_words_know_their_slots(sd, prompt, words):
    assert word_slots(sd.model.cond_stage_model, prompt) == words


def test_words_that_do_not_fit_are_left_out_with_a_warning(sd):
    with pytest.warns(UserWarning, match="'dog'"):
        words = word_slots(sd.model.cond_stage_model, "cat " * 75 + "dog")
    assert words == [("cat", [slot]) for slot in range(1, 76)]
    with pytest.warns(UserWarning, match="dropped"):  # in the middle of a word
        words = word_slots(sd.model.cond_stage_model, "cat " * 74 + "axolotl")
    assert words[-1] == ("ax", [75])


def test_maps_are_float32_whatever_the_network_computes_in(unet, wide):
    x, t, context = wide
    exact = copy.deepcopy(unet).double()
    with attention_maps(exact) as maps:
        exact(x.double(), t, context.double())
    assert all(weights.dtype == torch.float32 for weights in maps.calls[0].values())
