"""Exchange with diffusers: their pipeline runs our folders to the same picture, and gives our tensors back."""

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from conftest import SMALL, randomize
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from sd_teach import exchange
from sd_teach.ddim import ddim_timesteps
from sd_teach.diffusion import Defaults, LatentDiffusion, ModelConfig
from sd_teach.exchange import export_diffusers, import_diffusers
from sd_teach.noise import ScheduleConfig
from sd_teach.pipeline import StableDiffusion
from sd_teach.text_encoder import FrozenCLIPEmbedder, TextConfig
from sd_teach.unet import UNetConfig
from sd_teach.vae import VAEConfig

MINIATURE = ModelConfig(
    text=TextConfig(hidden_size=96, intermediate_size=288, num_hidden_layers=3, num_attention_heads=4),
    unet=UNetConfig(
        model_channels=64, channel_mult=(1, 2, 4), num_res_blocks=1, attention_resolutions=(1, 2, 4), num_heads=4,
        context_dim=96,
    ),
    vae=VAEConfig(ch=16, ch_mult=(1, 2, 4, 8), num_res_blocks=1, norm_groups=8),
    scale_factor=0.3,
    defaults=Defaults(image_size=128),
)  # fmt: skip
# other than SMALL, the miniature and SD v1.5 in what these have in common
ODD = replace(
    SMALL,
    text=replace(SMALL.text, hidden_act="gelu"),
    unet=replace(
        SMALL.unet, channel_mult=(1, 2, 3), num_res_blocks=2, attention_resolutions=(1, 4), transformer_depth=2
    ),
    schedule=ScheduleConfig(beta_start=0.0005, beta_end=0.01),
)
UNET, VAE, TEXT = (
    f"{part}/{file}"
    for part, file in (
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    )
)


def random_model(config: ModelConfig) -> LatentDiffusion:
    model = randomize(LatentDiffusion(config)).eval().requires_grad_(False)
    answer = model.model.diffusion_model.out[2]
    answer.weight *= 0.1  # random answers as large as the latent would carry a run far away
    return model


def same_tensors(one: LatentDiffusion, other: LatentDiffusion) -> bool:
    """To the bit, dtype included."""
    a, b = one.state_dict(), other.state_dict()
    bits = {2: torch.int16, 4: torch.int32}
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(*(x[k].contiguous().view(bits[x[k].itemsize]) for x in (a, b)))
        for k in a
    )


@pytest.fixture(scope="module")
def small():
    return random_model(SMALL)


@pytest.fixture
def folder(small, tmp_path):
    """The small model, exported; free to be spoilt."""
    export_diffusers(small, tmp_path / "small")
    return tmp_path / "small"


def rewrite(path: Path, rename=lambda name: name, **changed: torch.Tensor) -> None:
    """Write a weights file again with other names, and with the tensors of `changed` (None: without them)."""
    state = {rename(name): tensor for name, tensor in load_file(path).items()} | changed
    save_file({name: tensor.clone() for name, tensor in state.items() if tensor is not None}, path, {"format": "pt"})


def set_json(path: Path, **changed: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


# --- diffusers agrees ---


@pytest.mark.parametrize("config", [SMALL, MINIATURE, ODD], ids=["small", "miniature", "odd"])
def test_diffusers_runs_the_exported_folder_to_the_same_picture(config, tmp_path):
    ours = StableDiffusion(random_model(config))
    export_diffusers(ours.model, tmp_path / "model")
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    theirs.set_progress_bar_config(disable=True)

    result = ours.text_to_image("a cat on a blue background", steps=20, guidance_scale=7.5, seed=3)
    side = config.defaults.image_size // 8
    x_T = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(3))
    latents = []
    picture = theirs(
        "a cat on a blue background", negative_prompt="", num_inference_steps=20, guidance_scale=7.5, latents=x_T,
        output_type="pil", callback_on_step_end=lambda pipe, step, t, kept: latents.append(kept["latents"]) or {},
    ).images[0]  # fmt: skip
    assert 1 < result.latents.std() < 20
    assert_close(result.latents, latents[-1], rtol=0, atol=1e-4)
    pixels, their_pixels = (numpy.asarray(image).astype(int) for image in (result.images[0], picture))
    assert pixels.std() > 10
    assert abs(pixels - their_pixels).max() <= 1


def test_the_scheduler_is_ours_without_the_corrections_that_the_pipeline_makes(small, folder):
    theirs = DDIMScheduler.from_pretrained(folder / "scheduler")
    theirs.set_timesteps(20)
    assert theirs.timesteps.tolist() == ddim_timesteps(20).flip(0).tolist()
    assert_close(theirs.alphas_cumprod, small.schedule.alphas_cumprod, rtol=2e-6, atol=0)
    assert theirs.final_alpha_cumprod == theirs.alphas_cumprod[0]
    assert not theirs.config.clip_sample


@torch.no_grad()
def test_diffusers_encodes_and_decodes_to_the_same_numbers(small, folder):
    ours, theirs = small.first_stage_model, AutoencoderKL.from_pretrained(folder / "vae")
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 3, 32, 32, generator=generator), torch.randn(2, 4, 4, 4, generator=generator)
    encoded, decoded = ours.encode(x), ours.decode(z)
    for mine, other in (
        (encoded.mode(), theirs.encode(x).latent_dist.mode()),
        (encoded.logvar, theirs.encode(x).latent_dist.logvar),
        (decoded, theirs.decode(z).sample),
    ):
        assert mine.std() > 0.1
        assert_close(mine, other, rtol=0, atol=1e-5)


def test_every_name_and_shape_of_the_full_model_is_one_of_diffusers():
    with torch.device("meta"):
        model = LatentDiffusion()
        settings = exchange.diffusers_settings(model.config)
        theirs = {
            "unet": UNet2DConditionModel.from_config(settings["unet"]),
            "vae": AutoencoderKL.from_config(settings["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**settings["text_encoder"])),
        }
    names = exchange.tensor_names(model)
    assert sum(len(part) for part in names.values()) == len(model.state_dict()) == 1130
    for part, network in theirs.items():
        ours = model.get_submodule(exchange.PARTS[part][0]).state_dict()
        listed = {
            theirs.removeprefix("text_model."): exchange._as_theirs(part, name, torch.empty(ours[name].shape)).shape
            for name, theirs in names[part].items()
        }
        assert names[part].keys() == ours.keys()
        assert listed == {name: tensor.shape for name, tensor in network.state_dict().items()}


# --- there and back ---


@pytest.mark.parametrize("config", [SMALL, MINIATURE, ODD], ids=["small", "miniature", "odd"])
def test_there_and_back_keeps_every_byte_and_the_config(config, tmp_path):
    model = random_model(config)
    export_diffusers(model, tmp_path / "model")
    back = import_diffusers(tmp_path / "model")
    assert same_tensors(back, model)
    assert set(back.config.unet.attention_resolutions) == set(config.unet.attention_resolutions)
    unet = replace(back.config.unet, attention_resolutions=config.unet.attention_resolutions)
    assert replace(back.config, unet=unet) == config
    export_diffusers(back, tmp_path / "again")
    for file in (UNET, VAE, TEXT):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "model" / file).read_bytes()


def change_index(folder, change):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_what_a_run_does_unless_told_otherwise_travels(tmp_path):
    own = Defaults(image_size=SMALL.defaults.image_size, steps=7, guidance_scale=2.5, guidance_until=300, eta=0.5)
    export_diffusers(random_model(replace(SMALL, defaults=own)), tmp_path / "model")
    assert import_diffusers(tmp_path / "model").config.defaults == own
    change_index(tmp_path / "model", lambda index: index["_sd_teach_defaults"].update(image_size=8))  # the UNet knows
    assert import_diffusers(tmp_path / "model").config.defaults == own
    change_index(tmp_path / "model", lambda index: index.pop("_sd_teach_defaults"))  # as diffusers writes it
    assert import_diffusers(tmp_path / "model").config.defaults == Defaults(image_size=own.image_size)


@pytest.mark.parametrize(
    ("told", "complaint"), [({"steps": "many"}, "Defaults.steps"), ({"speed": 1}, "no field speed"), (7, "an object")]
)
def test_damaged_defaults_are_refused_in_one_line(tmp_path, told, complaint):
    export_diffusers(random_model(SMALL), tmp_path / "model")
    change_index(tmp_path / "model", lambda index: index.update(_sd_teach_defaults=told))
    with pytest.raises(ValueError, match=complaint) as error:
        import_diffusers(tmp_path / "model")
    assert "model_index.json: _sd_teach_defaults" in str(error.value) and "\n" not in str(error.value)


def test_an_imported_model_is_frozen_and_ready_to_run(small, folder):
    back = import_diffusers(folder)
    assert not back.training and not any(module.training for module in back.modules())
    assert not any(parameter.requires_grad for parameter in back.parameters())
    pictures = [StableDiffusion(m).text_to_image("a cat", steps=2).images[0].tobytes() for m in (small, back)]
    assert pictures[0] == pictures[1]


def test_dtypes_and_memory_formats_do_not_get_in_the_way(tmp_path):
    model = random_model(SMALL)
    model.model.to(torch.bfloat16, memory_format=torch.channels_last)
    model.cond_stage_model.half()
    export_diffusers(model, tmp_path / "model")
    assert same_tensors(import_diffusers(tmp_path / "model"), model)


def test_the_folder_diffusers_saves_gives_the_same_tensors(small, folder, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "saved")
    assert same_tensors(import_diffusers(tmp_path / "saved"), small)
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / f"{UNET}.index.json").exists()
    assert same_tensors(import_diffusers(tmp_path / "shards"), small)


def test_a_vae_that_does_not_tell_its_scaling_factor_has_stable_diffusions(folder):
    path = folder / "vae/config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "scaling_factor"}))
    assert import_diffusers(folder).config.scale_factor == 0.18215
    assert AutoencoderKL.from_pretrained(path.parent).config.scaling_factor == 0.18215


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (replace(SMALL, vae=replace(SMALL.vae, ch_mult=(2, 2, 2, 2))), r"vae\.ch = 4"),
        (replace(SMALL, unet=replace(SMALL.unet, channel_mult=(2, 4))), r"unet\.model_channels = 8"),
        (replace(SMALL, defaults=Defaults(image_size=60)), r"defaults\.image_size = 60"),
    ],
)
def test_sizes_that_would_come_back_as_others_are_refused(config, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        export_diffusers(random_model(config), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_new_folder_that_cannot_take_its_place_leaves_the_old_one(small, folder, monkeypatch):
    rename = Path.rename

    def busy(self, target):
        if self.name.endswith(".new"):
            raise OSError("Device or resource busy")
        return rename(self, target)

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(ValueError, match="small: Device or resource busy"):
        export_diffusers(small, folder)
    assert before == {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}


# --- older folders ---


def old_vae(name: str) -> str:
    for today, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f"attentions.0.{today}.", f"attentions.0.{old}.")
    return name


def make_linear(folder: Path) -> None:
    state = load_file(folder / UNET)
    flat = {name: t.flatten(1) for name, t in state.items() if ".proj_" in name and t.ndim == 4}
    assert len(flat) == 14
    rewrite(folder / UNET, **flat)
    set_json(folder / "unet/config.json", use_linear_projection=True)


OLDER = {
    "attention of the VAE by its old names": lambda folder: rewrite(folder / VAE, old_vae),
    "projections of the UNet by linear layers": make_linear,
    "text encoder without prefix": lambda folder: rewrite(folder / TEXT, lambda name: name.removeprefix("text_model.")),
    "text encoder with position ids": lambda folder: rewrite(
        folder / TEXT, **{"text_model.embeddings.position_ids": torch.arange(77)[None]}
    ),
}


@pytest.mark.parametrize("change", OLDER.values(), ids=OLDER.keys())
def test_older_ways_of_saying_the_same_are_understood(change, small, folder):
    before = [(folder / file).read_bytes() for file in (UNET, VAE, TEXT)]
    change(folder)
    assert before != [(folder / file).read_bytes() for file in (UNET, VAE, TEXT)]
    assert same_tensors(import_diffusers(folder), small)
    theirs = StableDiffusionPipeline.from_pretrained(folder)  # and it is something that diffusers says too
    query = small.first_stage_model.encoder.mid.attn_1.q.weight
    assert torch.equal(theirs.vae.encoder.mid_block.attentions[0].to_q.weight, query.flatten(1))


def test_settings_as_terse_as_those_of_sd_v1_5_are_understood(small, folder):
    """The folder beside the real weights is older than many of today's settings, and names PNDM as the sampler."""
    young = {"unet/config.json": exchange.DEFAULTS["unet"], "vae/config.json": exchange.DEFAULTS["vae"]}
    for path, names in young.items():
        settings = json.loads((folder / path).read_text())
        kept = {name: value for name, value in settings.items() if name not in names or name == "scaling_factor"}
        (folder / path).write_text(json.dumps(kept | {"_diffusers_version": "0.6.0"}))
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    sampler = {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None}
    (folder / "scheduler/scheduler_config.json").write_text(
        json.dumps({"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0"} | betas | sampler)
    )
    set_json(
        folder / "model_index.json",
        scheduler=["diffusers", "PNDMScheduler"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    set_json(folder / "text_encoder/config.json", bos_token_id=0, eos_token_id=2, dropout=0.0, torch_dtype="float32")
    flags = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = (flags | {"content": token} for token in ("<|startoftext|>", "<|endoftext|>"))
    set_json(
        folder / "tokenizer/tokenizer_config.json", bos_token=start, eos_token=end, unk_token=end, errors="replace"
    )
    assert same_tensors(import_diffusers(folder), small)


# --- refusals ---


@pytest.mark.parametrize(
    ("file", "setting", "value"),
    [
        ("model_index.json", "_class_name", "StableDiffusionXLPipeline"),
        ("model_index.json", "unet", ["diffusers", "UNet2DModel"]),
        ("model_index.json", "text_encoder", ["transformers", "CLIPTextModelWithProjection"]),
        ("model_index.json", "scheduler", ["diffusers", "EulerDiscreteScheduler"]),
        ("model_index.json", "image_encoder", ["transformers", "CLIPVisionModelWithProjection"]),
        ("model_index.json", "clip_skip", 2),
        ("scheduler/scheduler_config.json", "beta_schedule", "linear"),
        ("scheduler/scheduler_config.json", "beta_start", "0.00085"),
        ("scheduler/scheduler_config.json", "beta_end", 0.0),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1, 0.2]),
        ("scheduler/scheduler_config.json", "prediction_type", "v_prediction"),
        ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", True),
        ("scheduler/scheduler_config.json", "timestep_spacing", "trailing"),
        ("scheduler/scheduler_config.json", "clip_sample", True),
        ("scheduler/scheduler_config.json", "thresholding", True),
        ("scheduler/scheduler_config.json", "steps_offset", 0),
        ("scheduler/scheduler_config.json", "set_alpha_to_one", True),
        ("text_encoder/config.json", "hidden_act", "swoosh"),
        ("text_encoder/config.json", "layer_norm_eps", 1e-6),
        ("text_encoder/config.json", "use_attention_mask", True),
        ("text_encoder/config.json", "num_hidden_layers", "2"),
        ("unet/config.json", "act_fn", "gelu"),
        ("unet/config.json", "attention_head_dim", [2, 2]),
        ("unet/config.json", "block_out_channels", [8, 12]),
        ("unet/config.json", "block_out_channels", []),
        ("unet/config.json", "down_block_types", ["CrossAttnDownBlock2D", "AttnDownBlock2D"]),
        ("unet/config.json", "up_block_types", ["UpBlock2D", "CrossAttnUpBlock2D"]),
        ("unet/config.json", "num_class_embeds", 10),
        ("unet/config.json", "resnet_time_scale_shift", "scale_shift"),
        ("unet/config.json", "layers_per_block", True),
        ("vae/config.json", "out_channels", 4),
        ("vae/config.json", "scaling_factor", float("nan")),
        ("vae/config.json", "scaling_factor", float("inf")),
        pytest.param("vae/config.json", "scaling_factor", 10**400, id="scaling_factor-huge"),
        ("vae/config.json", "shift_factor", 0.1),
        ("vae/config.json", "latents_mean", [0.0, 0.0, 0.0, 0.0]),
        ("vae/config.json", "use_quant_conv", False),
    ],
)
def test_settings_that_cannot_be_followed_are_refused_by_name(file, setting, value, folder):
    set_json(folder / file, **{setting: value})
    with pytest.raises(ValueError, match=rf"{file}: {setting} is .*"):
        import_diffusers(folder)


@pytest.mark.parametrize(
    ("file", "setting"), [("scheduler/scheduler_config.json", "clip_sample"), ("unet/config.json", "norm_num_groups")]
)
def test_a_setting_without_a_default_must_be_told(file, setting, folder):
    settings = json.loads((folder / file).read_text())
    del settings[setting]
    (folder / file).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"{file} does not tell {setting}"):
        import_diffusers(folder)


@pytest.mark.parametrize("spoilt", ["", "[]", "{", "\ud800", "[" * 100_000], ids=["", "[]", "{", "no utf-8", "[[["])
@pytest.mark.parametrize("file", exchange.FILES.values())
def test_spoilt_settings_are_refused_by_file(file, spoilt, folder):
    (folder / file).write_bytes(spoilt.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=file):
        import_diffusers(folder)


@pytest.mark.parametrize(
    ("file", "changed", "told"),
    [
        ("unet/config.json", {"norm_num_groups": 3}, r"\(8\) must be divisible by num_groups \(3\)"),
        ("unet/config.json", {"attention_head_dim": 3}, "8 channels cannot be shared by 3 heads"),
        ("text_encoder/config.json", {"num_attention_heads": 3}, r"hidden size \(4\)"),
        ("scheduler/scheduler_config.json", {"beta_end": 2.0}, "beta_end < 1"),
    ],
)
def test_settings_that_fit_no_network_are_refused(file, changed, told, folder):
    set_json(folder / file, **changed)
    with pytest.raises(ValueError, match=f"no network that can be built: .*{told}") as refusal:
        import_diffusers(folder)
    assert str(refusal.value).isprintable()  # one line


Z = torch.zeros(1)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        (UNET, {"conv_in.weight": None}, "1 missing: conv_in.weight"),
        (UNET, {"conv_in.lora": Z}, "1 unexpected: conv_in.lora"),
        (UNET, {"conv_in.bias": Z}, r"1 of the wrong shape: conv_in.bias \[1\] instead of \[8\]"),
        (UNET, {"conv_in.bias": torch.zeros(8, dtype=torch.int32)}, "conv_in.bias is of I32"),
        (VAE, {"encoder.mid_block.attentions.0.query.bias": Z}, "attentions.0.to_q.bias twice"),
        (VAE, {"encoder.mid_block.attentions.0.to_q.weight": torch.zeros(8, 9)}, r"to_q.weight \[8, 9, 1, 1\] instead"),
        (VAE, {"decoder.up_blocks.3.resnets.2.conv1.bias": Z}, "unexpected: decoder.up_blocks.3.resnets.2.conv1.bias"),
        (TEXT, {"embeddings.token_embedding.weight": Z}, "text_model.embeddings.token_embedding.weight twice"),
        (TEXT, {"text_projection.weight": Z}, "1 unexpected: text_projection.weight"),
        (TEXT, {"two\nlines": Z}, "1 unexpected: two"),
    ],
)  # fmt: skip
def test_weights_that_are_not_the_model_are_refused_by_name(file, change, told, folder):
    rewrite(folder / file, **change)
    with pytest.raises(ValueError, match=told):
        import_diffusers(folder)


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
def test_damaged_or_missing_weights_are_refused_by_file(file, folder):
    whole = (folder / file).read_bytes()
    for damaged in (whole[:-1], b"\xff" * 100):
        (folder / file).write_bytes(damaged)
        with pytest.raises(ValueError, match=file):
            import_diffusers(folder)
    (folder / file).unlink()
    with pytest.raises(ValueError, match=file.replace("/", " lacks ")):
        import_diffusers(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(folder, number):
    tensors = load_file(folder / UNET)
    tensors["conv_out.bias"][1] = number
    save_file(tensors, folder / UNET)
    with pytest.raises(ValueError, match=r"unet: conv_out\.bias has numbers that torch\.float32 cannot hold"):
        import_diffusers(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pad_token": "!"}, "another pad_token"),
        ({"model_max_length": 64}, "another model_max_length"),
    ],
)
def test_another_tokenizer_is_refused_by_what_differs(change, told, folder):
    set_json(folder / "tokenizer/tokenizer_config.json", **change)
    with pytest.raises(ValueError, match=told):
        import_diffusers(folder)


def test_a_tokenizer_with_other_words_is_refused(folder):
    merges = (folder / "tokenizer/merges.txt").read_text().splitlines()
    merges[1], merges[2] = merges[2], merges[1]
    (folder / "tokenizer/merges.txt").write_text("\n".join(merges) + "\n")
    with pytest.raises(ValueError, match=r"another merges$"):
        import_diffusers(folder)


def test_a_folder_without_a_tokenizer_is_refused(folder):
    (folder / "tokenizer").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match="tokenizer is missing"):
        import_diffusers(folder)


# --- writing ---


def test_a_diffusers_folder_is_replaced_as_a_whole(small, folder):
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").touch()
    export_diffusers(small, folder)
    assert not (folder / "unet/diffusion_pytorch_model.fp16.safetensors").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_model_can_be_exported_to_the_folder_its_weights_are_mapped_from(small, folder):
    export_diffusers(import_diffusers(folder), folder)
    assert same_tensors(import_diffusers(folder), small)


def test_an_empty_folder_and_a_new_path_are_filled(small, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "path"):
        export_diffusers(small, folder)
        assert (folder / "model_index.json").exists()


def test_anything_else_is_left_as_it_is(small, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("reader")
    (tmp_path / "file").write_text("reader")
    for path in (tmp_path / "letters", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=path.name):
            export_diffusers(small, path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "file",
        "letters",
        "letters/dear.txt",
    ]
    assert (tmp_path / "letters" / "dear.txt").read_text() == (tmp_path / "file").read_text() == "reader"


def test_a_write_that_breaks_off_leaves_the_old_folder(small, folder, monkeypatch):
    def disk_full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(exchange, "save_file", disk_full)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="small: No space left"):
        export_diffusers(small, folder)
    assert before == {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}


def test_everyone_may_read_what_was_exported(folder):
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_a_model_that_diffusers_settings_cannot_describe_is_refused(tmp_path):
    model = random_model(SMALL)
    model.cond_stage_model = FrozenCLIPEmbedder(SMALL.text, layer="hidden", layer_idx=1)
    with pytest.raises(ValueError, match="layer 'hidden'"):
        export_diffusers(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_field_of_the_config_that_finds_no_place_in_the_settings_is_refused_by_name(small, tmp_path, monkeypatch):
    monkeypatch.delitem(exchange.FIELDS["unet"], "norm_groups")
    with pytest.raises(ValueError, match=r"unet\.norm_groups = 4"):
        export_diffusers(small, tmp_path / "model")
