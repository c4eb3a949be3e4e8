"""Step 7 of the pipeline: all of it, from a prompt to a picture. The only place where networks and sampler meet.

Shape letters: b images, h and w sides of the picture in pixels, n = 77 token slots, d width of the text states.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sd_teach.checkpoint import load_model, model_path
from sd_teach.ddim import DDIMState, ddim_sample, ddim_timesteps
from sd_teach.diffusion import LatentDiffusion
from sd_teach.exchange import import_diffusers
from sd_teach.guidance import GuidedModel
from sd_teach.noise import draw_noise, image_generators, initial_noise


@dataclass(frozen=True)
class Result:
    """What a run made: pictures, the latents they were decoded from [b, 4, h/8, w/8], and the seed of each."""

    images: list[Image.Image]
    latents: Tensor
    seeds: list[int]


class StableDiffusion:
    """A loaded model and how to run it. model: its frozen networks."""

    def __init__(self, model: LatentDiffusion):
        self.model = model

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "tiny", device: str | None = None, dtype: torch.dtype = torch.float32
    ) -> "StableDiffusion":
        """Load "tiny", "sd-v1-5" (once downloaded), a .safetensors file of Stable Diffusion v1.5, or a model folder.

        A folder may be save_model's or diffusers'.
        device: "cpu", "cuda" or "mps"; the fastest present if None. dtype: of UNet and text encoder.
        Raises ValueError where the model or the device is not there, or the weights are not exactly the model's.
        """
        device = device or fastest_device()
        if device.split(":")[0] not in ("cpu", "cuda", "mps"):
            raise ValueError(f"device {device!r} cannot be used: give cpu, cuda or mps")
        if device.startswith("cpu") and dtype != torch.float32 and not (dtype == torch.bfloat16 and cpu_has_bf16()):
            raise ValueError(f"this CPU does not compute in {str(dtype).removeprefix('torch.')}: use float32")
        if (model_path(name) / "model_index.json").is_file():
            model = import_diffusers(Path(name)).to(torch.float32)
            model.model.to(dtype), model.cond_stage_model.to(dtype)
        else:
            model = load_model(name, dtype)
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
        # convolutions read channels_last without repacking
        model.model.to(memory_format=torch.channels_last)
        return cls(model)

    @torch.inference_mode()
    def text_to_image(
        self,
        prompt: str,
        negative_prompt: str = "",
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        num_images: int = 1,
        width: int | None = None,
        height: int | None = None,
        eta: float = 0.0,
        callback: Callable[[DDIMState], None] | None = None,
    ) -> Result:
        """Make pictures of a prompt.

        prompt, negative_prompt: what to move towards and away from; empty is fine.
        steps: DDIM steps, 1..1000. guidance_scale: 0 or more; at 1 the negative prompt has no effect (UserWarning).
        seed: of the first image; image k has seed + k. width, height: pixels. eta: 0 DDIM .. 1 DDPM.
        callback: called with the DDIMState of every step.
        None means the model's own default. Raises ValueError for anything out of range, before any work.
        """
        model, config, defaults = self.model, self.model.config, self.model.config.defaults
        steps = defaults.steps if steps is None else steps
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        width = defaults.image_size if width is None else width
        height = defaults.image_size if height is None else height
        multiple = config.size_multiple
        if width < 1 or height < 1 or width % multiple or height % multiple:
            raise ValueError(f"width and height must be positive multiples of {multiple}, got {width} x {height}")
        ddim_timesteps(steps, model.schedule.num_timesteps)  # refuses what is out of range
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must lie between 0 and 1, got {eta}")
        if num_images < 1:
            raise ValueError(f"the number of images must be at least 1, got {num_images}")
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"the guidance scale must be a number of 0 or more, got {scale}")
        if scale == 1 and negative_prompt:
            warnings.warn("at scale 1 the negative prompt has no effect", stacklevel=3)  # past inference_mode's frame

        generators = image_generators(seed, num_images)
        x_T = initial_noise(generators, height, width, config.unet.in_channels, config.vae.downsampling)
        device = next(model.parameters()).device
        cond, uncond = model.get_learned_conditioning([prompt, negative_prompt]).chunk(2)

        def apply_model(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            # of one picture, guidance asks about the same latent twice: the UNet takes it once, with both texts
            return model.apply_model(x[:1], t[:1], context) if num_images == 1 else model.apply_model(x, t, context)

        eps_model = GuidedModel(apply_model, cond.expand(num_images, -1, -1), uncond.expand(num_images, -1, -1), scale)

        def noise(x: Tensor) -> Tensor:
            return draw_noise(generators, x.shape[1:]).to(device)

        for state in ddim_sample(eps_model, x_T.to(device), model.schedule, steps, eta, noise):
            if callback:
                callback(state)
        latents = state.x_prev
        images = to_images(model.decode_first_stage(latents))
        return Result(images, latents, [seed + k for k in range(num_images)])


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures [b, 3, h, w] in about [-1, 1] -> RGB images: clamped, scaled to 0..255, rounded (not truncated)."""
    pixels = ((pictures.clamp(-1.0, 1.0) + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(picture) for picture in pixels.cpu().numpy()]


def fastest_device() -> str:
    """ "cuda" or "mps" where there is one, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without it half precision is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
