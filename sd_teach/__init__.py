"""Dissecting Stable Diffusion: the text-to-image path of Stable Diffusion v1.5 in modules one can read in an afternoon.

The pipeline's numbered steps, and the module of each:

1. prompt -> text states          text_encoder
2. seed -> initial noise          noise
3. steps from noise to latent     ddim
4. two predictions into one       guidance
5. latent, t, text -> noise       unet (and attention)
6. latent -> picture              vae
7. all of it                      pipeline
"""

from pathlib import Path

__version__ = "0.1.0"
ASSETS = Path(__file__).resolve().parents[1] / "assets"


def __getattr__(name: str):
    # lazy, because torch and transformers take seconds to import and `--help` should not wait for them
    if name == "StableDiffusion":
        from sd_teach.pipeline import StableDiffusion

        return StableDiffusion
    raise AttributeError(f"module 'sd_teach' has no attribute '{name}'")
