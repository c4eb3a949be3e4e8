"""Train the miniature's autoencoder: `python -m sd_teach.training.vae --help`.

Loss: L1 + MSE + 0.5 x L1 of the picture's gradients (edges) + 1e-4 x mean squared latent. The decoder sees the
mean plus noise of standard deviation 0.05; the log variance is trained towards that noise, ln(0.05^2) = -6, so that
sample() and mode() decode alike. A KL term from the start, with variances near 1, stalls at 15 dB.
`training/decoder.py` goes on from here, once there is a UNet.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sd_teach.training import data, drawings, metrics
from sd_teach.training.loop import Run, command, load_trained, parser, start_from_bundled, train
from sd_teach.vae import AutoencoderKL, VAEConfig

TINY = VAEConfig(ch=16, ch_mult=(1, 2, 4, 8), num_res_blocks=1, norm_groups=8)
NOISE = 0.05  # standard deviation added to latents, whose own is about 2


def load_autoencoder(vae: AutoencoderKL) -> None:
    """Give it the weights of the run "decoder", or else those of the run "vae", or else assets/tiny's.

    A run "decoder" holds the encoder it began with: after more of "vae" it has to be begun anew.
    """
    name = "decoder" if Run("decoder").checkpoint.exists() else "vae"
    load_trained(vae, name, "first_stage_model.", inside="vae." if name == "decoder" else "")


class Crops:
    """Random crops, `side` pixels wide, of the training pictures in all styles on all kinds of backgrounds."""

    def __init__(self, side: int):
        self.side = side
        kept = set(data.kept_from_vae())
        codes = [code for code in data.base_codes() if code not in kept]
        styles = drawings.renderings(codes, 128)
        small = data.load_rgba(codes[: len(codes) // 4 * 4], 64)
        four = rearrange(small, "(n y x) c h w -> n c (y h) (x w)", y=2, x=2)  # as small as scenes of two things
        # one in four is the 3D picture at 128: that is drawn most
        self.pictures = [styles[0], *styles, styles[3], data.load_rgba(codes, 256), four]

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        def integers(high: int, n: int = 1) -> list[int]:
            return torch.randint(high, (n,), generator=generator).tolist()

        named = torch.tensor(list(data.COLOURS.values()), dtype=torch.float32)
        crops = []
        for _ in range(batch):
            pictures = self.pictures[integers(len(self.pictures))[0]]
            size = pictures.shape[-1]
            # in steps of a latent's place, so that pixel art keeps to its grid
            x, y = (8 * i for i in integers((size - self.side) // 8 + 1, 2))
            rgba = pictures[integers(len(pictures))[0], None, :, y : y + self.side, x : x + self.side]
            kind, tinted = integers(10)[0], integers(5)[0] == 0
            if tinted:
                rgba = drawings.tint(rgba, named[integers(len(named))])
            ends = named[integers(len(named), 2)] if kind < 7 else 255 * torch.rand(2, 3, generator=generator)
            if kind in (0, 7):  # a vertical gradient from one colour to the other
                ramp = ((y + torch.arange(self.side)) / size)[None, :, None]
                colour = torch.lerp(ends[0][:, None, None], ends[1][:, None, None], ramp)
            else:
                colour = ends[0][:, None, None]
            crop = data.on_background(rgba, colour[None])
            crops.append(crop.flip(-1) if integers(2)[0] else crop)
        return torch.cat(crops)


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, across and down."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction(y: Tensor, x: Tensor) -> Tensor:
    """How far decoded pictures y are from x, both [b, 3, h, w]."""
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True))
    return F.l1_loss(y, x) + F.mse_loss(y, x) + 0.5 * edge


def loss(vae: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    posterior = vae.encode(x)
    noise = NOISE * torch.randn(posterior.mean.shape, generator=generator).to(x)
    y = vae.decode(posterior.mean + noise).float()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    variance = 0.01 * (logvar - 2 * torch.tensor(NOISE).log()).square().mean()
    return reconstruction(y, x) + 1e-4 * mean.square().mean() + variance


@command
def main() -> None:
    options = parser(__doc__, run="vae", steps=40_000, batch=8, lr=1e-3)
    options.add_argument("--crop", type=int, default=64, help="pixels on a side of what is trained on, 128 at most")
    options = options.parse_args()
    run = Run(options.run)
    torch.manual_seed(0)
    vae = AutoencoderKL(TINY)
    if not options.fresh:
        start_from_bundled(vae, "first_stage_model.")
    crops = Crops(options.crop)
    kept = {size: metrics.kept_pictures(size) for size in (128, 256)}

    def loss_at(generator: torch.Generator) -> Tensor:
        return loss(vae, crops.draw(options.batch, generator).to(options.device), generator)

    @torch.no_grad()
    def evaluate(average: nn.Module, step: int) -> dict[str, float]:
        numbers = {}
        for size, pictures in kept.items():
            batches = [batch.to(options.device) for batch in pictures.split(8)]
            means = [average.encode(batch).mean for batch in batches]
            decoded = torch.cat([average.decode(mean).cpu() for mean in means])
            numbers[f"psnr_{size}"] = metrics.psnr(decoded, pictures).mean().item()
        numbers["latent_std"] = torch.cat(means).std().item()
        both = torch.stack([pictures[:6], decoded[:6]], dim=1).flatten(0, 1)
        metrics.contact_sheet(both, 2).save(run.folder / "samples" / f"{step:06d}.png")
        return numbers

    train(run, vae, loss_at, evaluate, options, average_decay=0.999)


if __name__ == "__main__":
    main()
