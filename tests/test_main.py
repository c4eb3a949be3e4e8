"""The command line: pictures where they were asked for, or one clear line."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd_teach import samplers
from sd_teach.__main__ import SAMPLERS, main
from sd_teach.pipeline import StableDiffusion

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cli(small_folder, tmp_path, monkeypatch, capsys):
    """Run the command line with the small model in an empty folder -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    # main() replaces it for good, which a process of its own may
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(["--model", str(small_folder), "--device", "cpu", *arguments])
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


def command(*arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *flags, "-m", "sd_teach", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


# in a process of its own


def test_the_command_writes_its_pictures_and_prints_their_paths(small_folder, sd, tmp_path):
    out = tmp_path / "cat.png"
    options = ["--model", str(small_folder), "--seed", "7", "--n", "2", "--steps", "3", "--device", "cpu"]
    made = command("a cat", *options, "--out", str(out))
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines() == [str(out), str(tmp_path / "cat-1.png")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat-1.png", "cat.png"]
    expected = sd.text_to_image("a cat", seed=7, num_images=2, steps=3).images
    for path, image in zip(made.stdout.splitlines(), expected, strict=True):
        assert abs(pixels(path) - np.asarray(image).astype(int)).max() <= 1


def test_a_bad_option_ends_the_command_with_one_line_and_code_2(tmp_path):
    made = command("a cat", "--n", "0", "--out", str(tmp_path / "cat.png"))
    assert (made.returncode, made.stdout) == (2, "")
    assert made.stderr == "sd-teach: --n must be at least 1, got 0 (--help lists the options)\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["--steps", "x", "a cat"], ["a cat", "--out", "cat.gif"]])
def test_help_and_wrong_options_answer_without_the_heavy_imports(arguments):
    made = command(*arguments, flags=("-X", "importtime"))
    imported = {line.split("|")[-1].strip().split(".")[0] for line in made.stderr.splitlines() if "|" in line}
    assert "sd_teach" in imported
    assert not imported & {"torch", "transformers", "numpy", "PIL", "tqdm"}


def test_help_names_every_option():
    made = command("--help")
    assert made.returncode == 0 and made.stderr == ""
    options = "negative scale until steps sampler eta seed n width height init-image strength mask paste-back"
    options += " model device dtype from-png out"
    assert all(f"  --{option} " in made.stdout for option in options.split())


# in this process


def test_the_default_output_is_out_png_in_the_current_folder(cli, tmp_path):
    code, stdout, _ = cli("a cat")
    assert (code, stdout) == (0, "out.png\n")
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_several_images_are_numbered_in_the_order_of_their_seeds(cli, sd):
    code, stdout, _ = cli("a cat", "--n", "3", "--seed", "40", "--out", "x.png")
    assert (code, stdout) == (0, "x.png\nx-1.png\nx-2.png\n")
    for k, path in enumerate(stdout.split()):
        assert Image.open(path).text["seed"] == str(40 + k)
        alone = sd.text_to_image("a cat", seed=40 + k).images[0]
        assert abs(pixels(path) - np.asarray(alone).astype(int)).max() <= 1


def test_the_picture_carries_everything_that_made_it(cli, small_folder):
    options = ["--negative", "ein Hund, häßlich", "--seed", "3", "--steps", "2", "--scale", "4.5", "--eta", "0.5"]
    options += ["--until", "300"]
    code, _, _ = cli("eine Kätze 🐈", *options, "--width", "48", "--height", "32")
    assert code == 0
    assert Image.open("out.png").text == {
        "prompt": "eine Kätze 🐈",
        "negative_prompt": "ein Hund, häßlich",
        "seed": "3",
        "steps": "2",
        "guidance_scale": "4.5",
        "guidance_until": "300",
        "width": "48",
        "height": "32",
        "eta": "0.5",
        "sampler": "ddim",
        "dtype": "fp32",
        "model": str(small_folder),
        "model_sha256": (small_folder / "SHA256SUMS").read_text().split()[0],
    }


def test_every_option_reaches_the_pipeline(cli, sd):
    options = ["--negative", "a dog", "--seed", "3", "--steps", "2", "--scale", "4.5", "--eta", "0.5", "--until", "600"]
    cli("a cat", *options, "--width", "48", "--height", "32")
    expected = sd.text_to_image(
        "a cat", "a dog", seed=3, steps=2, guidance_scale=4.5, guidance_until=600, eta=0.5, width=48, height=32
    ).images[0]
    assert Image.open("out.png").size == (48, 32)
    assert (pixels("out.png") == np.asarray(expected)).all()


def test_the_models_defaults_are_used_and_written_down(cli, sd):
    cli("a cat", "--seed", "3")
    assert (pixels("out.png") == np.asarray(sd.text_to_image("a cat", seed=3).images[0])).all()
    text = Image.open("out.png").text
    written = [text[key] for key in ("steps", "guidance_scale", "guidance_until", "width", "height", "eta")]
    assert written == ["5", "3.0", "0", "64", "64", "0.0"]


@pytest.fixture
def saying(small_folder, tmp_path):
    """saying(eta=1.0): the small model in a folder that says so."""

    def say(**defaults):
        folder = shutil.copytree(small_folder, tmp_path / "saying")
        config = json.loads((folder / "config.json").read_text())
        config["defaults"] |= defaults
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return say


def test_a_model_says_until_when_it_is_guided_unless_the_option_does(cli, saying):
    ending = saying(guidance_until=500)
    for name, options in {"usual": [], "told": ["--until", "500"], "through": ["--until", "0"]}.items():
        assert cli("a cat", "--model", ending, *options, "--out", f"{name}.png")[0] == 0
    told = {name: Image.open(f"{name}.png").text["guidance_until"] for name in ("usual", "told", "through")}
    assert told == {"usual": "500", "told": "500", "through": "0"}
    assert (pixels("usual.png") == pixels("told.png")).all()
    assert (pixels("usual.png") != pixels("through.png")).any()


def test_a_model_says_how_much_fresh_noise_it_adds_unless_the_option_does(cli, saying):
    noisy = saying(eta=1.0)
    given = {"usual": [], "told": ["--eta", "1"], "still": ["--eta", "0"], "euler": ["--sampler", "euler"]}
    for name, options in given.items():
        assert cli("a cat", "--model", noisy, *options, "--out", f"{name}.png")[0] == 0
    told = {name: Image.open(f"{name}.png").text["eta"] for name in given}
    assert told == {"usual": "1.0", "told": "1.0", "still": "0.0", "euler": "0.0"}
    assert (pixels("usual.png") == pixels("told.png")).all()
    assert (pixels("usual.png") != pixels("still.png")).any()
    # a picture made again by another sampler has that one's noise
    again = ["--model", noisy, "--out", "again.png"]
    for name, sampler, same in (("usual", "euler", "euler"), ("euler", "ddim", "usual"), ("still", "ddim", "still")):
        assert cli("--from-png", f"{name}.png", "--sampler", sampler, *again)[0] == 0
        assert (pixels("again.png") == pixels(f"{same}.png")).all()
    assert cli("--from-png", "usual.png", "--sampler", "euler", "--eta", "1", *again)[0] == 2


def test_the_larger_miniature_draws_256_pixels(cli):
    assert cli("a cat", "--model", "tiny-256", "--steps", "2")[0] == 0
    assert Image.open("out.png").size == (256, 256)
    assert Image.open("out.png").text["model"] == "tiny-256"


@pytest.mark.parametrize(("option", "value"), [("--scale", "0"), ("--seed", "0"), ("--eta", "0")])
def test_zero_is_a_value_and_not_the_default(cli, option, value):
    assert cli("a cat", option, value)[0] == 0
    key = {"--scale": "guidance_scale"}.get(option, option.strip("-"))
    assert float(Image.open("out.png").text[key]) == 0


def test_the_same_command_gives_the_same_file(cli):
    cli("a cat", "--out", "one.png")
    cli("a cat", "--out", "two.png")
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()


def test_a_random_seed_is_printed_and_gives_the_picture_again(cli):
    code, stdout, stderr = cli("a cat", "--seed", "-1", "--out", "one.png")
    assert (code, stdout) == (0, "one.png\n")
    (seed,) = [line.removeprefix("seed ") for line in stderr.splitlines() if line.startswith("seed ")]
    assert Image.open("one.png").text["seed"] == seed
    cli("a cat", "--seed", seed, "--out", "two.png")
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()


def test_random_seeds_differ(cli):
    assert cli("a cat", "--seed", "-1")[2].splitlines()[0] != cli("a cat", "--seed", "-1")[2].splitlines()[0]


def test_progress_goes_to_stderr_and_counts_the_steps(cli):
    _, stdout, stderr = cli("a cat", "--steps", "4")
    assert stdout == "out.png\n"
    assert "denoising on cpu in fp32" in stderr and "4/4" in stderr


def test_an_older_picture_is_replaced(cli, tmp_path):
    Path("out.png").write_text("old")
    assert cli("a cat")[0] == 0
    assert Image.open("out.png").size == (64, 64)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_an_empty_prompt_draws_a_picture(cli):
    assert cli("")[:2] == (0, "out.png\n")


def test_from_png_repeats_the_run_a_picture_was_made_with(cli):
    options = ["--negative", "a dog", "--scale", "2.5", "--steps", "4", "--seed", "9", "--eta", "0.5", "--width", "80"]
    cli("a cat", *options, "--until", "400", "--out", "cat.png")
    code, out, error = cli("--from-png", "cat.png", "--out", "again.png")
    assert (code, out) == (0, "again.png\n"), error
    assert Path("again.png").read_bytes() == Path("cat.png").read_bytes()


def test_from_png_lets_other_options_change_the_run(cli):
    cli("a cat", "--seed", "9", "--steps", "2", "--out", "cat.png")
    cli("--from-png", "cat.png", "a dog", "--seed", "8", "--out", "changed.png")
    cli("a dog", "--seed", "8", "--steps", "2", "--out", "plain.png")
    assert Path("changed.png").read_bytes() == Path("plain.png").read_bytes()


def test_the_second_picture_of_a_run_is_repeated_alone(cli):
    cli("a cat", "--n", "2", "--steps", "2", "--out", "cat.png")
    cli("--from-png", "cat-1.png", "--out", "again.png")
    assert abs(pixels("again.png") - pixels("cat-1.png")).max() <= 1


def test_from_png_refuses_what_does_not_tell_how_it_was_made(cli):
    Image.new("RGB", (8, 8)).save("plain.png")
    Path("text.png").write_text("no picture")
    for name, told in (
        ("plain.png", "does not tell how it was made"),
        ("text.png", "cannot read text.png as a picture"),
        ("missing.png", "No such file"),
    ):
        code, out, error = cli("--from-png", name)
        assert (code, out) == (2, "") and told in error and error.count("\n") == 1


def test_the_samplers_offered_are_those_there_are():
    assert tuple(samplers.SAMPLERS) == SAMPLERS


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_sampler_reaches_the_pipeline(cli, sd, sampler):
    cli("a cat", "--sampler", sampler, "--seed", "3")
    assert (pixels("out.png") == np.asarray(sd.text_to_image("a cat", seed=3, sampler=sampler).images[0])).all()
    assert Image.open("out.png").text["sampler"] == sampler


@pytest.fixture
def photo(tmp_path_factory) -> dict[str, str]:
    """A picture and masks for it, outside the folder the command runs in."""
    folder = tmp_path_factory.mktemp("photo")
    levels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(levels).resize((90, 60), Image.Resampling.BICUBIC)
    mask, black = Image.new("L", image.size), Image.new("L", image.size)
    mask.paste(255, (30, 20, 60, 40))
    images = {"photo": image, "mask": mask, "black": black, "small": mask.resize((45, 30))}
    for name, each in images.items():
        each.save(folder / f"{name}.png")
    (folder / "text.png").write_text("not a picture")
    return {name: str(folder / f"{name}.png") for name in (*images, "text")}


def test_a_picture_is_drawn_over(cli, sd, photo):
    code, stdout, stderr = cli("a cat", "--init-image", photo["photo"], "--strength", "0.6", "--seed", "3", "--n", "2")
    assert (code, stdout) == (0, "out.png\nout-1.png\n") and "3/3" in stderr
    expected = sd.image_to_image(Image.open(photo["photo"]), "a cat", strength=0.6, seed=3, num_images=2).images
    for path, image in zip(stdout.split(), expected, strict=True):
        assert (pixels(path) == np.asarray(image)).all()
    text = Image.open("out-1.png").text
    assert (text["init_image"], text["strength"], text["seed"]) == (photo["photo"], "0.6", "4")
    assert "mask" not in text


@pytest.mark.parametrize("paste_back", [False, True])
def test_a_part_of_a_picture_is_drawn_anew(cli, sd, photo, paste_back):
    options = ["--init-image", photo["photo"], "--mask", photo["mask"], "--seed", "3", "--steps", "4"]
    code, _, stderr = cli("a cat", *options, *["--paste-back"] * paste_back)
    assert code == 0 and "4/4" in stderr
    images = Image.open(photo["photo"]), Image.open(photo["mask"])
    expected = sd.inpaint(*images, "a cat", seed=3, steps=4, paste_back=paste_back).images[0]
    assert (pixels("out.png") == np.asarray(expected)).all()
    text = Image.open("out.png").text
    assert (text["mask"], text["strength"], text.get("paste_back")) == (
        photo["mask"],
        "1.0",
        (paste_back and "True") or None,
    )


def test_the_strengths_used_and_written_down_without_an_option_are_the_pipelines(cli, sd, photo):
    cli("a cat", "--init-image", photo["photo"])
    assert Image.open("out.png").text["strength"] == "0.75"
    assert (
        pixels("out.png") == np.asarray(sd.image_to_image(Image.open(photo["photo"]), "a cat", seed=12345).images[0])
    ).all()


@pytest.mark.parametrize("options", [[], ["--mask", "mask"], ["--mask", "mask", "--paste-back"]])
def test_from_png_repeats_a_run_that_began_with_a_picture(cli, photo, options):
    options = [photo.get(option, option) for option in options]
    cli(
        "a cat", "--init-image", photo["photo"], *options, "--sampler", "euler", "--strength", "0.8", "--out", "one.png"
    )
    code, stdout, stderr = cli("--from-png", "one.png", "--out", "two.png")
    assert (code, stdout) == (0, "two.png\n"), stderr
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()


def test_from_png_tells_when_the_model_has_other_weights_than_it_had(cli):
    cli("a cat", "--steps", "2", "--out", "cat.png")
    picture, info = Image.open("cat.png"), PngInfo()
    for name, value in {**picture.text, "model_sha256": "of an older tiny"}.items():
        info.add_itxt(name, value)
    picture.save("old.png", pnginfo=info)
    told = "warning: old.png was made with other weights than "
    assert told in cli("--from-png", "old.png", "--out", "again.png")[2]
    assert "warning" not in cli("--from-png", "old.png", "--model", "tiny", "--out", "other.png")[2]
    assert "warning" not in cli("--from-png", "cat.png", "--out", "again.png")[2]


@pytest.mark.parametrize("key", ["sampler", "guidance_until"])
def test_from_png_still_reads_pictures_made_before_these_were_told(cli, saying, key):
    ending = saying(guidance_until=500)
    cli("a cat", "--model", ending, "--steps", "3", "--until", "0", "--out", "new.png")
    image = Image.open("new.png")
    info = PngInfo()
    for name, value in image.text.items():
        if name != key:
            info.add_itxt(name, value)
    image.save("old.png", pnginfo=info)
    assert cli("--from-png", "old.png", "--model", ending, "--out", "again.png")[0] == 0
    assert Path("again.png").read_bytes() == Path("new.png").read_bytes()


BAD_PICTURES = {
    "a strength without a picture": (["--strength", "0"], "--strength needs --init-image"),
    "a mask without a picture": (["--mask", "mask"], "--mask needs --init-image"),
    "paste-back without a mask": (["--init-image", "photo", "--paste-back"], "--paste-back needs --mask"),
    "a picture that is missing": (
        ["--init-image", "nowhere.png"],
        "cannot read nowhere.png as a picture: No such file",
    ),
    "a picture that is text": (["--init-image", "text"], "cannot identify image file"),
    "a picture that is a folder": (["--init-image", "."], "cannot read . as a picture"),
    "a mask that is missing": (["--init-image", "photo", "--mask", "nowhere.png"], "cannot read nowhere.png"),
    "a mask of another size": (["--init-image", "photo", "--mask", "small"], "of one size, got 45 x 30 and 90 x 60"),
    "a black mask": (["--init-image", "photo", "--mask", "black"], "no white"),
    "strength 0": (["--init-image", "photo", "--strength", "0"], "leaves none of 5 steps"),
    "strength 2": (["--init-image", "photo", "--strength", "2"], "strength must lie between 0 and 1, got 2.0"),
    "strength infinite": (["--init-image", "photo", "--strength", "inf"], "got inf"),
    "strength nan": (["--init-image", "photo", "--strength", "nan"], "got nan"),
    "a sampler there is none of": (["--sampler", "heun"], "heun"),
    "eta for another sampler": (["--sampler", "euler", "--eta", "0.5"], "eta is DDIM's"),
}


@pytest.mark.parametrize(("arguments", "told"), BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_bad_pictures_give_one_line_that_names_them_and_leave_nothing(cli, photo, tmp_path, arguments, told):
    assert_one_line(cli("a cat", *(photo.get(argument, argument) for argument in arguments)), told)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--init-image", "--mask"])
def test_a_picture_that_a_run_begins_with_is_not_overwritten(cli, photo, option):
    own = photo["photo" if option == "--init-image" else "mask"]
    before = Path(own).read_bytes()
    for out in (own, str(Path(own).parent / ".." / Path(own).parent.name / Path(own).name)):
        answer = cli("a cat", "--init-image", photo["photo"], "--mask", photo["mask"], "--out", out)
        assert_one_line(answer, f"{option} and would be overwritten: give another --out")
    assert Path(own).read_bytes() == before


def test_nor_is_it_as_the_second_output(cli, photo):
    shutil.copy(photo["photo"], "x-1.png")
    before = Path("x-1.png").read_bytes()
    answer = cli("a cat", "--init-image", "x-1.png", "--n", "2", "--steps", "2", "--out", "x.png")
    assert_one_line(answer, "--init-image and would be overwritten: give another --out")
    assert Path("x-1.png").read_bytes() == before


@pytest.mark.parametrize(
    ("dtype", "told"), [("fp16", "does not compute in float16"), ("fp8", "there is no dtype 'fp8'")]
)
def test_from_png_takes_the_dtype_that_a_picture_tells(cli, dtype, told):
    cli("a cat", "--steps", "2", "--out", "cat.png")
    picture, info = Image.open("cat.png"), PngInfo()
    for name, value in {**picture.text, "dtype": dtype}.items():
        info.add_itxt(name, value)
    picture.save("half.png", pnginfo=info)
    assert_one_line(cli("--from-png", "half.png", "--out", "again.png"), told)


def test_an_error_on_the_way_has_a_line_of_its_own(cli, monkeypatch):
    draw = StableDiffusion.text_to_image

    def stopping(self, *arguments, callback, **settings):
        def once(state):
            callback(state)
            raise ValueError("the latents grew")

        return draw(self, *arguments, callback=once, **settings)

    monkeypatch.setattr(StableDiffusion, "text_to_image", stopping)
    code, _, stderr = cli("a cat")
    assert code == 2 and "1/" in stderr and stderr.endswith("\nsd-teach: the latents grew (--help lists the options)\n")


def test_a_missing_prompt_is_asked_for(cli):
    code, _, error = cli()
    assert code == 2 and error == "sd-teach: a prompt is needed: what should be drawn? (--help lists the options)\n"


def test_a_negative_prompt_at_scale_1_is_warned_of_in_one_line(cli):
    code, stdout, stderr = cli("a cat", "--negative", "a dog", "--scale", "1")
    assert (code, stdout) == (0, "out.png\n")
    told = [line for line in stderr.splitlines() if "no effect" in line]
    assert told == ["warning: at scale 1 the negative prompt has no effect"]


BAD = {
    "no prompt": ([], "prompt"),
    "unknown option": (["a cat", "--colour", "red"], "--colour"),
    "abbreviated option": (["a cat", "--step", "3"], "--step"),
    "second prompt": (["a", "cat"], "cat"),
    "steps 0": (["a cat", "--steps", "0"], "got 0"),
    "steps -1": (["a cat", "--steps", "-1"], "got -1"),
    "steps 1001": (["a cat", "--steps", "1001"], "got 1001"),
    "steps no number": (["a cat", "--steps", "many"], "many"),
    "steps a fraction": (["a cat", "--steps", "2.5"], "2.5"),
    "scale negative": (["a cat", "--scale", "-1"], "-1"),
    "scale nan": (["a cat", "--scale", "nan"], "nan"),
    "scale infinite": (["a cat", "--scale", "inf"], "inf"),
    "eta 2": (["a cat", "--eta", "2"], "got 2"),
    "eta negative": (["a cat", "--eta", "-0.1"], "got -0.1"),
    "seed -2": (["a cat", "--seed", "-2"], "got -2"),
    "seed 2^63": (["a cat", "--seed", str(2**63)], str(2**63)),
    "n 0": (["a cat", "--n", "0"], "got 0"),
    "width 0": (["a cat", "--width", "0"], "got 0"),
    "width no multiple": (["a cat", "--width", "56"], "multiples of 16"),
    "height negative": (["a cat", "--height", "-64"], "multiples of 16"),
    "height no multiple": (["a cat", "--height", "65"], "multiples of 16"),
    "too wide for any memory": (["a cat", "--width", str(16 * 10**12)], "memory"),
    "dtype unknown": (["a cat", "--dtype", "fp8"], "fp8"),
    "dtype of no cpu": (["a cat", "--dtype", "fp16"], "float16"),
    "device unknown": (["a cat", "--device", "toaster"], "toaster"),
    "out a jpeg": (["a cat", "--out", "cat.jpg"], "cat.jpg"),
    "out without suffix": (["a cat", "--out", "cat"], "cat"),
    "out in no folder": (["a cat", "--out", "nowhere/cat.png"], "nowhere/cat.png"),
    "out with a name too long": (["a cat", "--out", "c" * 300 + ".png"], "ccc.png"),
}


def assert_one_line(answer: tuple[int, str, str], told: str) -> None:
    code, stdout, stderr = answer
    assert (code, stdout) == (2, "")
    assert stderr.startswith("sd-teach: ") and stderr.endswith("\n") and stderr.count("\n") == 1, stderr
    assert told in stderr


@pytest.mark.parametrize(("arguments", "told"), BAD.values(), ids=BAD)
def test_bad_input_gives_one_line_that_names_it_and_leaves_nothing(cli, tmp_path, arguments, told):
    assert_one_line(cli(*arguments), told)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["missing", "empty folder", "no model", "corrupt", "a folder called .safetensors"])
def test_a_bad_model_gives_one_line_that_names_it_and_leaves_nothing(cli, tmp_path, tmp_path_factory, kind):
    model = tmp_path_factory.mktemp("bad") / "model.safetensors"
    if "folder" in kind:
        model.mkdir()
    elif kind == "no model":
        model = model.with_suffix(".txt")
        model.write_text("not a model")
    elif kind == "corrupt":
        model.write_bytes(b"\0" * 100)
    assert_one_line(cli("a cat", "--model", str(model)), str(model))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cat.png", "cat-1.png"])
def test_an_output_that_is_a_folder_is_refused_before_any_work(cli, tmp_path, name):
    (tmp_path / name).mkdir()
    assert_one_line(cli("a cat", "--n", "2", "--out", "cat.png"), name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(cli, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert_one_line(cli("a cat"), "cannot write out.png")


DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


def failing_save(error: OSError, at: int = 0):
    """Image.save that, on its call number `at`, writes half a file and then raises."""
    save, calls = Image.Image.save, []

    def half(self, path, *args, **kwargs):
        calls.append(path)
        if len(calls) <= at:
            return save(self, path, *args, **kwargs)
        Path(path).write_bytes(b"half a picture")
        raise error

    return half


@pytest.mark.parametrize(
    ("error", "told"), [(DISK_FULL, "No space left"), (OSError("encoder error -2"), "encoder error")]
)
def test_a_picture_that_cannot_be_saved_leaves_nothing(cli, tmp_path, monkeypatch, error, told):
    monkeypatch.setattr(Image.Image, "save", failing_save(error))
    code, stdout, stderr = cli("a cat", "--out", "cat.png")
    assert (code, stdout) == (2, "")
    # after the progress bar, so not the only line
    assert stderr.splitlines()[-1].startswith("sd-teach: cannot write cat.png: ") and told in stderr
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_saved_leaves_the_one_before_it_and_the_older_one(cli, tmp_path, monkeypatch):
    (tmp_path / "cat-1.png").write_text("older")
    monkeypatch.setattr(Image.Image, "save", failing_save(DISK_FULL, at=1))
    code, stdout, _ = cli("a cat", "--n", "2", "--out", "cat.png")
    assert (code, stdout) == (2, "cat.png\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat-1.png", "cat.png"]
    assert Image.open("cat.png").size == (64, 64)
    assert (tmp_path / "cat-1.png").read_text() == "older"


def test_an_interruption_is_told_and_leaves_nothing(cli, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(StableDiffusion, "text_to_image", interrupted)
    code, stdout, stderr = cli("a cat")
    assert (code, stdout) == (130, "")
    assert "interrupted" in stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


# commands


def answer(capsys, *arguments: str) -> tuple[int, str, str]:
    """main() without the options that `cli` adds."""
    try:
        code = main(list(arguments))
    except SystemExit as exit:
        code = exit.code
    return code, *capsys.readouterr()


def test_verify_says_that_a_model_is_right(capsys, small_folder):
    code, stdout, stderr = answer(capsys, "verify", str(small_folder))
    assert (code, stderr) == (0, "")
    assert stdout.endswith("right: nothing missing, nothing unexpected, every shape as it must be\n")


def test_verify_ends_with_1_where_a_file_holds_another_model(capsys, small_folder):
    code, stdout, stderr = answer(capsys, "verify", str(small_folder / "model.safetensors"))
    assert (code, stderr) == (1, "")
    assert "missing      model.diffusion_model.input_blocks.10.0" in stdout


def test_an_exported_model_draws_the_same_picture(capsys, small_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exported = answer(capsys, "export", "--to", "diffusers", "twin", "--model", str(small_folder))
    assert exported == (0, "twin\n", "")
    options = ["--device", "cpu", "--steps", "4"]
    for model, out in ((str(small_folder), "ours.png"), ("twin", "theirs.png")):
        assert answer(capsys, "a cat", "--model", model, "--out", out, *options)[0] == 0
    assert (pixels("ours.png") == pixels("theirs.png")).all()


def test_download_prints_where_the_file_is(capsys, monkeypatch):
    monkeypatch.setattr("sd_teach.download.download_sd_v1_5", lambda: Path("cache/v1-5.safetensors"))
    assert answer(capsys, "download", "sd-v1-5") == (0, "cache/v1-5.safetensors\n", "")


def test_the_real_weights_are_asked_for_by_name(cli, monkeypatch):
    monkeypatch.setattr("sd_teach.checkpoint.find_sd_v1_5", lambda: None)
    assert_one_line(cli("a cat", "--model", "sd-v1-5"), "python -m sd_teach download sd-v1-5")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["download"], "model"),
        (["download", "sd-v2"], "sd-v2"),
        (["verify"], "model"),
        (["verify", "nowhere"], "nowhere"),
        (["export", "folder"], "--to"),
        (["export", "--to", "mlx", "folder"], "mlx"),
        (["export", "--to", "diffusers", "folder", "--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_to_a_command_gives_one_line_too(capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert_one_line(answer(capsys, *arguments), told)
    assert not list(tmp_path.iterdir())
