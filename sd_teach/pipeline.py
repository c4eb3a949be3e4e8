"""Step 7 of the pipeline: all of it, from a prompt to a picture. The only place where networks and sampler meet.

Shape letters: b images, h and w sides of the picture in pixels, n = 77 token slots, d width of the text states.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sd_teach.checkpoint import load_model, model_path
from sd_teach.ddim import DDIMState, last_timesteps
from sd_teach.diffusion import LatentDiffusion
from sd_teach.exchange import import_diffusers
from sd_teach.guidance import GuidedModel
from sd_teach.images import fit_image, fit_mask, keep_mask, to_images, to_tensor
from sd_teach.noise import draw_noise, image_generators, initial_noise, q_sample
from sd_teach.packing import can_pack, pack
from sd_teach.samplers import SAMPLERS, sampler_timesteps

LARGE = 2**30  # bytes of weights from which on a CPU a model is packed, and runs in half precision where it can


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
        cls, name: str | Path = "tiny", device: str | None = None, dtype: torch.dtype | None = None
    ) -> "StableDiffusion":
        """Load "tiny", "tiny-256", "sd-v1-5" (once downloaded), a .safetensors or .ckpt file of it, or a folder.

        A folder may be save_model's or diffusers'.
        device: "cpu", "cuda" or "mps"; the fastest present if None.
        dtype: of UNet and text encoder; if None, bfloat16 for a large model on a CPU that has it, else float32.
        On a CPU a large model's layers are packed (packing.py): it is for running only.
        Raises ValueError where the model or the device is not there, or the weights are not exactly the model's.
        """
        device = device or fastest_device()
        if device.split(":")[0] not in ("cpu", "cuda", "mps"):
            raise ValueError(f"device {device!r} cannot be used: give cpu, cuda or mps")
        path, on_cpu = model_path(name), device.startswith("cpu")
        files = [path] if path.is_file() else path.rglob("*.safetensors")
        large = on_cpu and sum(file.stat().st_size for file in files if file.is_file()) >= LARGE
        dtype = dtype or (torch.bfloat16 if large and cpu_has_bf16() else torch.float32)
        if on_cpu and dtype != torch.float32 and not (dtype == torch.bfloat16 and cpu_has_bf16()):
            raise ValueError(f"this CPU does not compute in {str(dtype).removeprefix('torch.')}: use float32")
        packed = large and can_pack()
        if (path / "model_index.json").is_file():
            model = import_diffusers(path).to(torch.float32)
            model.model.to(dtype), model.cond_stage_model.to(dtype)
            model = pack(model) if packed else model
        else:
            model = load_model(name, dtype, pack if packed else None)
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
        if not packed:  # convolutions read channels_last without rearranging it
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
        guidance_until: int | None = None,
        seed: int = 0,
        num_images: int = 1,
        width: int | None = None,
        height: int | None = None,
        eta: float | None = None,
        sampler: str = "ddim",
        callback: Callable[[DDIMState], None] | None = None,
    ) -> Result:
        """Make pictures of a prompt.

        prompt, negative_prompt: what to move towards and away from; empty is fine.
        steps: 1..1000. guidance_scale: 0 or more; at 1 the negative prompt has no effect (UserWarning).
        guidance_until: 0..1000, the time step below which the scale is at most 1; 0 guides to the end.
        seed: of the first image; image k has seed + k. width, height: pixels. eta: 0 DDIM .. 1 DDPM.
        sampler: "ddim", "euler" or "dpm-solver++"; only DDIM has an eta. callback: gets the DDIMState of every step.
        None means the model's own default. Raises ValueError for what is no text or out of range, before any work.
        """
        run = _Run(
            self.model, prompt, negative_prompt,
            steps, guidance_scale, guidance_until, seed, num_images, width, height, eta, sampler, callback,
        )  # fmt: skip
        return run.result(run.denoise(run.x_T, run.timesteps))

    @torch.inference_mode()
    def image_to_image(
        self, image: Image.Image, prompt: str, negative_prompt: str = "", *, strength: float = 0.75, **settings
    ) -> Result:
        """Draw over a picture: noise its latent as far as `strength` says, and take the noise away again.

        image: of any size and mode; its middle is cut out and resized to width x height.
        strength: up to 1, which leaves hardly anything of the picture; int(strength · steps) steps are taken. They may
            all lie below guidance_until: then a scale above 1 acts as 1.
        settings: text_to_image's keywords. Raises ValueError as it does, and for an image that cannot be used.
        """
        run = _Run(self.model, prompt, negative_prompt, **settings)
        timesteps = last_timesteps(run.timesteps, strength)
        x0 = run.encode(fit_image(image, run.width, run.height))
        x = q_sample(x0, timesteps[-1:], run.x_T, self.model.schedule)
        return run.result(run.denoise(x, timesteps))

    @torch.inference_mode()
    def inpaint(
        self,
        image: Image.Image,
        mask: Image.Image,
        prompt: str,
        negative_prompt: str = "",
        *,
        strength: float = 1.0,
        paste_back: bool = False,
        **settings,
    ) -> Result:
        """Draw a part of a picture anew; before each step the rest is put back, as noisy as the step expects it.

        image: as in image_to_image. mask: of the same size; white is redrawn, black is kept.
        strength: at 1 the redrawn part starts from noise alone, below 1 from the picture as in image_to_image.
        paste_back: keep the picture's own pixels where the mask is black, instead of what the VAE makes of them.
        settings: text_to_image's keywords. Raises ValueError as it does, and for images that cannot be used.
        """
        run, schedule = _Run(self.model, prompt, negative_prompt, **settings), self.model.schedule
        timesteps = last_timesteps(run.timesteps, strength)
        picture, mask = fit_image(image, run.width, run.height), fit_mask(mask, image, run.width, run.height)
        keep = keep_mask(mask, self.model.config.vae.downsampling).to(run.x_T.device)
        x0 = run.encode(picture)

        def blend(x: Tensor, t: Tensor) -> Tensor:
            return keep * q_sample(x0, t, run.noise(x), schedule) + (1.0 - keep) * x

        x = run.x_T if strength == 1 else q_sample(x0, timesteps[-1:], run.x_T, schedule)
        x = run.denoise(x, timesteps, blend)
        result = run.result(keep * x0 + (1.0 - keep) * x)
        if not paste_back:
            return result
        return replace(result, images=[Image.composite(drawn, picture, mask) for drawn in result.images])


class _Run:
    """What text to image, image to image and inpainting have in common. Refuses what is out of range."""

    def __init__(
        self, model, prompt, negative_prompt, steps=None, guidance_scale=None, guidance_until=None, seed=0,
        num_images=1, width=None, height=None, eta=None, sampler="ddim", callback=None,
    ):  # fmt: skip
        if not isinstance(prompt, str) or not isinstance(negative_prompt, str):
            raise ValueError(f"prompt and negative prompt must be text, got {prompt!r} and {negative_prompt!r}")
        config, defaults = model.config, model.config.defaults
        steps = defaults.steps if steps is None else steps
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        until = defaults.guidance_until if guidance_until is None else guidance_until
        width = defaults.image_size if width is None else width
        height = defaults.image_size if height is None else height
        eta = (defaults.eta if sampler == "ddim" else 0.0) if eta is None else eta
        whole = {"steps": steps, "guidance_until": until, "seed": seed, "num_images": num_images}
        for name, value in {**whole, "width": width, "height": height}.items():
            if not isinstance(value, Integral):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        multiple = config.size_multiple
        if width < 1 or height < 1 or width % multiple or height % multiple:
            raise ValueError(f"width and height must be positive multiples of {multiple}, got {width} x {height}")
        if sampler not in SAMPLERS:
            raise ValueError(f"there is no sampler {sampler!r}: give {', '.join(SAMPLERS)}")
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must lie between 0 and 1, got {eta}")
        if eta > 0 and sampler != "ddim":
            raise ValueError(f"eta is DDIM's, {sampler} adds no fresh noise: leave it at 0, got {eta}")
        if num_images < 1:
            raise ValueError(f"the number of images must be at least 1, got {num_images}")
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"the guidance scale must be a number of 0 or more, got {scale}")
        if not 0 <= until <= 1000:
            raise ValueError(f"guidance_until must lie between 0 and 1000, got {until}")
        self.model, self.prompts, self.guidance = model, [prompt, negative_prompt], (scale, until)
        self.width, self.height, self.eta, self.sampler, self.callback = width, height, eta, sampler, callback
        self.timesteps = sampler_timesteps(sampler, steps, model.schedule)
        self.generators = image_generators(int(seed), num_images)
        x_T = initial_noise(self.generators, height, width, config.unet.in_channels, config.vae.downsampling)
        self.x_T = x_T.to(next(model.parameters()).device)

    def noise(self, x: Tensor) -> Tensor:
        """Fresh unit noise of x's shape, each image's from its own generator."""
        return draw_noise(self.generators, x.shape[1:]).to(x.device)

    def encode(self, picture: Image.Image) -> Tensor:
        """An RGB image -> for each image of the run a latent drawn from the encoder's answer, [b, 4, h/8, w/8]."""
        posterior = self.model.first_stage_model.encode(to_tensor(picture).to(self.x_T.device))
        return self.model.config.scale_factor * torch.cat([posterior.sample(each) for each in self.generators])

    def denoise(self, x: Tensor, timesteps: Tensor, blend: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """Take the noise out of x [b, 4, h/8, w/8], which has as much of it as the last time step says."""
        model, shape, (scale, until) = self.model, (len(x), -1, -1), self.guidance
        if self.prompts[1] and (scale == 1 or (scale > 1 and timesteps.max() < until)):
            where = "at scale 1" if scale == 1 else f"below guidance_until, {until},"
            warnings.warn(f"{where} the negative prompt has no effect", stacklevel=4)  # past inference_mode, too
        cond, uncond = model.get_learned_conditioning(self.prompts).chunk(2)

        def apply_model(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            # of one picture, guidance asks about the same latent twice: the UNet takes it once, with both texts
            return model.apply_model(x[:1], t[:1], context) if shape[0] == 1 else model.apply_model(x, t, context)

        eps_model = GuidedModel(apply_model, cond.expand(shape), uncond.expand(shape), *self.guidance)
        fresh = {"eta": self.eta, "noise": self.noise} if self.sampler == "ddim" else {}
        sample = SAMPLERS[self.sampler]
        for state in sample(eps_model, x, model.schedule, timesteps=timesteps, blend=blend, **fresh):
            if self.callback:
                self.callback(state)
        return state.x_prev

    def result(self, latents: Tensor) -> Result:
        if not latents.isfinite().all():
            raise ValueError("the latents grew beyond all numbers: give a smaller guidance scale, or use float32")
        images = to_images(self.model.decode_first_stage(latents))
        return Result(images, latents, [generator.initial_seed() for generator in self.generators])


def fastest_device() -> str:
    """ "cuda" or "mps" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without it half precision is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
