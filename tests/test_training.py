"""The code that made assets/tiny: data, the loop that resumes exactly, the yardsticks."""

import argparse
import copy
import csv
import json
import math
import random
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, normal
from parity.diffusers_twins import randomise
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close

from sd_teach.checkpoint import load_model
from sd_teach.diffusion import LatentDiffusion
from sd_teach.noise import NoiseSchedule
from sd_teach.text_encoder import FrozenCLIPEmbedder
from sd_teach.training import bundle, data, decoder, dictionary, drawings, loop, metrics, scenes, text, unet, vae, words
from sd_teach.unet import TimestepEmbedSequential, UNetModel
from sd_teach.vae import AutoencoderKL, VAEConfig

COLOURS = list(data.COLOURS)


@pytest.fixture(autouse=True)
def runs_in_a_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SD_TEACH_RUNS", str(tmp_path))


def subject(name: str) -> data.Subject:
    return next(s for s in data.subjects() if s.name == name)


def shown(name: str) -> torch.Tensor:
    """One of the pictures of assets/emoji/shown, uint8 [1, 4, 128, 128]."""
    return data.load_rgba([subject(name).code], 128, data.EMOJI / "shown")


# --- data ---


def test_there_are_500_subjects_or_more_with_names_of_their_own():
    names = [name for subject in data.subjects() for name in subject.names]
    assert len(data.subjects()) >= 500
    assert len(names) == len(set(names))


def test_no_synonym_is_ever_a_training_name():
    names = {name for subject in data.subjects() for name in subject.names}
    assert names.isdisjoint(word for subject in data.subjects() for word in subject.synonyms)


def test_one_pair_of_subject_and_colour_in_ten_is_held_out():
    held_out = [s.is_held_out(c) for s in data.subjects() for c in range(len(COLOURS))]
    assert sum(held_out) / len(held_out) == pytest.approx(0.1, abs=0.005)
    assert all(any(s.is_held_out(c) for c in range(len(COLOURS))) for s in data.subjects())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("cat", "a"), "a cat"),
        (("grapes", ""), "grapes"),
        (("cat", "a", "blue"), "a cat on a blue background"),
        (("owl", "an", "orange"), "an owl on an orange background"),
    ],
)
def test_captions_are_english(arguments, sentence):
    assert data.caption(*arguments) == sentence


def test_a_picture_is_blended_by_its_alpha():
    rgba = torch.tensor([0, 0, 0, 0, 100, 50, 0, 128, 200, 10, 20, 255], dtype=torch.uint8).view(1, 3, 4, 1)
    rgba = rgba.permute(0, 2, 1, 3)  # three pixels: clear, half there (premultiplied), opaque
    blended = data.on_background(rgba, torch.tensor([10.0, 20.0, 30.0]).view(1, 3, 1, 1))
    half = [100 + 127 / 255 * 10, 50 + 127 / 255 * 20, 127 / 255 * 30]
    wanted = torch.tensor([[10.0, 20.0, 30.0], half, [200.0, 10.0, 20.0]]).T.view(1, 3, 3, 1)
    assert torch.allclose((blended + 1) * 127.5, wanted, atol=1e-4)


def test_transparent_pixels_do_not_bleed_when_a_picture_is_resized(tmp_path):
    picture = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (16, 16, 48, 48))
    picture.save(tmp_path / "x.webp", lossless=True, exact=True)
    assert data.load_rgba(["x"], 16, tmp_path)[0, 0].max() == 0


# --- drawings ---


def square(*colour: int) -> torch.Tensor:
    """uint8 [1, 4, 128, 128]: an opaque square of 64 pixels in the middle of nothing."""
    rgba = torch.zeros(1, 4, 128, 128, dtype=torch.uint8)
    rgba[0, :, 32:96, 32:96] = torch.tensor([*colour, 255], dtype=torch.uint8)[:, None, None]
    return rgba


def test_pixel_art_has_squares_of_one_colour_that_are_clear_or_opaque():
    art = drawings.pixel_art(shown("cat"))
    cells = art.unfold(2, 8, 8).unfold(3, 8, 8)
    assert torch.equal(cells, cells[..., :1, :1].expand_as(cells))
    assert set(art[:, 3].unique().tolist()) == {0, 255}


def test_a_line_drawing_is_white_with_a_dark_outline():
    large = square(200, 30, 30).repeat_interleave(4, 2).repeat_interleave(4, 3)
    drawing = drawings.line_drawing(large)[0]
    assert drawing.shape == (4, 128, 128)
    assert drawing[:, 64, 64].tolist() == [255, 255, 255, 255]
    assert drawing[:, 64, 32].tolist() == [drawings.INK] * 3 + [255]
    assert drawing[3, 64, 20] == 0


def test_a_tint_is_the_colour_where_the_picture_has_its_mean_brightness_and_keeps_the_alpha():
    purple = torch.tensor([[130.0, 70.0, 190.0]])
    tinted = drawings.tint(square(128, 128, 128), purple)
    assert (tinted[0, :3, 64, 64].float() - purple[0]).abs().max() <= 1
    cat = shown("cat")
    tinted = drawings.tint(cat, purple).float()
    assert torch.equal(tinted[:, 3], cat[:, 3].float())
    assert (tinted[:, :3] <= tinted[:, 3:]).all()  # premultiplied still
    light = cat[:, :3].float().mean(1).flatten()
    assert torch.corrcoef(torch.stack([light, tinted[:, :3].mean(1).flatten()]))[0, 1] > 0.9  # light and shade remain


# --- scenes ---


def scene(name: str, **changed: int) -> list[int]:
    row = dict.fromkeys(scenes.ATTRIBUTES, 0) | {"other": -1, "tint": -1, "other_tint": -1}
    return list((row | {"subject": subject(name).index} | changed).values())


def number(name: str) -> int:
    return subject(name).index


RED, BLUE, PURPLE = (COLOURS.index(name) for name in ("red", "blue", "purple"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (scene("cat", background=BLUE), "a cat on a blue background"),
        (scene("owl", tint=PURPLE, background=RED), "a purple owl on a red background"),
        (scene("cat", tint=COLOURS.index("orange"), background=scenes.NIGHT), "an orange cat at night"),
        (scene("cat", layout=scenes.SMALL, background=BLUE), "a small cat on a blue background"),
        (scene("cup of tea", layout=scenes.TWO, tint=RED, background=BLUE), "two red cups of tea on a blue background"),
        (scene("cat", layout=scenes.LEFT, background=BLUE), "a cat on the left on a blue background"),
        (
            scene("cat", layout=scenes.PAIR, other=number("pizza"), other_tint=RED, background=BLUE),
            "a cat and a red pizza on a blue background",
        ),
    ],
)
def test_a_scene_is_named_in_english(row, words):
    names = [data.subjects()[row[i]].name for i in (scenes.SUBJECT, scenes.OTHER)]
    assert scenes.sentence(row, tuple(names)) == words


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"),
        ("fox", "foxes"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("slice of pizza", "slices of pizza"),
        ("kitchen knife", "kitchen knives"),
        ("fried egg in a pan", "fried eggs in a pan"),
        ("mouse", "mice"),
    ],
)
def test_plurals(one, many):
    assert scenes.plural(one) == many


def test_training_scenes_never_hold_a_held_out_pair_and_speak_the_whole_language():
    drawn = scenes.draw(4000, torch.Generator().manual_seed(0))
    for row in drawn.tolist():
        for who, tint in ((row[scenes.SUBJECT], row[scenes.TINT]), (row[scenes.OTHER], row[scenes.OTHER_TINT])):
            if who != scenes.NONE:
                background = row[scenes.BACKGROUND]
                assert background == scenes.NIGHT or not data.subjects()[who].is_held_out(background)
                assert tint == scenes.NONE or not scenes.held_out("tint", who, tint)
                assert row[scenes.STYLE] == 0 or not scenes.held_out("style", who, row[scenes.STYLE])
                assert tint != background
    for column, values in (
        (scenes.STYLE, range(4)),
        (scenes.TINT, [scenes.NONE, *scenes.TINTS]),
        (scenes.BACKGROUND, range(13)),
        (scenes.LAYOUT, range(6)),
        (scenes.BAD, range(2)),
    ):
        assert sorted(set(drawn[:, column].tolist())) == list(values)


def test_scenes_of_some_kinds_only_can_be_drawn():
    pairs, tints = (scenes.draw(400, torch.Generator().manual_seed(0), {kind: 1.0}) for kind in ("pair", "tint"))
    assert (pairs[:, scenes.LAYOUT] == scenes.PAIR).all() and scenes.allowed(pairs).all()
    assert (tints[:, scenes.TINT] != scenes.NONE).all() and (tints[:, scenes.LAYOUT] == scenes.WHOLE).all()


def test_styles_are_drawn_as_often_as_they_are_hard():
    first = scenes.draw(16_000, torch.Generator().manual_seed(0))[::4]  # each is followed by three relatives
    counts = first[:, scenes.STYLE].bincount()[1:]
    drawn = dict(zip(drawings.STYLES[1:], (counts / counts.sum()).tolist(), strict=True))
    assert drawn == pytest.approx(scenes.STYLE_SHARES, abs=0.05)
    assert list(scenes.STYLE_SHARES) == list(drawings.STYLES[1:])
    assert scenes.STYLE_SHARES["flat"] > scenes.STYLE_SHARES["pixel"] > scenes.STYLE_SHARES["line"]


def test_things_that_were_not_recognised_are_drawn_more_often():
    first = scenes.draw(40_000, torch.Generator().manual_seed(0))[::4, scenes.SUBJECT]
    shares = torch.tensor([s.share for s in data.subjects()])
    assert shares.unique().tolist() == [1, 2, 4]
    for share in (1, 2, 4):
        often = (shares == share)[first].float().mean().item()
        assert often == pytest.approx((shares[shares == share].sum() / shares.sum()).item(), abs=0.02)


def test_relatives_differ_in_little():
    families = scenes.draw(400, torch.Generator().manual_seed(0)).view(100, 4, -1)
    changed = (families[:, 1:] != families[:, :1]).sum(-1)
    assert (changed[:, 0] <= 1).all() and (changed[:, 1] <= 1).all()
    assert (changed <= 4).all()  # a pair that swaps sides changes both subjects and both tints


def test_one_pair_in_ten_is_held_out_and_listed():
    with (data.EMOJI / "held_out.csv").open(newline="") as file:
        listed = {(row["kind"], row["subject"], row["value"]) for row in csv.DictReader(file)}
    for kind, values, names in (
        ("background", range(12), COLOURS),
        ("tint", scenes.TINTS, COLOURS),
        ("style", range(1, 4), drawings.STYLES),
    ):
        pairs = [(s, v) for s in data.subjects() for v in values]
        held = {(kind, s.name, names[v]) for s, v in pairs if scenes.held_out(kind, s.index, v)}
        assert len(held) / len(pairs) == pytest.approx(0.1, abs=0.005)
        assert held == {row for row in listed if row[0] == kind}


def test_captions_say_what_is_in_the_scene_and_never_a_synonym():
    rng, rows = random.Random(0), scenes.draw(3000, torch.Generator().manual_seed(1)).tolist()
    synonyms = {word for s in data.subjects() for word in s.synonyms}
    for row in rows:
        words, says = scenes.caption(row, rng)
        assert not any(f" {word} " in f" {words} " for word in synonyms)
        assert all(said in (value, scenes.ANY) for said, value in zip(says, row, strict=True))
        if says[scenes.SUBJECT] == scenes.ANY:
            assert row[scenes.BAD] == 1
            continue
        assert ("background" in words or "at night" in words) == (says[scenes.BACKGROUND] != scenes.ANY)
        assert any(bad in words for bad in scenes.BAD_WORDS) == bool(row[scenes.BAD])
        if row[scenes.TINT] != scenes.NONE:
            assert f"{COLOURS[row[scenes.TINT]]} " in words


def test_a_caption_fits_every_picture_that_differs_only_in_what_it_leaves_open():
    rows = torch.tensor([scene("cat", background=RED), scene("cat", background=BLUE), scene("dog", background=RED)])
    says = torch.tensor([scene("cat", background=RED), scene("cat", background=scenes.ANY)])
    assert scenes.agree(says, rows).tolist() == [[True, False, False], [True, True, False]]


@pytest.fixture
def painter(monkeypatch) -> scenes.Painter:
    """A painter with a cat in four styles for every subject; the pictures it needs lie in assets."""
    cat, subjects = shown("cat"), len(data.subjects())

    def renderings(codes, size):
        small = F.interpolate(cat.float(), (size, size), mode="area").byte()
        return small.expand(subjects, -1, -1, -1)[None].expand(4, -1, -1, -1, -1)

    monkeypatch.setattr(drawings, "renderings", renderings)
    return scenes.Painter()


@pytest.mark.parametrize(
    "row",
    [
        scene("cat", background=BLUE),
        scene("cat", layout=scenes.SMALL, background=RED),
        scene("cat", layout=scenes.TWO, background=RED),
        scene("cat", layout=scenes.PAIR, other=1, background=RED),
        scene("cat", background=scenes.NIGHT),
        scene("cat", background=BLUE, bad=1),
    ],
)
def test_a_larger_picture_shows_the_same(painter, row):
    painters = [scenes.Painter(size) for size in (128, 256)]
    for seed in range(6):  # moved and shrunk at random, but the same
        small, large = (painter.paint(row, random.Random(seed)) for painter in painters)
        assert large.shape == (3, 256, 256)
        reduced = F.interpolate(large[None], (32, 32), mode="area")
        assert (reduced - F.interpolate(small[None], (32, 32), mode="area")).abs().mean() < 0.08


def test_pictures_are_never_mirrored(painter):
    painter.whole, painter.half = (  # left halves
        renderings * (torch.arange(renderings.shape[-1]) < renderings.shape[-1] // 2)
        for renderings in (painter.whole, painter.half)
    )
    rng = random.Random(0)
    for layout in (scenes.WHOLE, scenes.SMALL):
        for _ in range(10):
            picture = painter.paint(scene("cat", layout=layout, background=BLUE), rng)
            there = (picture - picture[:, :1, -1:]).abs().sum(0) > 0.1
            x = there.nonzero()[:, 1].float()
            assert x.max() < 72  # of a right half more would be there


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("layout, count", list(zip(scenes.LAYOUTS, (5, 9, 3, 3, 1, 1), strict=True)))
def test_pictures_move_by_whole_places_of_the_latent(painter, layout, count, size):
    """One thing in half its size has nine places, or three on a side; a whole one has two sizes, the smaller four."""
    other = 1 if layout == "pair" else scenes.NONE
    row = scene("cat", layout=scenes.LAYOUTS.index(layout), other=other, background=BLUE)
    painter, rng, place = scenes.Painter(size), random.Random(0), size // 16
    distinct = torch.stack([painter.paint(row, rng) for _ in range(200)]).unique(dim=0)
    assert len(distinct) == count

    def moved(picture):
        shifts = [(place * y, place * x) for y in range(-2, 3) for x in range(-2, 3)]
        return [picture.roll(shift, (1, 2)) for shift in shifts]

    alike = [sum(any(torch.equal(a, b) for b in moved(picture)) for a in distinct) for picture in distinct]
    assert sorted(alike) == ([1, 4, 4, 4, 4] if layout == "whole" else [count] * count)


@pytest.mark.parametrize("layout", range(scenes.PAIR))
def test_layouts_are_told_apart_by_the_metric(painter, layout):
    rng = random.Random(0)
    rows = [scene("cat", layout=layout, background=BLUE) for _ in range(6)]
    pictures = torch.stack([painter.paint(row, rng) for row in rows])
    assert metrics.judged("place", rows, pictures).all()
    assert not metrics.judged("place", [scene("cat", layout=(layout + 1) % 5, background=BLUE)] * 6, pictures).any()


def test_tints_are_told_apart_by_the_metric(painter):
    rng = random.Random(0)
    rows = [scene("cat", tint=tint, background=0) for tint in scenes.TINTS]
    pictures = torch.stack([painter.paint(row, rng) for row in rows])
    assert metrics.judged("subject_colour", rows, pictures).all()
    assert not metrics.judged("subject_colour", rows, pictures.roll(1, dims=0)).any()


def test_a_pair_is_right_only_if_both_are_and_on_their_sides(painter):
    cat, dog = number("cat"), number("dog")
    row = scene("cat", layout=scenes.PAIR, other=cat, background=BLUE)
    picture = painter.paint(row, random.Random(0))[None]
    assert metrics.judged("pair", [row], picture).all()
    assert not metrics.judged("pair", [[dog, *row[1:]]], picture).any()
    assert not metrics.judged("pair", [[row[0], dog, *row[2:]]], picture).any()


def test_spoilt_pictures_are_coarse(painter):
    good, bad = (painter.paint(scene("cat", background=RED, bad=bad), random.Random(0)) for bad in (0, 1))
    assert max(e.abs().max() for e in vae.edges(bad)) < 0.7 * max(e.abs().max() for e in vae.edges(good))


def test_every_style_is_counted_for_itself(monkeypatch):
    monkeypatch.setattr(metrics, "drawn", lambda model, prompts, seed: torch.zeros(len(prompts), 3, 32, 32))
    right = metrics.hits(None, 12, 0)
    parts = [right[f"style_{style}"] for style in drawings.STYLES]
    assert sum(len(part) for part in parts) == len(right["style"]) == 12
    assert sum(part.sum() for part in parts) == right["style"].sum()
    assert "style_pixel" not in metrics.summary(load_model("tiny"), 12, [right | {"style_pixel": parts[0][:0]}])


def test_styles_are_told_apart_by_the_metric():
    rows = [scene(name, style=style, background=BLUE) for name in data.SHOWN for style in range(4)]
    sheet = metrics.subject_sheet()
    rgba = torch.stack([sheet[row[scenes.STYLE], row[scenes.SUBJECT]] for row in rows])
    pictures = data.on_background(rgba, metrics.COLOURS[BLUE].view(1, 3, 1, 1)).flip(-1)
    assert metrics.judged("style", rows, pictures).all()
    others = pictures.unflatten(0, (-1, 4)).roll(1, dims=1).flatten(0, 1)  # of the same subjects
    assert not metrics.judged("style", rows, others).any()


@pytest.mark.parametrize("part", metrics.PARTS)
def test_prompts_for_a_part_of_the_language_ask_for_it(part):
    rows = metrics.language(part, 1)
    assert len(rows) >= 100
    if "held_out" not in part:
        assert scenes.allowed(torch.tensor(rows)).all() or part == "place"
    kind, column = ("tint", scenes.TINT) if "colour" in part else ("style", scenes.STYLE)
    if part.startswith(("style", "subject_colour")):
        assert all(bool(scenes.held_out(kind, r[0], r[column])) == part.endswith("held_out") for r in rows)
    assert len({metrics.prompt(row) for row in rows}) == len(rows)
    assert len(metrics.language(part, 0, 20)) == 20


# --- the user's own pictures ---


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder of four pictures of different sizes and formats, with their texts."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for i, (name, size) in enumerate(
        [("a.png", (70, 90)), ("b.jpg", (64, 64)), ("c.webp", (200, 80)), ("d.png", (9, 9))]
    ):
        Image.new("RGB", size, (60 * i, 30, 200)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"a thing {i}"}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def test_own_pictures_are_cut_to_their_central_square(tmp_path):
    picture = Image.new("RGBA", (96, 32), (255, 0, 0, 255))
    picture.paste((0, 0, 255, 255), (32, 0, 64, 16))
    picture.paste((0, 0, 0, 0), (32, 16, 64, 32))
    picture.save(tmp_path / "x.png")
    square = data.load_square(tmp_path / "x.png", 32)
    assert square.shape == (3, 32, 32)
    assert square[:, 4, 16].tolist() == [-1, -1, 1]  # blue from the middle
    assert square[:, 28, 16].tolist() == [1, 1, 1]  # white where it was clear


@pytest.mark.parametrize(
    ("listing", "complaint"),
    [
        (None, "metadata.jsonl: not there"),
        ("", "lists no pictures"),
        ('{"file_name": "a.png", "text": "x"}\nnonsense', "line 2: not a JSON object"),
        ('{"file_name": "a.png"}', "line 1: not a JSON object"),
        ('{"file_name": "a.png", "text": 5}', "line 1: not a JSON object"),
        ('["a.png", "x"]', "line 1: not a JSON object"),
        ('{"file_name": "z.png", "text": "x"}', "line 1: no such picture: z.png"),
    ],
)
def test_a_bad_folder_of_own_pictures_is_refused_in_one_line(own, listing, complaint):
    (own / "metadata.jsonl").unlink()
    if listing is not None:
        (own / "metadata.jsonl").write_text(listing)
    with pytest.raises(ValueError, match=complaint) as error:
        data.read_folder(own)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"a.png: cannot be read as a picture"):
        data.load_square(tmp_path / "a.png", 32)


def fine_tuned(monkeypatch, small_folder, own, run: str, steps: int) -> dict[str, torch.Tensor]:
    monkeypatch.setattr(unet, "load_model", lambda name: load_model(small_folder))
    folder = unet.train_on(own, options(steps, run=run, lr=1e-3))
    return load_model(folder).state_dict()


def test_a_unet_follows_a_text_encoder_whose_states_are_others():
    network = randomise(UNetModel(unet.TINY))
    x, t = normal(2, 4, 8, 8), torch.tensor([1, 999])
    before, mixed = normal(2, 60, unet.TINY.context_dim, seed=1), normal(*[unet.TINY.context_dim] * 2, seed=2)
    after = before @ mixed
    with torch.no_grad():
        answer, other = network(x, t, before), network(x, t, after)
        unet.follow_text(network, before, after)
        followed = network(x, t, after)
    assert (other - answer).abs().max() > 0.1
    assert_close(followed, answer, rtol=0, atol=1e-4)


def test_a_grown_unet_is_the_one_before_on_means_of_2_by_2_enlarged():
    inner = randomise(UNetModel(unet.TINY))
    outer = unet.grow(inner)
    assert outer.config == unet.config_for(256) and unet.config_for(128) == unet.TINY
    n = len(inner.output_blocks)
    seen = {}
    for name, layer in (
        ("first", outer.input_blocks[0]),
        ("into", outer.input_blocks[2]),
        ("back", outer.output_blocks[n - 1][-2]),
        ("last", outer.output_blocks[n + 1]),
    ):
        layer.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    x, t, context = normal(2, 4, 16, 16), torch.tensor([1, 999]), normal(2, 7, unet.TINY.context_dim)
    with torch.no_grad():
        outer(x, t, context)
    assert_close(seen["into"], F.avg_pool2d(seen["first"], 2))
    assert_close(seen["last"], F.interpolate(seen["back"], scale_factor=2))
    inner.input_blocks[0] = TimestepEmbedSequential(nn.Identity())  # fed with what the grown one gives it
    inner.out = nn.Identity()
    with torch.no_grad():
        assert_close(inner(seen["into"], t, context), seen["back"])


def test_a_grown_unet_keeps_most_convolutions_and_the_attention_of_the_one_before():
    inner = randomise(UNetModel(unet.TINY))
    outer = unet.grow(inner)
    own, weights, inside = set(unet.own_weights(outer, inner)), outer.state_dict(), inner.state_dict()
    shared = {name: weight for name, weight in weights.items() if name not in own}
    assert sum(weight.numel() for weight in shared.values()) > 0.9 * sum(w.numel() for w in inside.values())
    assert {name.split(".")[0] for name in shared} == {"input_blocks", "middle_block", "output_blocks"}
    values = {(weight.shape, weight.sum().item()) for weight in inside.values()}
    assert all((weight.shape, weight.sum().item()) in values for weight in shared.values())
    new = [name for name in weights if name.startswith(("input_blocks.1.", "input_blocks.2.", "output_blocks.7."))]
    assert len(new) > 20 and own.issuperset(new)
    blocks = ("input_blocks.3.0.", "output_blocks.4.0.", "output_blocks.5.0.")  # of the finest level within
    finest = [name for name in weights if name.startswith(blocks)]
    assert sum(weights[name].shape[-2:] == (3, 3) for name in finest) == 6 and own.issuperset(finest)


@pytest.mark.parametrize("size", [128, 256])
def test_of_a_larger_model_its_own_weights_are_trained_at_small_time_steps_most(monkeypatch, size):
    drawn = scenes.draw(4, torch.Generator().manual_seed(0))
    both = ["a cat and an owl"], [[0, 1, 0, scenes.NONE, scenes.NONE, 3, scenes.PAIR, 0]]
    pool = SimpleNamespace(scale_factor=0.5, scenes=drawn, draw=lambda *_: (torch.zeros(1, 4, 8, 8), *both))
    monkeypatch.setattr(unet, "Pool", lambda *_: pool)
    monkeypatch.setattr(text, "near_words", dict)
    monkeypatch.setattr(unet, "loss", lambda model, x0, captions, generator, slots, late: (slots, late))
    runs = []
    monkeypatch.setattr(unet, "train", lambda run, network, loss_at, *_, **__: runs.append((network, loss_at(None))))
    monkeypatch.setattr("sys.argv", ["unet", "--size", str(size), "--device", "cpu"])
    unet.main()
    ((network, (slots, late)),) = runs
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    every = {name for name, _ in network.named_parameters()}
    assert late == (size == 256) == (slots is None)
    assert late or slots.any(-1).all()
    assert trained == (set(unet.own_weights(network, UNetModel(unet.TINY))) if late else every)


def large_run(monkeypatch, tmp_path, change: float) -> dict[str, torch.Tensor]:
    """What bundle_large writes of a run whose own weights have changed by 1, and its shared ones by `change`."""
    inner = load_model("tiny").model.diffusion_model
    network = unet.grow(inner)
    own = unet.own_weights(network, inner)
    weights = {name: weight + (1 if name in own else change) for name, weight in network.state_dict().items()}
    network.load_state_dict(weights)
    model = unet.assemble(0.5, 256)
    model.model.diffusion_model = network
    monkeypatch.setattr(unet, "trained", lambda run, size: model)
    monkeypatch.setattr(bundle, "LARGE", tmp_path / "tiny-256")
    bundle.bundle_large("large")
    written = load_file(tmp_path / "tiny-256" / "model.safetensors")
    assert written.keys() == {f"model.diffusion_model.{name}" for name in own}
    return {name: weights[name.removeprefix("model.diffusion_model.")] - weight for name, weight in written.items()}


def test_of_a_larger_model_only_its_own_weights_are_bundled(monkeypatch, tmp_path):
    differences = large_run(monkeypatch, tmp_path, 0.0)
    assert max(difference.abs().max() for difference in differences.values()) < 2**-9  # float16, of numbers below 4


def test_a_larger_model_around_another_unet_is_not_bundled(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"run 'large' grew around another UNet"):
        large_run(monkeypatch, tmp_path, 0.1)
    assert not (tmp_path / "tiny-256").exists()


def test_own_pictures_change_the_unet_alone_and_a_killed_run_resumes_exactly(monkeypatch, small_folder, own):
    whole = fine_tuned(monkeypatch, small_folder, own, "whole", 4)
    before = load_model(small_folder).state_dict()
    changed = {name for name in whole if not torch.equal(whole[name], before[name])}
    assert changed and all(name.startswith("model.diffusion_model.") for name in changed)

    saved = loop.Run.save

    def save_and_die(self, **state):
        saved(self, **state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Run, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        fine_tuned(monkeypatch, small_folder, own, "parts", 4)
    monkeypatch.setattr(loop.Run, "save", saved)
    resumed = fine_tuned(monkeypatch, small_folder, own, "parts", 4)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_is_not_taken_up_with_the_pictures_of_another_folder(monkeypatch, small_folder, own):
    fine_tuned(monkeypatch, small_folder, own, "r", 1)
    other = own.rename(own.with_name("others"))
    with pytest.raises(ValueError, match=r"run 'r' was begun with .*pictures: begin another with --run NAME"):
        fine_tuned(monkeypatch, small_folder, other, "r", 2)
    assert loop.Run("r").settings()["step"] == 1
    fine_tuned(monkeypatch, small_folder, other, "s", 1)


def test_the_command_refuses_a_bad_folder_with_exit_code_2(monkeypatch, small_folder, tmp_path, capsys):
    monkeypatch.setattr(unet, "load_model", lambda name: load_model(small_folder))
    monkeypatch.setattr("sys.argv", ["unet", "--data", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        unet.main()
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("unet: error: ") and "metadata.jsonl: not there" in told and told.count("\n") == 1


def test_a_command_tells_a_wrong_model_in_one_line_with_exit_code_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["metrics.py", "--model", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as stopped:
        metrics.main()
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("metrics.py: error: ") and "nowhere" in told and told.count("\n") == 1


# --- a dictionary's words ---


@pytest.fixture
def encoder() -> FrozenCLIPEmbedder:
    """The bundled text encoder."""
    return load_model("tiny").cond_stage_model


def test_nouns_are_told_by_what_is_near_and_by_what_the_dictionary_calls_them(encoder, monkeypatch):
    near = {
        "hatchet": {"hatching chick": 0.55, "axe": 0.4},  # "axe" is what a hatchet is a kind of
        "snipper": {"scissors": 0.46},
        "thing": {"cat": 0.44},  # not near enough
        "cat": {"cat": 1.0},  # a subject's own name
        "phantom": {"ghost": 0.74},  # no noun of this dictionary: has to be nearer
        "haunt": {"ghost": 0.76},
    }
    listed = ["hatchet", "snipper", "thing", "cat", "unheard of"]
    tokens = list(words.whole_words(encoder.tokenizer))
    rows = [noun for noun in listed[:-1] if noun not in tokens] + tokens

    def nearness(vectors):
        found = torch.zeros(len(vectors), len(data.subjects()))
        for noun in near:
            for name, value in near[noun].items():
                found[rows.index(noun), subject(name).index] = value
        return found

    (loop.runs_folder() / "data").mkdir()
    monkeypatch.setattr(dictionary, "nouns", lambda: listed)
    monkeypatch.setattr(dictionary, "place", lambda noun: noun)
    monkeypatch.setattr(dictionary, "kinds", lambda noun: {"tomahawk": 0, "axe": 1} if noun == "hatchet" else {})
    monkeypatch.setattr(dictionary, "is_thing", lambda noun, names: noun != "unheard of")
    monkeypatch.setattr(dictionary, "meaning", lambda noun: noun if noun in listed else None)
    monkeypatch.setattr(text, "meanings", lambda nouns: torch.zeros(len(nouns), 1))
    monkeypatch.setattr(text, "token_meanings", lambda tokenizer: torch.zeros(len(tokenizer), 1))
    monkeypatch.setattr(text, "nearness", nearness)
    told = {noun: data.subjects()[index].name for noun, index in words.nouns(encoder.tokenizer).items()}
    assert told["hatchet"] == "axe" and told["snipper"] == told["snippers"] == "scissors" and told["haunt"] == "ghost"
    assert told["raincloud"] == "rain cloud"
    assert not told.keys() & {"thing", "cat", "phantom", "hatchets", "unheard of"}


def test_two_captions_of_a_scene_differ_in_the_noun_alone():
    cat = subject("cat").index
    seen = set()
    for seed, scene in enumerate(scenes.draw(400, torch.Generator().manual_seed(0)).tolist()):
        scene[scenes.SUBJECT] = cat
        one, other = words.said_with(scene, ("lynx", "cat"), seed)
        assert one == other.replace("cats", "lynxes").replace("cat", "lynx")
        seen.add(one)
    assert len(seen) > 200


def test_states_are_compared_where_captions_should_mean_the_same(encoder):
    captions = [("a tyrannosaurus on a red background", "a cat on a red background"), ("an ox", "an owl"), ("", "")]
    ids, others = (encoder.tokenize(list(side)) for side in zip(*captions, strict=True))
    row, slot, other = words.alike(ids, others)

    def pairs(i: int) -> list[tuple[str, str]]:
        tokens = ((ids[i, a], others[i, b]) for a, b in zip(slot[row == i], other[row == i], strict=True))
        return [tuple(encoder.tokenizer.decode([token]).strip() for token in pair) for pair in tokens]

    noun = [("tyran", "a"), ("no", "a"), ("saurus", "cat")]
    end = ("<|endoftext|>", "<|endoftext|>")
    assert pairs(0) == noun + [(word, word) for word in "on a red background".split()] + words.SLOTS * [end]
    assert pairs(1) == [("ox", "owl")] + words.SLOTS * [end]
    assert pairs(2) == words.SLOTS * [end]


def test_of_a_caption_of_two_each_is_said_alone_on_its_side_in_the_same_words():
    cat, owl = subject("cat").index, subject("owl").index
    blue, red = scenes.COLOUR_NAMES.index("blue"), scenes.COLOUR_NAMES.index("red")
    scene = [cat, owl, 0, scenes.NONE, red, blue, scenes.PAIR, 0]
    car = [subject("car").index, owl, 0, scenes.TINTS[-1], *scene[scenes.OTHER_TINT :]]  # also called a red car
    assert not any("red car" in words.alone(car, random.Random(seed))[0] for seed in range(100))
    seen = set()
    for seed in range(200):
        both, first, second = words.alone(scene, random.Random(seed))
        frame_and_first, _, rest = both.partition(" and ")
        after = rest.removeprefix("a red owl")
        assert rest == f"a red owl{after}" and first == f"{frame_and_first} on the left{after}"
        frame = second.removesuffix(f"a red owl on the right{after}")
        assert frame_and_first.startswith(f"{frame}a ")
        seen.add(both)
    assert "a cat and a red owl on a blue background" in seen and "an image of a cat and a red owl" in seen


TWO_THINGS = [
    (
        "a cat and a red owl on a blue background",
        "a cat on the left on a blue background",
        "a red owl on the right on a blue background",
        "owl on a blue background",
    ),
    ("a cup of tea and scissors", "a cup of tea on the left", "scissors on the right", "scissors"),
    (
        "an image of a bear and a teddy bear",
        "an image of a bear on the left",
        "an image of a teddy bear on the right",
        "bear",
    ),
]


def test_slots_of_a_caption_of_two_speak_of_the_second_then_of_both_in_turn(encoder):
    *captions, said = zip(*TWO_THINGS, strict=True)
    ids, *others = (encoder.tokenize(list(side)) for side in captions)
    row, slot, whose, there = words.apart(ids, *others).unbind(1)
    for i, (end, *its_end) in enumerate(zip(*(text.first_end(side).tolist() for side in (ids, *others)), strict=True)):
        its_slots, its_whose, its_there = (column[row == i] for column in (slot, whose, there))
        in_words = its_slots < end
        tokens, to = ids[i, its_slots[in_words]].flip(0), others[1][i, its_there[in_words]].flip(0)
        assert encoder.tokenizer.decode(tokens) == said[i] and its_whose[in_words].eq(1).all()
        assert encoder.tokenizer.decode(to[:1]) == "right" and torch.equal(to[1:], tokens[1:])
        assert its_slots[~in_words].tolist() == list(range(end, 77))
        assert torch.equal(its_whose[~in_words], its_slots[~in_words] % 2)
        ends = torch.tensor(its_end)[its_whose[~in_words]]
        assert torch.equal(its_there[~in_words], (ends + its_slots[~in_words] - end).clamp(max=76))


def test_what_two_things_should_mean_is_what_each_means_on_its_side(encoder):
    pairs, rng = scenes.draw(4, torch.Generator().manual_seed(0), {"pair": 1.0})[:1].tolist(), random.Random(2)
    captions = words.alone(rng.choices(pairs)[0], rng)
    for slots in (0, 77):
        ids, _, slot, wanted = words.two_things(encoder, pairs, 1, random.Random(2), slots)
        assert torch.equal(ids, encoder.tokenize([captions[0]])[:, : ids.shape[1]])
        assert ids.shape[1] == (slots or text.first_end(ids) + words.SLOTS)
        states = encoder(list(captions[1:]))
        _, slot, whose, there = words.apart(*(encoder.tokenize([caption]) for caption in captions)).unbind(1)
        inside = slot < ids.shape[1]
        assert_close(wanted, states[whose, there][inside], rtol=0, atol=1e-4)


def test_a_word_of_one_token_takes_the_row_of_its_subject_and_no_caption_changes(encoder):
    table = encoder.transformer["text_model"].embeddings.token_embedding.weight
    told = {"automobile": subject("car").index, "dog": subject("cat").index, "tuk": subject("palm tree").index}
    captions = ["a cat on a red background", "two dogs"]
    ids, known = words.whole_words(encoder.tokenizer), words.heard(encoder.tokenizer, captions)
    before, states = table.clone(), encoder(captions)
    taken = words.take_rows(table, encoder.tokenizer, told, known)
    assert taken.nonzero().flatten().tolist() == [ids["automobile"]]  # "dog" is known, no palm tree is one token
    assert torch.equal(table[ids["automobile"]], before[ids["car"]])
    assert torch.equal(encoder(captions), states)
    assert torch.equal(encoder(["a automobile at night"]), encoder(["a car at night"]))


def test_what_captions_say_is_heard_names_and_plurals_too(encoder):
    known, ids = words.heard(encoder.tokenizer, ["a masterpiece"]), words.whole_words(encoder.tokenizer)
    assert list(ids.values()) == sorted(ids.values())
    assert all(known[ids[word]] for word in ("masterpiece", "cat", "cats", "mice"))
    assert not any(known[ids[word]] for word in ("kitten", "automobile", "philosophy"))


def test_the_lesson_teaches_words_and_leaves_captions_rows_alone(encoder, monkeypatch):
    encoder, generator = copy.deepcopy(encoder), torch.Generator().manual_seed(0)
    with torch.no_grad():  # the bundled one has had the lesson: one that mixes two things up has something to learn
        for name, weight in encoder.named_parameters():
            if "self_attn" in name and weight.dim() == 2:
                weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)
    loop.Run("text").save(average={f"text.{name}": weight for name, weight in encoder.state_dict().items()})
    told = {"mallard": subject("duck").index, "tyrannosaurus": subject("dinosaur").index}
    monkeypatch.setattr(words, "nouns", lambda tokenizer: told | {"automobile": subject("car").index})
    monkeypatch.setattr("sys.argv", "words --steps 20 --batch 8 --lr 0.03 --device cpu --precision fp32".split())
    words.main()
    taught = FrozenCLIPEmbedder(text.TINY)
    words.load_text_encoder(taught)
    duck = encoder(["a duck"])[0, -1]
    before, after = ((m(["a mallard"])[0, -1] - duck).square().mean() for m in (encoder, taught))
    assert after < 0.5 * before
    pairs = scenes.draw(2000, torch.Generator().manual_seed(1), {"pair": 1.0}).tolist()
    ids, row, slot, wanted = words.two_things(encoder, pairs, 200, random.Random(1))
    before, after = ((m.encode_tokens(ids)[row, slot] - wanted).square().mean(1) for m in (encoder, taught))
    in_words = slot < text.first_end(ids)[row]
    for which in (in_words, ~in_words & (slot % 2 == 0), ~in_words & (slot % 2 == 1)):
        assert after[which].mean() < 0.95 * before[which].mean()
    before, after = (m.transformer["text_model"].embeddings.token_embedding.weight for m in (encoder, taught))
    ids, tokens = words.whole_words(encoder.tokenizer), encoder.tokenizer("mallard")["input_ids"][1:-1]
    known = words.heard(encoder.tokenizer, [])
    assert torch.equal(after[known], before[known])
    assert torch.equal(after[ids["automobile"]], before[ids["car"]])
    assert not any(torch.equal(after[token], before[token]) for token in tokens if not known[token])


def test_without_a_lesson_the_contrastive_training_counts(encoder):
    trained = {f"text.{name}": weight + 1 for name, weight in encoder.state_dict().items()}
    loop.Run("text").save(average=trained)
    found = FrozenCLIPEmbedder(text.TINY)
    words.load_text_encoder(found)
    assert all(torch.equal(weight, trained[f"text.{name}"]) for name, weight in found.state_dict().items())


# --- the loop ---


def options(steps: int, **changed) -> argparse.Namespace:
    known = {"run": "r", "steps": steps, "batch": 4, "lr": 1e-2, "every": 2, "device": "cpu", "precision": "fp32"}
    return argparse.Namespace(**(known | changed))


def trained(run: str, *lengths: int, muon: bool) -> nn.Module:
    """A small regression, trained to each of the lengths in turn, resuming in between; the schedule is the last's."""
    for turn, length in enumerate(lengths):
        torch.manual_seed(7 + turn)  # whatever does not come from the checkpoint is another
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))

        def loss_at(generator, model=model):
            x = torch.randn(4, 3, generator=generator)
            return (model(x) - x.sum(1, keepdim=True)).square().mean()

        stop = Stop(length) if length != lengths[-1] else lambda average, step: {}
        try:
            average = loop.train(loop.Run(run), model, loss_at, stop, options(lengths[-1]), muon=muon)
        except Stop.Now:
            continue
    return average


class Stop:
    """An evaluation that breaks off the training after a step, as a crash would."""

    class Now(Exception):
        pass

    def __init__(self, step: int):
        self.step = step

    def __call__(self, average, step):
        if step == self.step:
            raise self.Now
        return {}


@pytest.mark.parametrize("muon", [False, True])
def test_a_run_that_was_broken_off_resumes_exactly(muon):
    unbroken, resumed = trained("whole", 8, muon=muon), trained("parts", 4, 8, muon=muon)
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert loop.Run("parts").settings() == {"step": 8, "batch": 4}


def test_a_run_begun_with_other_optimisers_is_refused_by_name():
    trained("r", 2, muon=False)
    with pytest.raises(ValueError, match=r"run 'r' was begun by other code or options"):
        trained("r", 4, muon=True)


def test_some_parameters_may_learn_ten_times_as_fast_and_none_need_decay():
    slow, fast, idle = (nn.Parameter(torch.ones(2)) for _ in range(3))
    model = nn.ParameterList([slow, fast, idle])

    def loss_at(generator):
        return (slow + fast).sum() + 0 * idle.sum()

    loop.train(loop.Run("r"), model, loss_at, lambda *_: {}, options(1), weight_decay=0.0, fast=[fast])
    rate = loop.learning_rate(0, 1, 1e-2)  # Adam's first step is as long as the rate
    assert_close(1 - slow, torch.full((2,), rate), rtol=1e-3, atol=0)
    assert_close(1 - fast, torch.full((2,), 10 * rate), rtol=1e-3, atol=0)
    assert torch.equal(idle, torch.ones(2))


def test_the_learning_rate_warms_up_stays_and_falls_to_a_twentieth():
    rates = [loop.learning_rate(step, 2000, 1.0) for step in range(2000)]
    assert rates[0] == pytest.approx(1 / 300)
    assert rates[299:1001] == [1.0] * 702
    assert rates[-1] == pytest.approx(0.05, abs=1e-3)
    assert all(a >= b for a, b in pairwise(rates[300:]))


def test_trained_parts_of_another_shape_are_refused_by_name():
    run = loop.Run("vae")
    run.save(average={"encoder.conv_in.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"run 'vae' .* missing: .* of the wrong shape: encoder.conv_in.weight"):
        loop.load_trained(AutoencoderKL(vae.TINY), "vae", "first_stage_model.")


@pytest.mark.parametrize(("logvar", "sign"), [(0.0, 1), (-5.9, 1), (2 * math.log(0.05), 0), (-6.1, -1)])
def test_the_vae_learns_the_variance_of_the_noise_it_was_trained_with(logvar, sign):
    torch.manual_seed(0)
    network = AutoencoderKL(vae.TINY)
    nn.init.zeros_(network.quant_conv.weight)
    nn.init.constant_(network.quant_conv.bias, logvar)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    vae.loss(network, x, generator).backward()
    step = network.quant_conv.bias.grad
    assert torch.equal(torch.where(step[4:].abs() < 1e-7, 0.0, step[4:].sign()), torch.full((4,), float(sign)))
    assert step[:4].abs().sum() > 0


def test_the_vae_decodes_its_means_with_a_little_noise(monkeypatch):
    torch.manual_seed(0)
    network, decoded = AutoencoderKL(vae.TINY), []
    monkeypatch.setattr(network, "decode", lambda z: decoded.append(z) or torch.zeros(2, 3, 64, 64))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae.loss(network, x, torch.Generator().manual_seed(1))
    noise = decoded[0] - network.encode(x).mean
    assert_close(noise, 0.05 * torch.randn(noise.shape, generator=torch.Generator().manual_seed(1)), rtol=0, atol=1e-6)


# --- the UNet's loss ---


class Told(nn.Module):
    """Stands for the whole model: predicts the noise in nothing (x0 = 0) up to an error, the length of the caption."""

    def __init__(self):
        super().__init__()
        self.schedule, self.weight = NoiseSchedule(), nn.Parameter(torch.ones(1))
        self.model = nn.ModuleDict({"diffusion_model": nn.Identity()})  # no attention to watch

    def get_learned_conditioning(self, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts]).view(-1, 1, 1, 1)

    def apply_model(self, x, t, context):
        return x / (1 - self.schedule.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1) + self.weight * context


@pytest.mark.parametrize(
    ("late", "times", "most", "power"), [(False, [0, 100, 900], 5, 0.5), (True, [0, 100, 360], 20, 1)]
)
def test_the_loss_weighs_the_error_of_x0_by_its_snr_or_the_root_of_it_up_to_a_bound(
    monkeypatch, late, times, most, power
):
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([0, 100, 900]))
    alphas = NoiseSchedule().alphas_cumprod[times]
    snr = alphas / (1 - alphas)
    wanted = (snr.clamp(max=most) ** power / snr * torch.tensor([1, 4, 9])).mean().item()  # squares of the errors
    got = unet.loss(Told(), torch.zeros(3, 1, 2, 2), ["a", "an", "ant"], torch.Generator(), late=late).item()
    assert got == pytest.approx(wanted, rel=1e-5)


def test_the_noise_has_a_part_that_all_places_of_a_channel_share(monkeypatch):
    seen, told = [], Told()
    monkeypatch.setattr(told, "apply_model", lambda x, t, context: seen.append((x, t)) or x * told.weight)
    unet.loss(told, torch.zeros(200, 4, 16, 16), ["a"] * 200, torch.Generator().manual_seed(0))
    ((x, t),) = seen
    means = (x / (1 - told.schedule.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)).mean((2, 3))
    assert means.std().item() == pytest.approx((0.1**2 + 1 / 256) ** 0.5, rel=0.08)  # 0.118; 0.0625 without it


def test_every_other_picture_of_two_things_has_a_larger_time_step(monkeypatch):
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([0, 100, 500, 900, 999]))
    seen, told = [], Told()
    monkeypatch.setattr(told, "apply_model", lambda x, t, context: seen.append(t.tolist()) or x * told.weight)
    slots = torch.zeros(5, 2, 77, dtype=torch.bool)
    slots[0, 0] = slots[1:] = True  # the first speaks of one thing only
    unet.loss(told, torch.zeros(5, 1, 2, 2), ["a"] * 5, torch.Generator(), slots)
    assert seen == [[0, 250 + 75, 500, 250 + 675, 999]]


def test_the_loss_adds_what_attention_to_the_wrong_one_of_two_things_costs(monkeypatch):
    model = randomise(LatentDiffusion(SMALL))
    captions = ["a cat and an owl", "a cat"]
    drawn = [[0, other, 0, scenes.NONE, scenes.NONE, 3, layout, 0] for other, layout in ((1, scenes.PAIR), (-1, 0))]
    slots = unet.whose_slots(model.cond_stage_model.tokenizer, captions, drawn)
    costs = iter(range(100))  # a layer more, one more
    monkeypatch.setattr(unet, "strayed", lambda q, k, slots: torch.tensor(float(next(costs))))
    monkeypatch.setattr(unet, "EARLY", 0)  # the same time steps for both
    alone, told = (
        unet.loss(model, normal(2, 4, 8, 8), captions, torch.Generator().manual_seed(0), its) for its in (None, slots)
    )
    layers = sum(name.endswith("attn2") for name, _ in model.named_modules())
    assert next(costs) == layers
    assert_close(told - alone, torch.tensor(unet.SIDES * (layers - 1) / 2 / 2))  # of two captions one is of two things


# --- the decoder alone ---


@pytest.fixture
def decoding():
    torch.manual_seed(0)
    small = VAEConfig(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
    return decoder.Decoding(randomise(AutoencoderKL(small))).eval()  # eval: the critic's norms stay as they are


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def test_the_critic_learns_from_its_own_verdict_only_and_the_encoder_not_at_all(decoding):
    x, z = normal(2, 3, 32, 32), normal(2, 4, 4, 4, seed=1)
    decoder.loss(decoding, x, z).backward()
    got = gradients(decoding.critic)
    assert got and not gradients(decoding.vae.encoder) and not gradients(decoding.vae.quant_conv)
    assert len(gradients(decoding.vae.decoder)) == len(list(decoding.vae.decoder.parameters()))
    decoding.zero_grad()
    with torch.no_grad():
        y = decoding.vae.decode(z)
    F.softplus(decoding.critic(y)[-1] - decoding.critic(x)[-1]).mean().backward()
    for a, b in zip(got, gradients(decoding.critic), strict=True):
        assert_close(a, b)


def test_the_decoder_learns_what_the_critic_takes_for_real(decoding, monkeypatch):
    monkeypatch.setattr(vae, "reconstruction", lambda y, x: 0 * y.sum())
    monkeypatch.setattr(decoder, "FEATURES", 0.0)
    x, z = normal(2, 3, 32, 32), normal(2, 4, 4, 4, seed=1)

    def verdict():
        with torch.no_grad():
            return decoding.critic(decoding.vae.decode(z))[-1].mean()

    before = verdict()
    decoder.loss(decoding, x, z).backward()
    with torch.no_grad():
        for p in decoding.vae.decoder.parameters():
            p -= p.grad
    assert verdict() > before


def test_the_weights_of_each_of_the_critics_layers_have_norm_1():
    torch.manual_seed(0)
    critic = decoder.Critic().train()
    for layer in critic.layers:
        nn.init.normal_(layer.parametrizations.weight.original)
    for _ in range(100):  # the norm is found by and by
        critic(torch.zeros(1, 3, 16, 16))
    for layer in critic.layers:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item()
        assert norm == pytest.approx(1, abs=0.02)


def test_latents_are_made_of_a_pictures_own_by_its_last_steps(painter, monkeypatch):
    model, rng = load_model("tiny"), random.Random(0)
    rows = scenes.draw(4, torch.Generator().manual_seed(0)).tolist()
    pictures = torch.stack([painter.paint(row, rng) for row in rows])
    with torch.inference_mode():
        own = model.first_stage_model.encode(pictures).mode()
    away = []
    for most in (1, 20):
        monkeypatch.setattr(decoder, "MOST", most)
        drawn = decoder.made(model, pictures, [metrics.prompt(row) for row in rows], torch.Generator().manual_seed(1))
        away.append(((drawn - own).square().mean() / own.square().mean()).item())
    assert away[0] < 0.01  # one step of twenty: hardly any noise
    assert away[1] > 10 * away[0]


@pytest.mark.parametrize(("until", "guided"), [(0, 20), (500, 10), (1000, 0)])
def test_what_is_measured_and_what_the_decoder_learns_from_is_guided_as_the_model_says(monkeypatch, until, guided):
    defaults = replace(SMALL.defaults, steps=20, guidance_until=until)
    model = LatentDiffusion(replace(SMALL, defaults=defaults)).eval()
    batches, apply_model = [], model.apply_model
    monkeypatch.setattr(model, "apply_model", lambda x, t, c: batches.append(len(x)) or apply_model(x, t, c))
    metrics.pictures_of(model, ["a cat"], [0])
    assert batches == [2] * guided + [1] * (20 - guided)
    batches.clear()
    monkeypatch.setattr(decoder, "MOST", 20)
    decoder.made(model, torch.zeros(1, 3, 64, 64), ["a cat"], torch.Generator().manual_seed(7))
    steps = len(batches)
    assert steps > 10 and batches.count(2) == max(0, guided - (20 - steps))


def test_what_the_decoder_learns_from_is_guided_towards_the_captions(monkeypatch):
    model, seen, guided = LatentDiffusion(SMALL).eval(), [], decoder.GuidedModel
    monkeypatch.setattr(decoder, "GuidedModel", lambda *told: seen.append(told[1:3]) or guided(*told))
    decoder.made(model, torch.zeros(1, 3, 64, 64), ["a cat"], torch.Generator().manual_seed(0))
    assert_close(seen[0], tuple(model.get_learned_conditioning([text]) for text in ("a cat", "")), rtol=0, atol=0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_is_measured_is_what_the_pipeline_draws(eta):
    model = LatentDiffusion(replace(SMALL, defaults=replace(SMALL.defaults, steps=4, eta=eta))).eval()
    randomise(model)
    drawn = metrics.pictures_of(model, ["a cat", "a dog"], [7, 8])
    for i, prompt in enumerate(("a cat", "a dog")):
        alone = metrics.StableDiffusion(model).text_to_image(prompt, seed=7 + i, eta=eta).latents
        with torch.inference_mode():
            assert_close(model.decode_first_stage(alone), drawn[i, None], atol=1e-4, rtol=1e-4)


def test_made_latents_are_kept_with_the_run_beside_their_pictures(painter, monkeypatch):
    monkeypatch.setattr(scenes, "Painter", lambda: painter)
    stored = decoder.Made(loop.Run("r"), 16)
    x, z = stored.draw(5, torch.Generator().manual_seed(0))
    assert x.shape == (5, 3, 128, 128) and z.shape == (5, 4, 16, 16)
    model = load_model("tiny").first_stage_model
    with torch.inference_mode():
        own = model.encode(x).mode()
    assert (torch.cdist(z.flatten(1), own.flatten(1)).argmin(1) == torch.arange(5)).sum() >= 4
    monkeypatch.delattr(decoder, "made")
    assert torch.equal(decoder.Made(loop.Run("r"), 16).latents, stored.latents)


def test_the_decoders_run_comes_before_the_autoencoders():
    bundled, network = load_model("tiny").first_stage_model, AutoencoderKL(vae.TINY)
    networks = [AutoencoderKL(vae.TINY) for _ in range(2)]

    def loaded() -> torch.Tensor:
        vae.load_autoencoder(network)
        return network.decoder.conv_in.weight.clone()

    assert torch.equal(loaded(), bundled.decoder.conv_in.weight)
    loop.Run("vae").save(average=networks[0].state_dict())
    assert torch.equal(loaded(), networks[0].decoder.conv_in.weight)
    loop.Run("decoder").save(average=decoder.Decoding(networks[1]).state_dict())
    assert torch.equal(loaded(), networks[1].decoder.conv_in.weight)
    assert torch.equal(unet.latest().first_stage_model.decoder.conv_in.weight, networks[1].decoder.conv_in.weight)


def test_the_decoder_is_trained_and_nothing_else(painter, monkeypatch):
    monkeypatch.setattr(scenes, "Painter", lambda: painter)
    monkeypatch.setattr(vae, "Crops", lambda side: SimpleNamespace(draw=lambda n, generator: normal(n, 3, side, side)))
    monkeypatch.setattr(metrics, "vae_psnr", lambda network, size: 0.0)
    monkeypatch.setattr("sys.argv", ["decoder", "--steps", "2", "--made", "4", "--batch", "3", "--device", "cpu"])
    decoder.main()
    before, after = load_model("tiny").first_stage_model, AutoencoderKL(vae.TINY)
    vae.load_autoencoder(after)
    for part in ("encoder", "quant_conv", "decoder", "post_quant_conv"):
        weights = zip(getattr(before, part).parameters(), getattr(after, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in weights) == (part in ("encoder", "quant_conv"))
    assert loop.Run("decoder").settings() == {"step": 2, "batch": 3}


# --- the yardsticks ---


def test_psnr_is_minus_ten_log_of_the_mean_squared_error_after_clamping():
    a = torch.zeros(2, 3, 8, 8)
    b = torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 9.0)])
    assert torch.allclose(metrics.psnr(a, b), -10 * torch.tensor([0.01, 0.25]).log10())


@pytest.mark.parametrize("name", data.SHOWN)
def test_a_real_picture_is_recognised_mirrored_and_shifted(name):
    wanted = subject(name).index
    colour = COLOURS.index("turquoise")
    views = torch.cat([shown(name), shown(name).flip(-1), shown(name).roll((6, -6), dims=(2, 3))])
    pictures = data.on_background(views, metrics.COLOURS[colour].view(1, 3, 1, 1))
    assert metrics.nearest_subject(pictures, colour).tolist() == [wanted] * 3
    assert metrics.nearest_colour(pictures).tolist() == [colour] * 3


def test_the_wrong_picture_is_not_taken_for_the_right_one():
    cat = subject("cat").index
    pictures = data.on_background(shown("pizza"), metrics.COLOURS[0].view(1, 3, 1, 1))
    assert metrics.nearest_subject(pictures, 0).item() != cat


def test_every_colour_is_told_from_the_others():
    flat = (metrics.COLOURS / 127.5 - 1)[:, :, None, None].expand(-1, -1, 32, 32)
    assert metrics.nearest_colour(flat).tolist() == list(range(len(COLOURS)))


@pytest.mark.parametrize("held_out", [False, True])
def test_prompts_for_the_metrics_ask_for_the_pairs_they_claim(held_out):
    prompts, subjects, colours = metrics.pairs(held_out, turn=1)
    assert subjects == list(range(len(data.subjects())))
    assert all(data.subjects()[s].is_held_out(c) == held_out for s, c in zip(subjects, colours, strict=True))
    assert all(COLOURS[c] in prompt for prompt, c in zip(prompts, colours, strict=True))
    assert len(set(metrics.pairs(False, 0)[2])) == len(COLOURS)


def test_the_kept_pictures_are_there_and_no_scene_shows_one():
    assert metrics.kept_pictures(32).shape == (33, 3, 32, 32)
    kept = {path.stem for path in (data.EMOJI / "kept").glob("*.webp")}
    assert kept.isdisjoint(subject.code for subject in data.subjects())


# --- the parts fit together ---


def test_captions_and_pictures_of_a_contrastive_batch_belong_together(painter, monkeypatch):
    monkeypatch.setattr(scenes, "Painter", lambda: painter)
    examples = text.Examples(80, {})
    captions, pictures, fits = examples.draw(32, torch.Generator().manual_seed(0))
    assert len(captions) == 32 and pictures.shape == (32, 3, 32, 32)
    assert fits.diagonal().all()
    assert fits.float().mean() < 0.3


@pytest.mark.parametrize(("size", "shares"), [(128, unet.KINDS), (256, scenes.KINDS)])
def test_a_pool_gives_latents_of_unit_variance_with_their_captions(painter, monkeypatch, size, shares):
    monkeypatch.setattr(scenes, "Painter", lambda size: painter)
    monkeypatch.setattr(unet, "CHUNK", 64)
    drawn = scenes.draw(128, torch.Generator().manual_seed(0), {"plain": 0.5, "pair": 0.5}).split(64)
    monkeypatch.setattr(scenes, "draw", lambda _, g, kinds: drawn[g.initial_seed()] if kinds == shares else None)
    pool = unet.Pool(loop.Run("r"), 100, size)
    assert pool.latents.shape == (100, 4, 16, 16)
    assert pool.latents[:64].float().std() == pytest.approx(1.0, abs=0.01)
    x0, captions, rows = pool.draw(500, torch.Generator().manual_seed(0))
    layouts = [row[scenes.LAYOUT] for row in rows]
    assert x0.shape == (500, 4, 16, 16)
    two = [layout for caption, layout in zip(captions, layouts, strict=True) if " and a" in caption]
    assert set(two) == {scenes.PAIR} and set(layouts) == {scenes.PAIR, scenes.WHOLE}
    assert captions.count("") / 500 == pytest.approx(unet.EMPTY, abs=0.04)
    again = unet.Pool(loop.Run("r"), 100, size)  # kept with the run
    assert torch.equal(again.latents, pool.latents) and torch.equal(again.scenes, pool.scenes)


def test_slots_of_two_things_are_those_that_the_lesson_gave_them(encoder):
    *both, _ = zip(*TWO_THINGS, strict=True)
    captions = [*both[0], "a cat and a small owl, masterpiece, high quality"]
    others = ["a cat", "", "a knife and fork and an owl", "a knife and fork", "a cat and an owl"]
    pair, whole, bad = ([0, 1, 0, scenes.NONE, scenes.NONE, 3, *rest] for rest in ((5, 0), (0, 0), (5, 1)))
    drawn = [pair] * 7 + [whole, bad]
    slots = unet.whose_slots(encoder.tokenizer, captions + others, drawn)
    ids = encoder.tokenize(captions + others)
    row, slot, whose, _ = words.apart(*(encoder.tokenize(list(side)) for side in both)).unbind(1)
    taught = torch.zeros(3, 2, 77, dtype=torch.bool)
    taught[row, whose, slot] = True
    said = ["a cat", "a cup of tea", "an image of a bear"]
    for i, (its_slots, wanted) in enumerate(zip(slots[:3], taught, strict=True)):
        end = int(text.first_end(ids)[i])
        assert torch.equal(its_slots[1], wanted[1]) and torch.equal(its_slots[0, end:], wanted[0, end:])
        assert encoder.tokenizer.decode(ids[i, :end][its_slots[0, :end]]) == said[i]
    end = int(text.first_end(ids)[3])
    assert encoder.tokenizer.decode(ids[3, :end][slots[3, 1, :end]]) == "owl , masterpiece , high quality"
    assert not slots[4:].any()


def test_attention_costs_what_goes_to_the_wrong_one_of_two_things():
    slots = torch.zeros(1, 2, 77, dtype=torch.bool)
    slots[0, 0, 1:3] = slots[0, 1, 4:6] = True
    q, k = torch.zeros(1, 2, 16, 3), torch.zeros(1, 2, 77, 3)
    assert_close(unet.strayed(q, k, slots), torch.tensor(0.5).log().neg())  # no preference
    k[..., 1:3, 0] = k[..., 4:6, 1] = 1.0
    for i, place in enumerate(q[0].unflatten(1, (4, 4)).permute(2, 0, 1, 3)):  # column by column
        place[..., 0 if i < 2 else 1] = 3.0**0.5 * torch.tensor(9.0).log()  # nine times as much to its own
    assert_close(unet.strayed(q, k, slots), torch.tensor(0.9).log().neg())
    assert_close(unet.strayed(q, k, slots.flip(1)), torch.tensor(0.1).log().neg())
    q[:, 1] = 0.0  # the second head has no preference: all heads together count
    first, second = 18 / 93 + 2 / 77, 2 / 93 + 2 / 77
    assert_close(unet.strayed(q, k, slots), torch.tensor(first / (first + second)).log().neg())
    with torch.autocast("cpu", torch.bfloat16):
        low = unet.strayed(q.bfloat16(), k.bfloat16(), slots)
    assert low.dtype == torch.float32
    assert_close(low, unet.strayed(q, k, slots), atol=0.01, rtol=0)
    q[:, 1] = q[:, 0]
    k[..., 7, :] = 9.0  # what attends to neither is left open
    assert_close(unet.strayed(q, k, slots), torch.tensor(0.9).log().neg(), atol=1e-4, rtol=0)


def test_layers_are_watched_where_there_are_two_things_and_go_on_as_ever():
    network = randomise(UNetModel(unet.TINY))
    x, t, context = normal(3, 4, 16, 16), torch.tensor([1, 500, 900]), normal(3, 77, unet.TINY.context_dim, seed=1)
    slots = torch.zeros(3, 2, 77, dtype=torch.bool)
    before = network(x, t, context)
    with unet.watched(network, slots) as costs:
        assert_close(network(x, t, context), before)
    assert not costs
    slots[1, 0, ::2] = slots[1, 1, 1::2] = True
    with unet.watched(network, slots) as costs:
        assert_close(network(x, t, context), before)
    assert len(costs) == sum(name.endswith("attn2") for name, _ in network.named_modules())
    layer, told = network.middle_block[1].transformer_blocks[0].attn2, []
    layer.register_forward_hook(lambda _, inputs, __: told.extend(inputs))
    network(x, t, context)
    q, k = (
        linear(states).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for linear, states in ((layer.to_q, told[0]), (layer.to_k, told[1]))
    )
    own = unet.strayed(q[1:2], k[1:2], slots[1:2]) / 3  # of three captions one
    assert any(torch.isclose(cost, own, atol=1e-6) for cost in costs)
    torch.stack(costs).sum().backward()
    asked = [
        p.grad for name, p in network.named_parameters() if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight"))
    ]
    assert len(asked) == 2 * len(costs) and all(gradient.any() for gradient in asked)
    with pytest.raises(ZeroDivisionError), unet.watched(network, slots):
        assert 1 / 0
    assert not any("attend" in vars(module) for module in network.modules())


def test_a_trained_run_is_put_together_with_its_own_scale_factor(painter, monkeypatch):
    monkeypatch.setattr(scenes, "Painter", lambda size: painter)
    monkeypatch.setattr(unet, "CHUNK", 64)
    pool, weights = unet.Pool(loop.Run("r"), 64), UNetModel(unet.TINY).state_dict()
    loop.Run("r").save(average=weights)
    model = unet.trained("r")
    assert model.config.scale_factor == pool.scale_factor
    assert all(torch.equal(weights[name], w) for name, w in model.model.diffusion_model.state_dict().items())


def test_the_model_card_says_what_was_measured():
    card = (bundle.ASSETS / "tiny" / "README.md").read_text()
    assert bundle.TRIED in card
    for folder in ("tiny", "tiny-256"):
        stored = json.loads((bundle.ASSETS / folder / "metrics.json").read_text())
        assert "\n".join(f"| {name} | {value} |" for name, value in stored.items()) in card


def test_the_card_is_written_from_figures_and_runs(small_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(small_folder, folder)
    figures = {"vae_psnr_db": 30.0, "recognition_seen": 0.98, "synonyms": 0.375, "subjects": 500}
    (folder / "metrics.json").write_text(json.dumps(figures))
    for steps in (5, 5, 8):  # the second time there is nothing new
        loop.Run("unet").save(step=steps, batch=3)
        bundle.add_runs(folder, ["text", "unet"])  # there is no run text
    bundle.write_card(folder)
    card = (folder / "README.md").read_text()
    assert "| 1 | unet | 5 | 3 |\n| 2 | unet | 8 | 3 |" in card
    assert "synonyms (62.5%)" in card and "| synonyms | 0.375 |" in card
    assert all(name in card for name in (*COLOURS, f"{len(data.subjects())} things"))
    assert "{" not in card


def test_the_miniature_in_assets_is_the_one_the_training_builds():
    config = bundle.StableDiffusion.from_pretrained("tiny").model.config
    assert (config.text, config.unet, config.vae) == (text.TINY, unet.TINY, vae.TINY)
    assert config.defaults == unet.assemble(1.0).config.defaults
    assert load_model("tiny-256").config.defaults == unet.assemble(1.0, 256).config.defaults
    assert UNetModel(unet.TINY).config.context_dim == text.TINY.hidden_size


# --- what is painted, asked and averaged ---


def test_things_are_painted_in_their_own_style_and_tint(monkeypatch):
    def renderings(codes, size):  # a grey level for each style and subject
        levels = 40 * torch.arange(4)[:, None] + 10 * (torch.arange(len(codes)) % 4) + 50
        pictures = levels[:, :, None, None, None].expand(-1, -1, 4, size, size).clone()
        pictures[:, :, 3] = 255
        return pictures.byte()

    monkeypatch.setattr(drawings, "renderings", renderings)
    painter, none = scenes.Painter(), scenes.NONE

    def level(row, x):
        return ((painter.paint(row, random.Random(0))[:, 64, x] + 1) * 127.5).round().tolist()

    assert level([2, none, 3, none, none, 0, scenes.WHOLE, 0], 64) == [190] * 3
    pair = [1, 2, 1, none, RED, 0, scenes.PAIR, 0]
    assert level(pair, 32) == [100] * 3
    red = level(pair, 96)
    assert red[0] > red[1] + 50 and red[0] > red[2] + 50
    pair[scenes.OTHER_TINT] = none
    assert level(pair, 96) == [110] * 3


def test_no_two_of_what_cannot_be_counted_and_no_pixel_art_at_half_the_size():
    pixel = drawings.STYLES.index("pixel")
    rows = [
        scene("cat", layout=scenes.TWO, background=RED),
        scene("grapes", layout=scenes.TWO, background=RED),
        scene("grapes", layout=scenes.SMALL, background=RED),
        scene("cat", style=pixel, background=RED),
        scene("cat", style=pixel, layout=scenes.SMALL, background=RED),
    ]
    assert scenes.allowed(torch.tensor(rows)).tolist() == [True, False, True, True, False]


def test_renderings_are_in_the_order_of_styles(monkeypatch):
    flat = torch.zeros(1, 4, 128, 128, dtype=torch.uint8)
    flat[0, :, 33:97, 33:97] = torch.tensor([200, 30, 30, 255], dtype=torch.uint8)[:, None, None]

    def load_flat(codes, size):
        return F.interpolate(flat.float(), (size, size)).byte()

    (loop.runs_folder() / "data").mkdir()
    monkeypatch.setattr(drawings, "load_flat", load_flat)
    monkeypatch.setattr(data, "load_rgba", lambda codes, size: 255 - load_flat(codes, size))
    made = dict(zip(drawings.STYLES, drawings.renderings(["x"], 128), strict=True))
    lines = drawings.line_drawing(load_flat(["x"], 512))
    wanted = {"3d": 255 - flat, "flat": flat, "pixel": drawings.pixel_art(flat), "line": lines}
    assert all(torch.equal(made[style], wanted[style]) for style in drawings.STYLES)


def test_own_pictures_keep_their_texts_mirrored_too_in_scaled_latents(monkeypatch, tmp_path):
    pairs = [(tmp_path / f"{i}.png", f"a thing {i}") for i in range(4)]
    for i, (path, _) in enumerate(pairs):
        Image.new("RGB", (16, 16), (60 * i, 0, 0)).save(path)
    monkeypatch.setattr(data, "read_folder", lambda folder: pairs)
    model = SimpleNamespace(
        config=SimpleNamespace(defaults=SimpleNamespace(image_size=16), scale_factor=0.5),
        first_stage_model=SimpleNamespace(encode=lambda batch: SimpleNamespace(mode=lambda: batch)),
    )
    latents, texts = unet.Pictures(tmp_path, model).draw(200, torch.Generator().manual_seed(0))
    shade = ((2 * latents[:, 0, 0, 0] + 1) * 127.5 / 60).round().int().tolist()
    assert all(said in ("", f"a thing {i}") for i, said in zip(shade, texts, strict=True))
    assert set(shade) == {0, 1, 2, 3} and 0 < texts.count("") < 50


def test_what_counts_as_held_out_was_held_out_and_synonyms_are_said(monkeypatch):
    asked = []

    def recognition(model, prompts, subjects, colours, seed):
        asked.append((prompts, subjects, colours))
        return (torch.ones(len(prompts), dtype=torch.bool),) * 2 + (None,)

    monkeypatch.setattr(metrics, "recognition", recognition)
    monkeypatch.setattr(metrics, "drawn", lambda model, prompts, seed: torch.zeros(len(prompts), 3, 32, 32))
    metrics.hits(None, 12, 0)
    for held_out, (_, subjects, colours) in zip((False, True), asked, strict=False):
        assert all(data.subjects()[s].is_held_out(c) == held_out for s, c in zip(subjects, colours, strict=True))
    prompts, subjects, _ = asked[2]
    for said, subject in zip(prompts, subjects, strict=True):
        assert any(f" {word} on " in f" {said}" for word in data.subjects()[subject].synonyms)


def test_the_average_is_of_the_weights_and_gradients_are_clipped():
    model, seen, norms = nn.Linear(3, 1, bias=False), [], []
    wanted = model.weight.detach().clone()
    hook = register_optimizer_step_pre_hook(lambda *_: norms.append(model.weight.grad.norm().item()))

    def evaluate(average, step):
        seen.append((model.weight.detach().clone(), average.weight.clone()))
        return {}

    def loss_at(generator):
        return 100 * model(torch.randn(4, 3, generator=generator)).square().mean()

    loop.train(loop.Run("r"), model, loss_at, evaluate, options(8, every=1), average_decay=0.3)
    hook.remove()
    for step, (weights, average) in enumerate(seen):
        wanted = wanted.lerp(weights, 1 - min(0.3, (1 + step) / (10 + step)))
        assert_close(average, wanted)
    assert max(norms) == pytest.approx(1, abs=1e-4)


def test_words_kept_for_the_metrics_are_not_in_the_lexicon(monkeypatch):
    (loop.runs_folder() / "data").mkdir()
    kept = [word for subject in data.subjects() for word in subject.synonyms]
    others = [f"{word}s" for word in kept] + [f"big {word}" for word in kept if len(word) > 3 and " " not in word]
    monkeypatch.setattr(dictionary, "things", lambda: [*kept, *others, "zzyzx"])
    monkeypatch.setattr(text, "meanings", lambda words: torch.zeros(len(words), 1))
    monkeypatch.setattr(text, "nearness", lambda vectors: torch.zeros(len(vectors), 1))
    names = [name for subject in data.subjects() for name in subject.names]
    assert text.lexicon()[0] == [*names, "zzyzx"]


def test_crops_are_never_of_the_pictures_kept_for_the_metric(monkeypatch):
    codes, asked = tuple(f"{i:03d}" for i in range(100)), []
    monkeypatch.setattr(data, "base_codes", lambda: codes)
    monkeypatch.setattr(data, "subjects", lambda: [SimpleNamespace(code="012")])
    monkeypatch.setattr(drawings, "renderings", lambda c, _: asked.extend(c) or torch.zeros(4, len(c), 4, 8, 8))
    monkeypatch.setattr(data, "load_rgba", lambda c, _: asked.extend(c) or torch.zeros(len(c), 4, 8, 8))
    vae.Crops(8)
    assert data.kept_from_vae() == ("037", "062", "087")
    assert set(asked) == set(codes) - {"037", "062", "087"}


def test_a_reconstruction_costs_its_error_its_square_and_half_of_its_edges():
    x, y = torch.zeros(2, 1, 3, 2, 3)
    y[..., 1] = 0.5
    assert vae.reconstruction(y, x).item() == pytest.approx(0.5 / 3 + 0.25 / 3 + 0.5 * 0.5)
