"""Step 1 of the pipeline: a prompt becomes 77 vectors, one for each token slot.

Shape letters: b batch, n = 77 token slots, d width of the text states.
The network is CLIP's text transformer (Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 2.4), frozen.
"""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sd_teach import ASSETS

LAYERS = ("last", "pooled", "hidden")


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text encoder; the defaults are Stable Diffusion v1.5's, CLIP ViT-L/14 (123,060,480 parameters)."""

    vocab_size: int = 49408
    hidden_size: int = 768  # d
    intermediate_size: int = 3072  # of the MLP in each layer
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77  # n
    hidden_act: str = "quick_gelu"  # x · sigmoid(1.702 x); the UNet's GEGLU uses the exact gelu


class FrozenCLIPEmbedder(nn.Module):
    """Prompts -> text states [b, 77, d], by CLIP's tokenizer and text transformer; its weights never train.

    config: sizes; the default is Stable Diffusion v1.5.
    layer: "last" (after the final LayerNorm, what Stable Diffusion uses), "pooled" (the state of the end token,
        [b, 1, d]) or "hidden" (the output of one layer, before the final LayerNorm).
    layer_idx: for "hidden" only: 0 is the embeddings, 12 the last layer's output, negative counts from the end.
    tokenizer: folder with vocab.json and merges.txt; the bundled one is CLIP's own.

    Raises ValueError for an unknown layer, or a layer_idx that is missing, superfluous or out of range.
    """

    def __init__(
        self,
        config: TextConfig = TextConfig(),
        layer: str = "last",
        layer_idx: int | None = None,
        tokenizer: Path = ASSETS / "tokenizer",
    ):
        super().__init__()
        depth = config.num_hidden_layers
        if layer not in LAYERS:
            raise ValueError(f"layer must be one of {', '.join(LAYERS)}, got {layer!r}")
        if (layer == "hidden") != (layer_idx is not None):
            raise ValueError("layer_idx goes with layer='hidden', and only with it")
        if layer_idx is not None and not -depth - 1 <= layer_idx <= depth:
            raise ValueError(f"layer_idx must lie between {-depth - 1} and {depth}, got {layer_idx}")
        self.config, self.layer, self.layer_idx = config, layer, layer_idx
        self.tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer))
        clip = CLIPTextModel(
            CLIPTextConfig(**asdict(config), bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
        )
        # a buffer that no checkpoint holds: made on the CPU even where the network is built on the meta device
        positions = torch.arange(config.max_position_embeddings, device="cpu")[None]
        clip.embeddings.register_buffer("position_ids", positions, persistent=False)
        self.transformer = nn.ModuleDict({"text_model": clip})  # the dict gives the checkpoint's names
        self.requires_grad_(False).eval()

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids [b, 77]: start token, the prompt's byte pairs, end tokens up to the last slot.

        A prompt of more than 75 tokens is cut; a UserWarning names the words that were dropped.
        """
        n = self.config.max_position_embeddings
        rows = []
        for prompt in prompts:
            ids = self.tokenizer(prompt, verbose=False).input_ids
            if len(ids) > n:
                dropped = self.tokenizer.decode(ids[n - 1 : -1])
                warnings.warn(f"the prompt has more than {n - 2} tokens; dropped: {dropped!r}", stacklevel=2)
                ids = ids[: n - 1] + ids[-1:]
            rows.append(ids + [self.tokenizer.pad_token_id] * (n - len(ids)))
        return torch.tensor(rows)

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Token ids [b, 77] -> states [b, 77, d], or [b, 1, d] for layer "pooled"."""
        output = self.transformer["text_model"](input_ids=ids, output_hidden_states=self.layer == "hidden")
        if self.layer == "last":
            return output.last_hidden_state
        if self.layer == "pooled":
            return output.pooler_output[:, None]
        return output.hidden_states[self.layer_idx]

    def forward(self, prompts: list[str]) -> Tensor:
        """Prompts -> states [b, 77, d], or [b, 1, d] for layer "pooled"."""
        device = self.transformer["text_model"].embeddings.token_embedding.weight.device
        return self.encode_tokens(self.tokenize(prompts).to(device))
