"""Train the autoencoder's decoder further, alone: `python -m sd_teach.training.decoder --help`.

Latents stay as they are, so the UNet does, too. Half of each batch are latents of pictures, the other half latents that
the UNet made: a scene's latent, noised to one of the last time steps of a run and drawn anew with its caption. The
decoder is to give the scene itself for both, and so learns to see through what the UNet does not get right. Loss: that
of the autoencoder (`vae.reconstruction`), what a critic says of the picture's patches, and how far the critic's
features are from those of the scene; without a critic whatever is uncertain comes out as a blur.
Rombach et al. 2022, https://arxiv.org/abs/2112.10752, appendix G; Wang et al. 2018, https://arxiv.org/abs/1711.11585.
"""

import random
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm
from tqdm.auto import tqdm

from sd_teach.ddim import ddim_sample, ddim_timesteps
from sd_teach.diffusion import LatentDiffusion
from sd_teach.guidance import GuidedModel
from sd_teach.noise import q_sample
from sd_teach.training import metrics, scenes, unet, vae
from sd_teach.training.loop import Run, command, parser, save_whole, train
from sd_teach.vae import AutoencoderKL

MOST = 6  # of the 20 steps at most so many are taken again: after more the UNet draws other outlines
CRITIC, FEATURES = 0.03, 0.3  # weights in the loss


class Critic(nn.Module):
    """Tells a picture's patches from a decoder's: [b, 3, h, w] -> features of each layer, the last [b, 1, h/8, w/8].

    Each layer's weights, as a matrix, have norm 1 (Miyato et al. 2018, https://arxiv.org/abs/1802.05957).
    """

    def __init__(self, width: int = 32):
        super().__init__()
        sides = (3, width, 2 * width, 4 * width)
        layers = [nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(sides)]
        self.layers = nn.ModuleList(spectral_norm(layer) for layer in [*layers, nn.Conv2d(sides[-1], 1, 3, padding=1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for layer in self.layers:
            x = layer(F.leaky_relu(x, 0.2) if features else x)
            features.append(x)
        return features


class Decoding(nn.Module):
    """What is trained together: the autoencoder, its encoder frozen, and the critic."""

    def __init__(self, first_stage_model: AutoencoderKL):
        super().__init__()
        self.vae, self.critic = first_stage_model, Critic()
        self.vae.requires_grad_(True).encoder.requires_grad_(False)
        self.vae.quant_conv.requires_grad_(False)


@torch.inference_mode()
def made(model: LatentDiffusion, pictures: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
    """Raw latents of pictures [b, 3, h, w], their last steps drawn anew with the captions: [b, 4, h/8, w/8]."""
    defaults = model.config.defaults
    timesteps = ddim_timesteps(defaults.steps)[: int(torch.randint(1, MOST + 1, (1,), generator=generator))]
    x0 = model.first_stage_model.encode(pictures).mode() * model.config.scale_factor
    x_t = q_sample(x0, timesteps[-1:], torch.randn(x0.shape, generator=generator), model.schedule)
    cond, uncond = (model.get_learned_conditioning(texts) for texts in (captions, [""] * len(captions)))
    eps_model = GuidedModel(model.apply_model, cond, uncond, defaults.guidance_scale, defaults.guidance_until)
    *_, last = ddim_sample(eps_model, x_t, model.schedule, timesteps=timesteps)
    return last.x_prev / model.config.scale_factor


class Made:
    """Scenes with latents that the UNet made of them, kept with the run. pictures: uint8 [n, 3, 128, 128]."""

    def __init__(self, run: Run, count: int):
        file = run.folder / f"made_{count}.pt"
        if not file.exists():
            model, painter, rng = unet.latest(), scenes.Painter(), random.Random(count)
            generator = torch.Generator().manual_seed(count)
            pictures, latents = [], []
            for batch in tqdm(scenes.draw(count, generator).split(16), desc="latents that the UNet makes"):
                drawn = torch.stack([painter.paint(scene, rng) for scene in batch.tolist()])
                captions = [scenes.caption(scene, rng)[0] for scene in batch.tolist()]
                latents.append(made(model, drawn, captions, generator))
                pictures.append(((drawn + 1) * 127.5).round().byte())
            save_whole({"pictures": torch.cat(pictures), "latents": torch.cat(latents)}, file)
        stored = torch.load(file, weights_only=True)
        self.pictures, self.latents = stored["pictures"], stored["latents"]

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures [b, 3, 128, 128] in [-1, 1] and the latents [b, 4, 16, 16] made of them."""
        chosen = torch.randint(len(self.pictures), (batch,), generator=generator)
        return self.pictures[chosen] / 127.5 - 1, self.latents[chosen]


def loss(model: Decoding, x: Tensor, z: Tensor) -> Tensor:
    """Of the decoder, for pictures x [b, 3, h, w] and latents z that it is to give them for, and of the critic."""
    y, real = model.vae.decode(z).float(), model.critic(x)
    held = {name: weight.detach() for name, weight in model.critic.named_parameters()}
    seen = functional_call(model.critic, held, y)  # the decoder's part: the critic as it is
    wanted = [layer.detach() for layer in real]
    features = sum(F.l1_loss(a, b) for a, b in zip(seen[:-1], wanted[:-1], strict=True))
    # whose patches look more real: the critic says the scene's, the decoder wants its own
    decoder = F.softplus(wanted[-1] - seen[-1]).mean()
    critic = F.softplus(model.critic(y.detach())[-1] - real[-1]).mean()
    return vae.reconstruction(y, x) + CRITIC * decoder + FEATURES * features + critic


@command
def main() -> None:
    options = parser(__doc__, run="decoder", steps=4000, batch=8, lr=4e-4, fresh=False)
    options.add_argument("--made", type=int, default=4096, help="how many latents the UNet makes in advance")
    options = options.parse_args()
    run = Run(options.run)
    torch.manual_seed(0)
    latents, crops = Made(run, options.made), vae.Crops(scenes.SIZE)
    model = Decoding(AutoencoderKL(vae.TINY))
    vae.load_autoencoder(model.vae)

    def loss_at(generator: torch.Generator) -> Tensor:
        x = crops.draw(options.batch - options.batch // 2, generator).to(options.device)
        with torch.no_grad():
            z = model.vae.encode(x).mean
        z = z + vae.NOISE * torch.randn(z.shape, generator=generator).to(z)
        more_x, more_z = (part.to(options.device) for part in latents.draw(options.batch // 2, generator))
        return loss(model, torch.cat([x, more_x]), torch.cat([z, more_z]))

    @torch.no_grad()
    def evaluate(average: nn.Module, step: int) -> dict[str, float]:
        x, z = latents.draw(24, torch.Generator().manual_seed(0))
        pairs = torch.stack([x, average.vae.decode(z.to(options.device)).cpu()], dim=1).flatten(0, 1)
        metrics.contact_sheet(pairs, 12).save(run.folder / "samples" / f"{step:06d}.png")
        return {f"psnr_{size}": metrics.vae_psnr(average.vae, size) for size in (128, 256)}

    train(run, model, loss_at, evaluate, options, average_decay=0.998)


if __name__ == "__main__":
    main()
