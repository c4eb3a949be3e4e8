"""The code that made assets/tiny: data, the loop that resumes exactly, the yardsticks."""

import argparse
from itertools import pairwise

import pytest
import torch
from PIL import Image
from torch import nn

from sd_teach.training import bundle, data, loop, metrics, text, unet, vae
from sd_teach.unet import UNetModel
from sd_teach.vae import AutoencoderKL

COLOURS = list(data.COLOURS)


@pytest.fixture(autouse=True)
def runs_in_a_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SD_TEACH_RUNS", str(tmp_path))


def shown(name: str) -> torch.Tensor:
    """One of the pictures of assets/emoji/shown, uint8 [1, 4, 128, 128]."""
    (subject,) = (s for s in data.subjects() if s.name == name)
    return data.load_rgba([subject.code], 128, data.EMOJI / "shown")


# --- data ---


def test_there_are_200_subjects_or_more_with_names_of_their_own():
    names = [name for subject in data.subjects() for name in subject.names]
    assert len(data.subjects()) >= 200
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


def test_placements_stay_inside_the_picture():
    rgba = shown("cat")
    plain, mirrored, moved, moved_mirrored = unet.placements(rgba)
    assert torch.equal(mirrored, rgba.flip(-1)) and torch.equal(plain, rgba)
    assert torch.equal(moved_mirrored, moved.flip(-1))
    covered = [view[:, 3].float().mean() / 255 for view in (plain, moved)]
    assert covered[1] / covered[0] == pytest.approx(0.94**2, abs=0.02)


def test_training_batches_never_hold_a_held_out_pair():
    subjects, colours = len(data.subjects()), len(COLOURS)
    marked = torch.arange(subjects)[:, None] + torch.arange(colours) / 16
    latents = marked.view(subjects, colours, 1, 1, 1, 1).expand(-1, -1, 4, 4, 1, 1)
    x0, captions = unet.Batches(latents).draw(2000, torch.Generator().manual_seed(0))
    pairs = [(data.subjects()[int(v)], round((v % 1).item() * 16)) for v in x0[:, 0, 0, 0]]
    assert not any(subject.is_held_out(colour) for subject, colour in pairs)
    assert captions.count("") / len(captions) == pytest.approx(unet.EMPTY, abs=0.02)
    for (subject, colour), caption in zip(pairs, captions, strict=True):
        assert caption == "" or any(name in caption for name in subject.names)
        assert "background" not in caption or COLOURS[colour] in caption


# --- the loop ---


def options(steps: int, **changed) -> argparse.Namespace:
    known = {"run": "r", "steps": steps, "batch": 4, "lr": 1e-2, "every": 2, "device": "cpu", "precision": "fp32"}
    return argparse.Namespace(**(known | changed))


def trained(run: str, *lengths: int) -> nn.Module:
    """A small regression, trained to each of the lengths in turn, resuming in between; the schedule is the last's."""
    for length in lengths:
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))

        def loss_at(generator, model=model):
            x = torch.randn(4, 3, generator=generator)
            return (model(x) - x.sum(1, keepdim=True)).square().mean()

        stop = Stop(length) if length != lengths[-1] else lambda average, step: {}
        try:
            average = loop.train(loop.Run(run), model, loss_at, stop, options(lengths[-1]))
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


def test_a_run_that_was_broken_off_resumes_exactly():
    unbroken, resumed = trained("whole", 8), trained("parts", 4, 8)
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert loop.Run("parts").settings() == {"step": 8, "batch": 4}


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


def test_the_vae_learns_the_variance_of_the_noise_it_was_trained_with():
    torch.manual_seed(0)
    network = AutoencoderKL(vae.TINY)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    vae.loss(network, x, generator).backward()
    step = network.quant_conv.bias.grad
    assert (step[4:] > 0).all()  # untrained log variances, near 0, are pushed down towards -6
    assert step[:4].abs().sum() > 0


# --- the yardsticks ---


def test_psnr_is_minus_ten_log_of_the_mean_squared_error_after_clamping():
    a = torch.zeros(2, 3, 8, 8)
    b = torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 9.0)])
    assert torch.allclose(metrics.psnr(a, b), -10 * torch.tensor([0.01, 0.25]).log10())


@pytest.mark.parametrize("name", data.SHOWN)
def test_a_real_picture_is_recognised_mirrored_and_shifted(name):
    wanted = next(s.index for s in data.subjects() if s.name == name)
    colour = COLOURS.index("turquoise")
    views = torch.cat([shown(name), shown(name).flip(-1), shown(name).roll((6, -6), dims=(2, 3))])
    pictures = data.on_background(views, metrics.COLOURS[colour].view(1, 3, 1, 1))
    assert metrics.nearest_subject(pictures, colour).tolist() == [wanted] * 3
    assert metrics.nearest_colour(pictures).tolist() == [colour] * 3


def test_the_wrong_picture_is_not_taken_for_the_right_one():
    cat = next(s.index for s in data.subjects() if s.name == "cat")
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


def test_the_kept_pictures_are_there():
    assert metrics.kept_pictures(32).shape == (50, 3, 32, 32)


# --- the parts fit together ---


def test_captions_and_pictures_of_a_contrastive_batch_belong_together(monkeypatch):
    sheet = metrics.subject_sheet()
    monkeypatch.setattr(data, "load_rgba", lambda codes, size: sheet)
    pairs = text.Pairs()
    captions, subjects, colours, named = pairs.draw(300, torch.Generator().manual_seed(0))
    assert not any(data.subjects()[s].is_held_out(int(c)) for s, c in zip(subjects, colours, strict=True))
    for caption, s, c, with_colour in zip(captions, subjects, colours, named, strict=True):
        assert any(name in caption for name in data.subjects()[s].names)
        assert (f"{COLOURS[c]} background" in caption) == bool(with_colour)


def test_the_model_card_says_what_was_measured(tmp_path):
    card = (bundle.ASSETS / "tiny" / "README.md").read_text()
    stored = bundle.json.loads((bundle.ASSETS / "tiny" / "metrics.json").read_text())
    for name, value in stored.items():
        assert f"| {name} | {value} |" in card


def test_the_miniature_in_assets_is_the_one_the_training_builds():
    config = bundle.StableDiffusion.from_pretrained("tiny").model.config
    assert (config.text, config.unet, config.vae) == (text.TINY, unet.TINY, vae.TINY)
    assert UNetModel(unet.TINY).config.context_dim == text.TINY.hidden_size
