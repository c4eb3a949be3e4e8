"""The seven ways in which LDM's DiffusionWrapper hands conditions to the UNet; Stable Diffusion uses "crossattn" alone.

Shape letters: b batch, h and w sides of the latent, n token slots, d width of the context.
Rombach et al. 2022, https://arxiv.org/abs/2112.10752, section 3.3.
"""

import torch
from torch import Tensor

from sd_teach.diffusion import DiffusionWrapper
from sd_teach.unet import UNetModel

# conditioning key -> the conditions it takes
CONDITIONS = {
    None: set(),
    "concat": {"c_concat"},
    "crossattn": {"c_crossattn"},
    "hybrid": {"c_concat", "c_crossattn"},
    "adm": {"c_crossattn"},  # labels, all the same
    "hybrid-adm": {"c_concat", "c_crossattn", "c_adm"},
    "crossattn-adm": {"c_crossattn", "c_adm"},
}


class ConditioningWrapper(DiffusionWrapper):
    """DiffusionWrapper with a conditioning key. Raises ValueError for a key there is none of.

    diffusion_model: a UNet that takes what the key hands on: context where it says crossattn or hybrid, labels y where
    it says adm, and the channels of c_concat beside the latent's.
    """

    def __init__(self, diffusion_model: UNetModel, conditioning_key: str | None = "crossattn"):
        super().__init__(diffusion_model)
        if conditioning_key not in CONDITIONS:
            raise ValueError(f"there is no conditioning key {conditioning_key!r}: give one of {list(CONDITIONS)}")
        self.conditioning_key = conditioning_key

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: list[Tensor] | None = None,
        c_crossattn: list[Tensor] | None = None,
        c_adm: Tensor | None = None,
    ) -> Tensor:
        """x: [b, 4, h, w]; t: [b]. Returns the predicted noise, [b, 4, h, w].

        c_concat: pictures or latents [b, c_i, h, w], joined to x along its channels.
        c_crossattn: text states [b, n_i, d], joined along n; with the key "adm" a list of the labels [b] alone.
        c_adm: labels [b].
        Raises ValueError for a condition that is missing, or that the key does not take.
        """
        given = {"c_concat": c_concat, "c_crossattn": c_crossattn, "c_adm": c_adm}
        given = {name: condition for name, condition in given.items() if condition is not None}
        wanted = CONDITIONS[self.conditioning_key]
        if given.keys() != wanted:
            raise ValueError(f"{self.conditioning_key} takes {sorted(wanted) or 'nothing'}, got {sorted(given)}")
        if self.conditioning_key == "adm":
            return self.diffusion_model(x, t, y=c_crossattn[0])
        inputs = {}
        if c_crossattn is not None:
            inputs["context"] = torch.cat(c_crossattn, dim=1)
        if c_adm is not None:
            inputs["y"] = c_adm
        return self.diffusion_model(torch.cat([x, *(c_concat or [])], dim=1), t, **inputs)
