"""Train the miniature's UNet: `python -m sd_teach.training.unet --help`.

Stable Diffusion's own training in small: latents of pictures, noised to a random time step; the UNet, given the frozen
text encoder's states of the caption, predicts the noise; one caption in ten is left empty, for classifier-free
guidance. Beyond that: the squared error of x0, which is that of the noise divided by the SNR, counts by the root of
min(SNR, 5), because by min(SNR, 5) itself (Hang et al. 2023, https://arxiv.org/abs/2303.09556) the time steps where
shapes are decided hardly count; and the noise has a small offset common to a channel, so that the schedule does not
give away a background's brightness.
In pictures of two things attention is told where to go: on the left to what the caption says of the first, on the right
to what it says of the second (`strayed`), as Wang et al. 2023, https://arxiv.org/abs/2312.03626, teach it by masks.
Muon trains matrices and convolutions (`training/muon.py`), AdamW the rest and, with `--data`, everything.

With `--size 256` a level grows around the bundled UNet (Stable Diffusion went on from 256 to 512 pixels, too, with its
network unchanged); only that level, and a little of what it surrounds, is trained (`own_weights`), most at small time
steps, where what is new in larger pictures is decided and which weigh more then (by min(SNR, 20)). After a new UNet it
has to be trained again, which goes on from the weights that `assets/tiny-256` has.
"""

import argparse
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import CLIPTokenizer

from sd_teach.attention import BasicTransformerBlock, CrossAttention
from sd_teach.checkpoint import load_model, save_model
from sd_teach.diffusion import Defaults, LatentDiffusion, ModelConfig
from sd_teach.noise import q_sample
from sd_teach.pipeline import cpu_has_bf16
from sd_teach.tiny_256 import name_around
from sd_teach.training import data, metrics, scenes, text, vae, words
from sd_teach.training.loop import Run, bundled_model, command, load_checked, load_trained, parser, save_whole, train
from sd_teach.unet import UNetConfig, UNetModel

TINY = UNetConfig(
    model_channels=64,
    channel_mult=(1, 2, 4),
    num_res_blocks=1,
    attention_resolutions=(1, 2, 4),
    num_heads=4,
    context_dim=text.TINY.hidden_size,
)
OFFSET = 0.1  # standard deviation of the noise that all places of a channel share
LATE = 400  # below this time step an outer level has most to say
CHUNK = 2048
EMPTY = 0.1  # fraction of captions left empty
# how much of its pictures each part of the language gets: shapes at half the size take it most time
KINDS = {"plain": 0.22, "style": 0.28, "tint": 0.05, "layout": 0.03, "pair": 0.40, "mixed": 0.02}
SIDES = 0.1  # weight of what attention to the wrong one of two things costs
EARLY = 250  # pictures of two things are trained most above this time step, where shapes are decided


def with_outer_level(config: UNetConfig) -> UNetConfig:
    """For maps twice as large: a finer level more, so that the others keep to maps they know."""
    factors = tuple(2 * factor for factor in config.attention_resolutions)
    return replace(config, channel_mult=(1, *config.channel_mult), attention_resolutions=factors)


def config_for(size: int) -> UNetConfig:
    """TINY for 128 pixels; with an outer level more for 256."""
    return TINY if size == scenes.SIZE else with_outer_level(TINY)


@torch.no_grad()
def grow(inner: UNetModel) -> UNetModel:
    """A UNet for maps twice as large: `inner`, one block a level, in a new outer level that starts by doing little.

    It gives `inner` the means of 2 x 2 places and enlarges what comes back; details are for training to bring.
    """
    outer, n = UNetModel(with_outer_level(inner.config)), len(inner.output_blocks)
    weights = outer.state_dict()
    for name, weight in inner.state_dict().items():
        weights[name_around(name)].copy_(weight)
    same = torch.eye(inner.config.model_channels)
    down, up = outer.input_blocks[2][0].op, outer.output_blocks[n - 1][-1].conv
    nn.init.zeros_(down.weight)[:, :, 1:, 1:] = same[..., None, None] / 4
    nn.init.zeros_(up.weight)[:, :, 1, 1] = same
    joins = [outer.output_blocks[i][0].skip_connection for i in (n, n + 1)]
    for layer in joins:
        nn.init.zeros_(layer.weight)[:, : len(same), 0, 0] = same
    for layer in (down, up, *joins):
        nn.init.zeros_(layer.bias)
    return outer


def own_weights(outer: UNetModel, inner: UNetModel) -> list[str]:
    """The names of what a UNet that grew around another has for itself; the rest is the inner one's, unchanged.

    Beside the new level: its ends, how it hears of the time step (means of 2 x 2 places have half the noise), biases,
    norms, where skips are joined, and the convolutions of the finest level within, which has outlines to draw that it
    did not know. So pictures of a second size cost a tenth of the weights.
    """
    shared, n = {name_around(name) for name in inner.state_dict()}, len(inner.output_blocks)
    finest = rf"(input_blocks\.3|output_blocks\.({n - 2}|{n - 1}))\.0"
    own = re.compile(rf"^(input_blocks\.0|out|time_embed|{finest})\.|\.(emb_layers|skip_connection)\.")
    weights = outer.named_parameters()
    return [name for name, weight in weights if name not in shared or weight.dim() == 1 or own.search(name)]


def assemble(scale_factor: float, size: int = scenes.SIZE) -> LatentDiffusion:
    """The miniature with the trained VAE and text encoder and a new UNet, frozen but for the UNet.

    size: pixels, 128 or 256.
    """
    # of 2, 3, 5 and 7.5 the scale at which most pictures have the style asked for; more makes edges harsher. Guidance
    # makes blotches at small time steps, where a latent itself shows what its caption says
    defaults = Defaults(image_size=size, guidance_scale=5.0, guidance_until=300)
    if size != scenes.SIZE:
        # more places show it at larger time steps already: means of 2 x 2 have half the noise. Without fresh noise
        # outlines fray more
        defaults = replace(defaults, guidance_until=500, eta=1.0)
    config = ModelConfig(text.TINY, config_for(size), vae.TINY, scale_factor=scale_factor, defaults=defaults)
    model = LatentDiffusion(config)
    vae.load_autoencoder(model.first_stage_model)
    words.load_text_encoder(model.cond_stage_model)
    return model.requires_grad_(False).eval()


class Pool:
    """Scenes with their latents, painted and encoded once and kept with the run, CHUNK at a time.

    scenes: [n, 8]; latents: float16 [n, 4, h/8, w/8] of unit variance; scale_factor: what made it so.
    """

    def __init__(self, run: Run, count: int, size: int = scenes.SIZE):
        scale_factor, chunks = None, []
        painter = None
        kinds = KINDS if size == scenes.SIZE else scenes.KINDS  # a level around it learns no shapes
        for i in range(-(-count // CHUNK)):
            file = run.folder / f"scenes_{i:03d}.pt"
            if not file.exists():
                painter = painter or scenes.Painter(size)
                model = assemble(1.0).first_stage_model.to(memory_format=torch.channels_last)
                drawn, rng = scenes.draw(CHUNK, torch.Generator().manual_seed(i), kinds), random.Random(i)
                latents = []
                for batch in tqdm(drawn.split(64), desc=f"encoding {i * CHUNK} to {(i + 1) * CHUNK}"):
                    pictures = torch.stack([painter.paint(scene, rng) for scene in batch.tolist()])
                    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
                        latents.append(model.encode(pictures).mode().half())
                save_whole({"scenes": drawn, "latents": torch.cat(latents)}, file)
            chunk = torch.load(file, weights_only=True)
            scale_factor = scale_factor or 1.0 / chunk["latents"].float().std().item()
            chunks.append(chunk)
        self.scale_factor = scale_factor
        self.scenes = torch.cat([chunk["scenes"] for chunk in chunks])[:count]
        self.latents = torch.cat([chunk["latents"] for chunk in chunks])[:count] * scale_factor

    def draw(
        self, batch: int, generator: torch.Generator, near: dict[int, list[str]] | None = None
    ) -> tuple[Tensor, list[str], list[list[int]]]:
        """Latents [b, 4, h/8, w/8] with captions drawn anew, one in ten empty, and the scenes."""
        chosen = torch.randint(len(self.scenes), (batch,), generator=generator)
        rng, drawn = random.Random(int(chosen.sum())), self.scenes[chosen].tolist()
        captions = ["" if rng.random() < EMPTY else scenes.caption(scene, rng, near, 1 / 3)[0] for scene in drawn]
        return self.latents[chosen].float(), captions, drawn


def trained(run: str, size: int = scenes.SIZE) -> LatentDiffusion:
    """The miniature with the averaged UNet of a run on pictures of that size."""
    model = assemble(Pool(Run(run), 1, size).scale_factor, size)
    load_trained(model.model.diffusion_model, run, "model.diffusion_model.")
    return model


def latest() -> LatentDiffusion:
    """The miniature as the runs have it by now, each part from assets/tiny where there is no such run."""
    if Run("unet").checkpoint.exists():
        return trained("unet")
    model = load_model("tiny")
    words.load_text_encoder(model.cond_stage_model)
    vae.load_autoencoder(model.first_stage_model)
    return model


class Pictures:
    """The user's own pictures and texts, encoded once, as they are and mirrored."""

    def __init__(self, folder: Path, model: LatentDiffusion):
        pairs = data.read_folder(folder)
        self.texts = [text for _, text in pairs]
        pictures = torch.stack([data.load_square(path, model.config.defaults.image_size) for path, _ in pairs])
        both = torch.cat([pictures, pictures.flip(-1)])
        with torch.inference_mode():
            self.latents = torch.cat([model.first_stage_model.encode(batch).mode() for batch in both.split(16)])
        self.latents = self.latents * model.config.scale_factor

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Latents [b, 4, h/8, w/8] of unit variance with their texts, one in ten empty."""
        chosen = torch.randint(len(self.latents), (batch,), generator=generator)
        empty = (torch.rand(batch, generator=generator) < EMPTY).tolist()
        texts = [self.texts[i % len(self.texts)] for i in chosen.tolist()]
        return self.latents[chosen], ["" if e else text for text, e in zip(texts, empty, strict=True)]


def whose_slots(tokenizer: CLIPTokenizer, captions: list[str], drawn: list[list[int]]) -> Tensor:
    """Which slots of captions speak of the first of two things and which of the second: bool [b, 2, 77].

    drawn: the captions' scenes. All False where a caption is not of two, where a second "and" leaves open which one
    joins them, and where the picture is spoiled, which moves things. Words before the "and" are the first's; those from
    the second's last token on are the second's, background and quality, too; from the end on slots take turns. So the
    text encoder's lesson has it (training/words.py).
    """
    slots = torch.zeros(len(captions), 2, 77, dtype=torch.bool)
    for (first, second), caption, scene in zip(slots, captions, drawn, strict=True):
        if scene[scenes.LAYOUT] == scenes.PAIR and not scene[scenes.BAD] and caption.count(" and ") == 1:
            one, other = caption.split(" and ")
            other = re.split(r" on an? | at night|, ", other)[0]  # without what follows it
            starts = one, f"{one} and {other}", caption
            before, last, end = (len(tokenizer(start)["input_ids"]) - 1 for start in starts)
            first[1:before] = second[last - 1 : end] = True
            first[end + end % 2 :: 2] = second[end + 1 - end % 2 :: 2] = True
    return slots


def strayed(q: Tensor, k: Tensor, slots: Tensor) -> Tensor:
    """What attention to the wrong one of two things costs: the mean of -log of the right one's share of both.

    q: [b, heads, l, d]; k: [b, heads, 77, d]; slots: bool [b, 2, 77] (`whose_slots`). The left half's places should
    attend to the first thing's slots, the right half's to the second's; how much the others get is left open.
    """
    weights = (q @ k.mT / q.shape[-1] ** 0.5).float().softmax(-1).mean(1)  # of all heads: one may look elsewhere
    # a product of matrices might be of bfloat16 again
    each = (weights[:, None] * slots[:, :, None]).sum(-1)  # [b, 2, l]
    shares = each.clamp(min=1e-9).log().log_softmax(1)
    side = int(shares.shape[-1] ** 0.5)
    left, right = shares.unflatten(-1, (side, side)).chunk(2, dim=-1)
    return -(left[:, 0].mean() + right[:, 1].mean()) / 2


@contextmanager
def watched(unet: UNetModel, slots: Tensor) -> Iterator[list[Tensor]]:
    """Collects, while the UNet is called with captions of these slots, what each of its layers costs (`strayed`).

    The mean over all captions: those that are not of two things cost nothing.
    """
    pairs, costs = slots.any(-1).all(-1), []
    share = pairs.float().mean().item()
    layers = [block.attn2 for block in unet.modules() if isinstance(block, BasicTransformerBlock)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if share:
            costs.append(share * strayed(q[pairs], k[pairs], slots[pairs]))
        return CrossAttention.attend(q, k, v)

    for layer in layers:
        layer.attend = attend
    try:
        yield costs
    finally:
        for layer in layers:
            del layer.attend


def loss(
    model: LatentDiffusion,
    x0: Tensor,
    captions: list[str],
    generator: torch.Generator,
    slots: Tensor | None = None,
    late: bool = False,
) -> Tensor:
    """The weighted squared error of the predicted noise; x0: [b, 4, h, w], unit variance.

    slots: which slots of the captions speak of the first and which of the second of two things (`whose_slots`); then
    attention to the wrong one costs, too, and of two pictures of two things one has a time step of EARLY or more.
    late: every other time step is drawn from those below LATE, and small ones weigh more.
    """
    device = next(model.parameters()).device
    alphas = model.schedule.alphas_cumprod
    t = torch.randint(len(alphas), (len(x0),), generator=generator)
    slots = torch.zeros(len(x0), 2, 77, dtype=torch.bool) if slots is None else slots
    two = slots.any(-1).all(-1).nonzero().flatten()[::2]
    t[two] = EARLY + t[two] * (len(alphas) - EARLY) // len(alphas)
    if late:
        t[::2] = t[::2] * LATE // len(alphas)
    noise = torch.randn(x0.shape, generator=generator)
    noise = noise + OFFSET * torch.randn(*x0.shape[:2], 1, 1, generator=generator)
    x_t = q_sample(x0, t, noise, model.schedule).contiguous(memory_format=torch.channels_last)
    context = model.get_learned_conditioning(captions)
    with watched(model.model.diffusion_model, slots.to(device)) as costs:
        eps = model.apply_model(x_t.to(device), t.to(device), context).float()
    error = (eps - noise.to(device)).square().mean(dim=(1, 2, 3))
    snr = alphas[t] / (1 - alphas[t])
    weights = (snr.clamp(max=20.0) if late else snr.clamp(max=5.0).sqrt()) / snr
    return (weights.to(device) * error).mean() + SIDES * sum(costs) / max(1, len(costs))


@torch.no_grad()
def follow_text(unet: UNetModel, before: Tensor, after: Tensor) -> None:
    """Make the UNet hear in a new text encoder's states what it heard in those it was trained on, as far as it goes.

    before, after: [..., d], the states of the same captions, old and new. Keys and values are linear in them, so the
    linear map that leads from the new states back to the old ones, by least squares, goes into their weights.
    """
    back = torch.linalg.lstsq(after.flatten(0, -2).double(), before.flatten(0, -2).double()).solution  # [d, d]
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock):
            for layer in (block.attn2.to_k, block.attn2.to_v):
                layer.weight.copy_(layer.weight.double() @ back.T)


def train_on(folder: Path, options: argparse.Namespace) -> Path:
    """Fine-tune the bundled model on the pictures of a folder; returns the folder of the model that comes out.

    Raises ValueError for a folder that data.read_folder refuses, and for a run begun with another one.
    """
    run = Run(options.run)
    note = run.folder / "pictures_from.txt"
    if note.exists() and note.read_text() != str(folder.resolve()):
        raise ValueError(f"run {options.run!r} was begun with {note.read_text()}: begin another with --run NAME")
    torch.manual_seed(0)
    model = load_model("tiny").to(options.device)
    pictures = Pictures(folder, model)
    note.write_text(str(folder.resolve()))
    unet = model.model.diffusion_model.requires_grad_(True).to(memory_format=torch.channels_last)

    def evaluate(average: nn.Module, step: int) -> dict[str, float]:
        texts = list(dict.fromkeys(pictures.texts))[:8]
        model.model.diffusion_model = average
        drawn = metrics.pictures_of(model, texts, list(range(len(texts))))
        model.model.diffusion_model = unet
        metrics.contact_sheet(drawn, 4).save(run.folder / "samples" / f"{step:06d}.png")
        return {}

    average = train(run, unet, lambda g: loss(model, *pictures.draw(options.batch, g), g), evaluate, options)
    model.model.diffusion_model = average
    save_model(model.cpu(), run.folder / "model")
    return run.folder / "model"


@command
def main() -> None:
    options = parser(__doc__, run="unet", steps=20_000, batch=32, lr=8e-4)
    options.add_argument("--scenes", type=int, default=40_960, help="how many scenes to paint and encode in advance")
    options.add_argument(
        "--size", type=int, default=scenes.SIZE, choices=(scenes.SIZE, 2 * scenes.SIZE), help="pixels a side"
    )
    options.add_argument(
        "--average", type=float, default=0.9995, help="what a step leaves of the moving average: less for short runs"
    )
    options.add_argument(
        "--data", type=Path, metavar="FOLDER", help="fine-tune the bundled model on your own pictures instead"
    )
    if options.parse_known_args()[0].data:
        options.set_defaults(run="own", steps=600, batch=16, lr=2e-4, every=200)
        chosen = options.parse_args()
        folder = train_on(chosen.data, chosen)
        print(f'draw with it: python -m sd_teach "{data.read_folder(chosen.data)[0][1]}" --model {folder}')
        return
    options = options.parse_args()
    run, larger = Run(options.run), options.size != scenes.SIZE
    torch.manual_seed(0)
    pool = Pool(run, options.scenes, options.size)
    model = assemble(pool.scale_factor, options.size).to(options.device)
    unet = model.model.diffusion_model
    bundled = None if options.fresh or run.checkpoint.exists() else bundled_model()
    if bundled and not larger:
        bundled.to(options.device)
        # what captions of two things mean may have changed on purpose
        alone = pool.scenes[pool.scenes[:, scenes.LAYOUT] != scenes.PAIR][:2000].tolist()
        captions = [scenes.caption(scene, random.Random(i))[0] for i, scene in enumerate(alone)]
        # the first slots: captions are short, and what comes after them is padding
        before, after = (m.get_learned_conditioning(captions)[:, :24].cpu() for m in (bundled, model))
        begun = bundled.model.diffusion_model
        follow_text(begun, before, after)
        load_checked(unet, begun.state_dict(), "assets/tiny")
    elif bundled and (large := bundled_model("tiny-256")):  # its own weights around the UNet that assets/tiny has now
        load_checked(unet, large.model.diffusion_model.state_dict(), "assets/tiny-256")
    elif bundled:
        load_checked(unet, grow(bundled.model.diffusion_model).state_dict(), "assets/tiny")
    unet.requires_grad_(True).to(memory_format=torch.channels_last)
    if larger and not options.fresh:
        own = own_weights(unet, UNetModel(TINY))
        for name, weight in unet.named_parameters():
            weight.requires_grad_(name in own)
    near, tokenizer = text.near_words(), model.cond_stage_model.tokenizer

    def evaluate(average: nn.Module, step: int) -> dict[str, float]:
        model.model.diffusion_model = average
        numbers, sheets = {}, []
        for name, asked in (
            ("seen", metrics.pairs(False, step, 24)),
            ("held_out", metrics.pairs(True, step, 24)),
            ("synonyms", metrics.synonyms(step, 24)),
        ):
            right, _, pictures = metrics.recognition(model, *asked, seed=step)
            numbers[name] = right.float().mean().item()
            sheets.append(pictures)
        for part in metrics.PARTS:
            wanted = metrics.language(part, step, 12)
            pictures = metrics.drawn(model, [metrics.prompt(scene) for scene in wanted], step)
            numbers[part] = metrics.judged(part, wanted, pictures).float().mean().item()
            sheets.append(pictures)
        metrics.contact_sheet(torch.cat(sheets), 12).save(run.folder / "samples" / f"{step:06d}.png")
        model.model.diffusion_model = unet
        return numbers

    def loss_at(generator: torch.Generator) -> Tensor:
        x0, captions, drawn = pool.draw(options.batch, generator, near)
        slots = None if larger else whose_slots(tokenizer, captions, drawn)  # what attends is not trained then
        return loss(model, x0, captions, generator, slots, late=larger)

    train(run, unet, loss_at, evaluate, options, average_decay=options.average, muon=True)


if __name__ == "__main__":
    main()
