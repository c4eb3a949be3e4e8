"""Train the miniature's UNet: `python -m sd_teach.training.unet --help`.

Stable Diffusion's own training in small: latents of pictures, noised to a random time step; the UNet, given the frozen
text encoder's states of the caption, predicts the noise; one caption in ten is left empty, for classifier-free
guidance. Beyond that: the loss is weighted by min(SNR, 5) / SNR (Hang et al. 2023, https://arxiv.org/abs/2303.09556),
and the noise has a small offset common to a channel, so that the schedule does not give away a background's brightness.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from sd_teach.diffusion import Defaults, LatentDiffusion, ModelConfig
from sd_teach.noise import q_sample
from sd_teach.training import data, metrics, text, vae
from sd_teach.training.loop import Run, load_trained, parser, start_from_bundled, train
from sd_teach.unet import UNetConfig

TINY = UNetConfig(
    model_channels=64,
    channel_mult=(1, 2, 4),
    num_res_blocks=1,
    attention_resolutions=(2, 4),
    num_heads=4,
    context_dim=text.TINY.hidden_size,
)
SIZE = 128  # pixels
OFFSET = 0.1  # standard deviation of the noise that all places of a channel share
EMPTY = 0.1  # fraction of captions left empty


def assemble(scale_factor: float) -> LatentDiffusion:
    """The miniature with the trained VAE and text encoder and a new UNet, frozen but for the UNet."""
    # at scale 3 the miniature draws what it is asked for; more makes colours and edges harsher
    defaults = Defaults(image_size=SIZE, guidance_scale=3.0)
    config = ModelConfig(text.TINY, TINY, vae.TINY, scale_factor=scale_factor, defaults=defaults)
    model = LatentDiffusion(config)
    load_trained(model.first_stage_model, "vae", "first_stage_model.")
    load_trained(model.cond_stage_model, "text", "cond_stage_model.", inside="text.")
    return model.requires_grad_(False).eval()


def placements(rgba: Tensor) -> list[Tensor]:
    """A picture as it is, and a little smaller and off the centre; each also mirrored. rgba: [n, 4, h, w]."""
    size, small = rgba.shape[-1], round(0.94 * rgba.shape[-1])
    generator = torch.Generator().manual_seed(0)
    shrunk = F.interpolate(rgba.float(), (small, small), mode="bilinear", antialias=True).round().byte()
    moved = torch.zeros_like(rgba)
    for picture, target in zip(shrunk, moved, strict=True):
        x, y = torch.randint(size - small + 1, (2,), generator=generator).tolist()
        target[:, y : y + small, x : x + small] = picture
    return [rgba, rgba.flip(-1), moved, moved.flip(-1)]


def latents(run: Run) -> tuple[Tensor, float]:
    """Latents of every subject on every colour, encoded once for a run.

    Returns ([subjects, colours, placements, 4, h/8, w/8] of unit variance, scale factor).
    """
    cache = run.folder / "latents.pt"
    if cache.exists():
        stored = torch.load(cache, weights_only=True)
        return stored["latents"], stored["scale_factor"]
    model = assemble(1.0)
    views = torch.stack(placements(data.load_rgba([s.code for s in data.subjects()], SIZE)), dim=1)
    encoded = []
    for view in tqdm(views, desc="encoding"):
        pictures = torch.cat([data.on_background(view, colour[:, None, None]) for colour in metrics.COLOURS])
        with torch.inference_mode():
            encoded.append(model.first_stage_model.encode(pictures).mode().half())
    stacked = torch.stack(encoded).unflatten(1, (len(metrics.COLOURS), -1))
    scale_factor = 1.0 / stacked.float().std().item()
    stored = {"latents": (stacked.float() * scale_factor).half(), "scale_factor": scale_factor}
    torch.save(stored, cache)
    return stored["latents"], stored["scale_factor"]


class Batches:
    """Latents with captions, never a held-out pair of subject and colour."""

    def __init__(self, latents: Tensor):
        self.latents = latents

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        def integers(high: int) -> Tensor:
            return torch.randint(high, (batch,), generator=generator)

        subjects, colours, views = (integers(n) for n in self.latents.shape[:3])
        colours = data.seen_colours(subjects, colours)
        captions = []
        for s, c, name, frame, kind in zip(subjects, colours, *(integers(3000) for _ in range(3)), strict=True):
            subject = data.subjects()[s]
            noun = subject.names[name % len(subject.names)]
            named = data.caption(noun, subject.article, metrics.COLOUR_NAMES[c] if kind % 3 else None)
            captions.append("" if kind < 3000 * EMPTY else text.FRAMES[frame % len(text.FRAMES)].format(named))
        return self.latents[subjects, colours, views].float(), captions


def main() -> None:
    options = parser(__doc__, run="unet", steps=20_000, batch=32, lr=8e-4).parse_args()
    run = Run(options.run)
    torch.manual_seed(0)
    encoded, scale_factor = latents(run)
    model = assemble(scale_factor).to(options.device)
    unet = model.model.diffusion_model
    if not options.fresh:
        start_from_bundled(unet, "model.diffusion_model.")
    unet.requires_grad_(True).to(memory_format=torch.channels_last)
    batches = Batches(encoded)
    alphas = model.schedule.alphas_cumprod
    weights = (5.0 * (1 - alphas) / alphas).clamp(max=1.0)  # min(SNR, 5) / SNR

    def loss_at(generator: torch.Generator) -> Tensor:
        x0, captions = batches.draw(options.batch, generator)
        t = torch.randint(len(alphas), (len(x0),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        noise = noise + OFFSET * torch.randn(*x0.shape[:2], 1, 1, generator=generator)
        x_t = q_sample(x0, t, noise, model.schedule).contiguous(memory_format=torch.channels_last)
        context = model.get_learned_conditioning(captions)
        eps = unet(x_t.to(options.device), t.to(options.device), context).float()
        error = (eps - noise.to(options.device)).square().mean(dim=(1, 2, 3))
        return (weights[t].to(options.device) * error).mean()

    def evaluate(average: nn.Module, step: int) -> dict[str, float]:
        model.model.diffusion_model = average
        numbers = {}
        for held_out, name in ((False, "seen"), (True, "held_out")):
            prompts = metrics.pairs(held_out, step, 40)
            right, background, pictures = metrics.recognition(model, *prompts, seed=step)
            numbers |= {name: right.float().mean().item(), f"{name}_background": background.float().mean().item()}
            metrics.contact_sheet(pictures, 10).save(run.folder / "samples" / f"{step:06d}_{name}.png")
        model.model.diffusion_model = unet
        return numbers

    train(run, unet, loss_at, evaluate, options)


if __name__ == "__main__":
    main()
