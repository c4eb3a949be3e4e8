"""Step 4 of the pipeline: two predictions, with and without the prompt, into one that follows the prompt more.

Shape letters: b batch, c, h, w sides of the latent, n token slots, d width of the text states.
Ho & Salimans 2022, https://arxiv.org/abs/2207.12598; their weight w is scale - 1 here.
Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724: guidance in a part of the steps only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def classifier_free_guidance(eps_uncond: Tensor, eps_cond: Tensor, scale: float) -> Tensor:
    """eps_uncond + scale (eps_cond - eps_uncond): 0 ignores the prompt, 1 follows it, more exaggerates it.

    All tensors [b, c, h, w].
    """
    return eps_uncond + scale * (eps_cond - eps_uncond)


@dataclass(frozen=True)
class GuidedModel:
    """An eps_model for ddim_sample: (x [b, c, h, w], t [b], all equal) -> guided noise prediction [b, c, h, w].

    apply_model: (x, t, context) -> predicted noise, any batch size.
    cond, uncond: text states [b, n, d] of the prompts and the negative prompts.
    scale: guidance factor; at 1 the unconditional half is not computed.
    until: below this time step no scale is above 1; 0 guides to the end.
    """

    apply_model: Callable[[Tensor, Tensor, Tensor], Tensor]
    cond: Tensor
    uncond: Tensor
    scale: float
    until: int = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        scale = min(self.scale, 1.0) if self.until and t[0] < self.until else self.scale
        if scale == 1.0:
            return self.apply_model(x, t, self.cond)
        # one call for both, the unconditional half first
        context = torch.cat([self.uncond, self.cond])
        eps_uncond, eps_cond = self.apply_model(torch.cat([x, x]), torch.cat([t, t]), context).chunk(2)
        return classifier_free_guidance(eps_uncond, eps_cond, scale)
