"""What all tests share: no network beyond this machine, and a small model with random weights."""

import ipaddress
import os
import socket

# read when the hub's libraries are imported, here and in every subprocess a test starts
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch

from sd_teach.checkpoint import save_model
from sd_teach.diffusion import Defaults, LatentDiffusion, ModelConfig
from sd_teach.pipeline import StableDiffusion, cpu_has_bf16
from sd_teach.text_encoder import TextConfig
from sd_teach.unet import UNetConfig
from sd_teach.vae import VAEConfig

# 8 x 8 latents of 64 x 64 pictures; sides are multiples of 8 (VAE) x 2 (UNet) = 16
SMALL = ModelConfig(
    text=TextConfig(hidden_size=4, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2),
    unet=UNetConfig(
        model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(1, 2), num_heads=2,
        context_dim=4, norm_groups=4,
    ),
    vae=VAEConfig(ch=4, ch_mult=(1, 1, 2, 2), num_res_blocks=1, norm_groups=2),
    scale_factor=0.5,
    defaults=Defaults(image_size=64, steps=5, guidance_scale=3.0),
)  # fmt: skip


# the library refuses bfloat16 there, too; PyTorch has no kernels for some of it, and rounds more often in the rest
needs_bf16 = pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU does not multiply bfloat16")


class NetworkBlocked(RuntimeError):
    """Not an OSError: code that retries or falls back on network trouble must not hide it."""


def _refuse_unless_local(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    try:
        local = name in (None, "", "localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = False
    if not local:
        raise NetworkBlocked(f"a test tried to reach {name!r}: the network is blocked, loopback is not")


@pytest.fixture(scope="session", autouse=True)
def network_block():
    """Connections and look-ups of anything but loopback raise NetworkBlocked (in this process; see test_offline)."""

    def guarded(method):
        def call(sock, address, *rest):
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                _refuse_unless_local(address[0])
            return method(sock, address, *rest)

        return call

    look_up = socket.getaddrinfo

    def guarded_look_up(host, *args, **kwargs):
        _refuse_unless_local(host)
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        # a proxy on loopback would be a way out
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        yield


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    """Unit Gaussian numbers of a seed, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomize(module: torch.nn.Module, seed: int = 0, gain: float = 1.5) -> torch.nn.Module:
    """Draw every parameter, so that no zero-initialised layer hides what comes before it; returns module.

    gain: how much a layer makes of what comes in; at 1.0 answers keep about unit variance, prompts hardly change them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                values = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim == 1:  # biases, and the factors of norms
                    values = 0.2 * values + (1.0 if "Norm" in type(part).__name__ and name == "weight" else 0.0)
                elif not isinstance(part, torch.nn.Embedding):
                    values *= gain / parameter[0].numel() ** 0.5
                parameter.copy_(values)
    return module


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """The small model as save_model writes it; do not change it, copy it."""
    folder = tmp_path_factory.mktemp("model") / "small"
    save_model(randomize(LatentDiffusion(SMALL)), folder)
    return folder


@pytest.fixture(scope="session")
def sd(small_folder):
    """The small model, loaded; do not change it."""
    return StableDiffusion.from_pretrained(small_folder, "cpu")
