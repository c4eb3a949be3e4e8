"""Exchange with diffusers: the same networks under the other library's names, in the other library's folder.

A diffusers folder holds the three networks apart (unet/, vae/, text_encoder/), the tokenizer, a scheduler, and JSON
files of settings. Nothing is computed on the way: tensors keep their bytes and dtypes, only names change, and 1 x 1
convolutions may become linear layers of the same numbers.

The default number of steps, guidance scale and eta are arguments there, and the time step at which guidance ends is not
known: they stand in model_index.json under a name that the other library passes over. Not in the model: a safety
checker, and the choice of a sampler (SD v1.5's own folder asks for PNDM; here the same model runs by DDIM).
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer
from transformers.activations import ACT2FN

from sd_teach.attention import SpatialTransformer
from sd_teach.checkpoint import build_config, check_names, empty_model
from sd_teach.diffusion import Defaults, LatentDiffusion, ModelConfig
from sd_teach.noise import ScheduleConfig
from sd_teach.stored import check_dtypes, check_finite, find_shards, find_tensors, one_line, read_tensors
from sd_teach.text_encoder import TextConfig
from sd_teach.unet import Downsample, ResBlock, UNetConfig, UNetModel, Upsample
from sd_teach.vae import AutoencoderKL, VAEConfig

VERSION = "0.42.1"  # of diffusers, which the tests hold this module to
OUR_DEFAULTS = "_sd_teach_defaults"  # in model_index.json diffusers passes over names that begin with an underscore

# part of the folder -> (name of the network in LatentDiffusion, its file of weights)
PARTS = {
    "unet": ("model.diffusion_model", "diffusion_pytorch_model.safetensors"),
    "vae": ("first_stage_model", "diffusion_pytorch_model.safetensors"),
    "text_encoder": ("cond_stage_model", "model.safetensors"),
}

# --- names: the checkpoint's -> diffusers'; modules that no table holds are called the same ---

UNET_LAYERS = {  # what stands in a block of the UNet; {} is its number within the level
    ResBlock: "resnets.{}",
    SpatialTransformer: "attentions.{}",
    Downsample: "downsamplers.0",
    Upsample: "upsamplers.0",
}
INSIDE = {  # modules within a layer
    "unet": {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
        "op": "conv",
    },
    "vae": {
        "nin_shortcut": "conv_shortcut",
        "norm": "group_norm",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "proj_out": "to_out.0",
    },
    "text_encoder": {},
}
# what diffusers called the attention of the VAE at first, and still reads
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _unet_layers(unet: UNetModel) -> Iterator[tuple[str, str]]:
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    yield from (("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"))
    per_level = unet.config.num_res_blocks + 1  # ResBlocks and one downsampling; on the way up one more ResBlock
    for way, blocks, first in (("input", unet.input_blocks, 1), ("output", unet.output_blocks, 0)):
        for i, block in enumerate(list(blocks)[first:]):
            level, number = divmod(i, per_level)  # up_blocks too are numbered as they run, the coarsest first
            for k, layer in enumerate(block):
                theirs = UNET_LAYERS[type(layer)].format(number)
                yield f"{way}_blocks.{i + first}.{k}", f"{'down' if way == 'input' else 'up'}_blocks.{level}.{theirs}"
    for k, theirs in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"middle_block.{k}", f"mid_block.{theirs}"


def _vae_layers(vae: AutoencoderKL) -> Iterator[tuple[str, str]]:
    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))
    for half in ("encoder", "decoder"):
        yield from ((f"{half}.{name}", f"{half}.{name}") for name in ("conv_in", "conv_out"))
        yield f"{half}.norm_out", f"{half}.conv_norm_out"
        for ours, theirs in (("block_1", "resnets.0"), ("attn_1", "attentions.0"), ("block_2", "resnets.1")):
            yield f"{half}.mid.{ours}", f"{half}.mid_block.{theirs}"
    last = len(vae.config.ch_mult) - 1
    for way, levels in (("encoder.down", vae.encoder.down), ("decoder.up", vae.decoder.up)):
        for level, parts in enumerate(levels):
            # the checkpoint numbers both ways from the finest level, diffusers as they run
            theirs = f"{way}_blocks.{level if way == 'encoder.down' else last - level}"
            yield from ((f"{way}.{level}.block.{i}", f"{theirs}.resnets.{i}") for i in range(len(parts.block)))
            for resample in parts._modules.keys() & {"downsample", "upsample"}:
                yield f"{way}.{level}.{resample}", f"{theirs}.{resample}rs.0"


def tensor_names(model: LatentDiffusion) -> dict[str, dict[str, str]]:
    """Part of the folder -> {the checkpoint's name of a tensor within that network: diffusers' name}, for every tensor.

    Found by walking the networks, so it holds for any config, on the meta device too. The text encoder's names begin
    with `text_model.`: transformers 4 demands that, transformers 5 reads it, though its own modules have lost it.
    """
    layers = {
        "unet": _unet_layers(model.model.diffusion_model),
        "vae": _vae_layers(model.first_stage_model),
        "text_encoder": [("transformer.text_model", "text_model")],
    }
    names = {part: {} for part in PARTS}
    for part, (prefix, _) in PARTS.items():
        network = model.get_submodule(prefix)
        for ours, theirs in layers[part]:
            for name in network.get_submodule(ours).state_dict():
                module, _, leaf = name.rpartition(".")
                inside = INSIDE[part].get(module, module)
                names[part][f"{ours}.{name}"] = ".".join(filter(None, (theirs, inside, leaf)))
    return names


# --- settings ---

# fields that are only called otherwise over there, ours -> theirs
FIELDS = {
    "text_encoder": {name: name for name in asdict(TextConfig())},
    "unet": {
        "in_channels": "in_channels",
        "out_channels": "out_channels",
        "num_res_blocks": "layers_per_block",
        "num_heads": "attention_head_dim",  # so it is called there; it is the number of heads
        "transformer_depth": "transformer_layers_per_block",
        "context_dim": "cross_attention_dim",
        "norm_groups": "norm_num_groups",
    },
    "vae": {
        "in_channels": "in_channels",
        "num_res_blocks": "layers_per_block",
        "z_channels": "latent_channels",
        "norm_groups": "norm_num_groups",
    },
    "scheduler": {"num_timesteps": "num_train_timesteps", "beta_start": "beta_start", "beta_end": "beta_end"},
}
# What the libraries take where a file is silent. Most of it has this one value in every model of ours. The scheduler's
# other settings are not here: their defaults over there belong to another model, so a folder must tell them.
DEFAULTS = {
    "model_index": {},
    "text_encoder": {"layer_norm_eps": 1e-5, "model_type": "clip_text_model"},
    "unet": {
        "act_fn": "silu", "attention_type": "default", "center_input_sample": False, "conv_in_kernel": 3,
        "conv_out_kernel": 3, "downsample_padding": 1, "dropout": 0.0, "flip_sin_to_cos": True, "freq_shift": 0,
        "mid_block_scale_factor": 1.0, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5,
        "resnet_out_scale_factor": 1.0, "resnet_time_scale_shift": "default", "time_embedding_type": "positional",
        "transformer_layers_per_block": 1,
    },
    "vae": {
        "act_fn": "silu", "mid_block_add_attention": True, "scaling_factor": 0.18215, "use_post_quant_conv": True,
        "use_quant_conv": True,
    },
    "scheduler": {"prediction_type": "epsilon", "timestep_spacing": "leading"},
}  # fmt: skip
# May have any value: nothing that is computed here depends on it. Dropout and initial values are for training, token
# ids choose a pooled state that is not used, tiling is off unless asked for, the VAE never runs in half precision.
IGNORED = {
    "model_index": {
        OUR_DEFAULTS, "_diffusers_version", "feature_extractor", "requires_safety_checker", "safety_checker",
    },
    "text_encoder": {
        "attention_dropout", "bos_token_id", "dropout", "dtype", "eos_token_id", "initializer_factor",
        "initializer_range", "pad_token_id", "projection_dim", "torch_dtype", "transformers_version",
    },
    "unet": {"addition_embed_type_num_heads", "use_linear_projection"},
    "vae": {"force_upcast", "sample_size"},
    # limits for clipping and thresholding, which are off; a switch of PNDM
    "scheduler": {"clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "skip_prk_steps"},
}  # fmt: skip
FILES = {part: f"{part}/config.json" for part in PARTS} | {
    "model_index": "model_index.json",
    "scheduler": "scheduler/scheduler_config.json",
}


def diffusers_settings(config: ModelConfig) -> dict[str, dict]:
    """What stands in the JSON files of a diffusers folder: key of FILES -> content."""
    unet, vae = config.unet, config.vae
    attends = [2**level in unet.attention_resolutions for level in range(len(unet.channel_mult))]
    settings = {
        "model_index": {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": VERSION,
            OUR_DEFAULTS: asdict(config.defaults),
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "feature_extractor": [None, None],
            "safety_checker": [None, None],
            "requires_safety_checker": False,
        },
        "text_encoder": {"architectures": ["CLIPTextModel"]},
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": config.defaults.image_size // vae.downsampling,
            "block_out_channels": [unet.model_channels * mult for mult in unet.channel_mult],
            "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            "sample_size": config.defaults.image_size,
            "out_channels": vae.in_channels,
            "block_out_channels": [vae.ch * mult for mult in vae.ch_mult],
            "down_block_types": ["DownEncoderBlock2D"] * len(vae.ch_mult),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae.ch_mult),
            "scaling_factor": config.scale_factor,
        },
        "scheduler": {
            "_class_name": "DDIMScheduler",
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
    }
    ours = {"text_encoder": config.text, "unet": unet, "vae": vae, "scheduler": config.schedule}
    for file, fields in FIELDS.items():
        told = settings[file] | {theirs: getattr(ours[file], name) for name, theirs in fields.items()}
        settings[file] = DEFAULTS[file] | told
    return settings


def model_config(settings: dict[str, dict]) -> ModelConfig:
    """The config that diffusers_settings turns into `settings`, which must hold every name with a value of its kind."""
    plain = {file: {name: settings[file][theirs] for name, theirs in fields.items()} for file, fields in FIELDS.items()}
    unet, vae = settings["unet"], settings["vae"]
    widths, vae_widths = unet["block_out_channels"], vae["block_out_channels"]
    attends = [2**level for level, kind in enumerate(unet["down_block_types"]) if kind.startswith("CrossAttn")]
    defaults = build_config(Defaults, settings["model_index"].get(OUR_DEFAULTS, {}))
    return ModelConfig(
        TextConfig(**plain["text_encoder"]),
        UNetConfig(
            model_channels=widths[0],
            channel_mult=tuple(width // widths[0] for width in widths),
            attention_resolutions=tuple(reversed(attends)),
            **plain["unet"],
        ),
        VAEConfig(ch=vae_widths[0], ch_mult=tuple(width // vae_widths[0] for width in vae_widths), **plain["vae"]),
        ScheduleConfig(**plain["scheduler"]),
        vae["scaling_factor"],
        replace(defaults, image_size=unet["sample_size"] * 2 ** (len(vae_widths) - 1)),
    )


# --- the way there ---


def export_diffusers(model: LatentDiffusion, folder: Path) -> None:
    """Write `folder` so that diffusers.StableDiffusionPipeline.from_pretrained opens it; weights in their own dtypes.

    A diffusers folder that is there already is replaced as a whole. The new one gets its name when it is complete.
    Raises ValueError, and leaves what was there as it was, where `folder` is something else and not empty, where it
    cannot be written, or where diffusers' settings cannot describe the model.
    """
    folder = Path(folder).resolve()  # a link stays, what it points to is replaced
    settings = diffusers_settings(model.config)
    _check_described(model, settings)
    with _new_folder(folder) as new:
        for name, content in settings.items():
            path = new / FILES[name]
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        for part, names in tensor_names(model).items():
            network, file = PARTS[part]
            state = model.get_submodule(network).state_dict()
            tensors = {theirs: _as_theirs(part, ours, state[ours]) for ours, theirs in names.items()}
            save_file(tensors, new / part / file, metadata={"format": "pt"})
            shutil.copymode(new / FILES[part], new / part / file)  # safetensors lets only the owner read its files
        tokenizer = model.cond_stage_model.tokenizer
        (new / "tokenizer").mkdir()
        tokenizer.backend_tokenizer.model.save(str(new / "tokenizer"))  # vocab.json, merges.txt: all versions read them
        told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": model.config.text.max_position_embeddings}
        told |= tokenizer.special_tokens_map
        (new / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(told, indent=2) + "\n")


def _check_described(model: LatentDiffusion, settings: dict[str, dict]) -> None:
    """Raise ValueError where the settings forget something about the model, now or when configs grow."""
    if model.cond_stage_model.layer != "last":
        raise ValueError(f"diffusers cannot be told to use the text encoder's layer {model.cond_stage_model.layer!r}")
    back = model_config(settings)
    for part in ("text", "unet", "vae", "schedule", "defaults"):
        kept = asdict(getattr(back, part))
        for name, value in asdict(getattr(model.config, part)).items():
            # which levels attend is kept, their order in the config means nothing
            if name != "attention_resolutions" and kept[name] != value:
                raise ValueError(f"diffusers' settings cannot describe {part}.{name} = {value!r}")


def _as_theirs(part: str, name: str, tensor: Tensor) -> Tensor:
    if part == "vae" and ".attn_1." in name and tensor.ndim == 4:
        tensor = tensor.flatten(1)  # the VAE attends by 1 x 1 convolutions here, by linear layers there
    return tensor.detach().cpu().contiguous()


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling, which takes the place of `folder` if the block ends well and is gone if it does not."""
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    try:
        known = not folder.exists() or (folder / FILES["model_index"]).is_file()
        if not known and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"{folder} is there already and is no diffusers folder: left as it is")
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot write {folder}: {error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


# --- the way back ---


def import_diffusers(folder: Path) -> LatentDiffusion:
    """Read a diffusers folder of Stable Diffusion 1.x: frozen, in eval mode, its weights mapped from the files.

    Tensors are the files' bytes in the files' dtypes; the VAE wants float32 before it decodes. The names that older
    diffusers and transformers gave some of them are understood. Only `.safetensors` without a variant in the name are
    read, in shards or whole.

    Raises ValueError, naming file and setting or tensor, for anything missing, damaged, unknown or of the wrong shape,
    and for settings that this code cannot follow: another kind of betas, v-prediction, clipping, another tokenizer.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    config = model_config(settings)
    for file, wanted in diffusers_settings(config).items():
        for name in sorted(wanted.keys() - IGNORED[file]):
            if settings[file][name] != wanted[name]:
                raise _refusal(folder / FILES[file], name, settings[file][name], f"only {wanted[name]!r} is understood")
    if config.text.hidden_act not in ACT2FN:
        raise _refusal(folder / FILES["text_encoder"], "hidden_act", config.text.hidden_act, "no such activation")
    model = empty_model(config, folder)
    _check_tokenizer(folder / "tokenizer", model)
    for part, names in tensor_names(model).items():
        network = model.get_submodule(PARTS[part][0])
        empty = network.state_dict()
        tensors = _read_tensors(folder / part, PARTS[part][1], {names[ours]: empty[ours].shape for ours in names})
        network.load_state_dict({ours: tensors[names[ours]] for ours in names}, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _refusal(path: Path, name: str, value: object, why: str) -> ValueError:
    return ValueError(f"{path}: {one_line(f'{name} is {value!r}')}: {why}")


def _read_settings(folder: Path) -> dict[str, dict]:
    """All settings, with every name that diffusers_settings writes, values of the same kinds, nothing unknown."""
    settings = {}
    for file, example in diffusers_settings(ModelConfig()).items():
        path = folder / FILES[file]
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{folder} is no diffusers folder: {FILES[file]} cannot be read: {one_line(error)}"
            ) from None
        if not isinstance(found, dict):
            raise ValueError(f"{path} holds no settings")
        if found.get("_class_name") == "PNDMScheduler":  # SD v1.5's own: the same betas, and no clipping
            found = {"clip_sample": False} | found | {"_class_name": "DDIMScheduler"}
        if found.get("scheduler") == ["diffusers", "PNDMScheduler"]:
            found["scheduler"] = example["scheduler"]
        settings[file] = DEFAULTS[file] | found
        if missing := sorted(example.keys() - IGNORED[file] - settings[file].keys()):
            raise ValueError(f"{path} does not tell {', '.join(missing)}")
        for name, value in settings[file].items():
            if name in IGNORED[file] or (name.startswith("_") and name not in example):
                continue
            if name not in example and value not in (None, False, 0, [None, None]):  # an option that is off is harmless
                raise _refusal(path, name, value, "unknown here")
            if name in example and not _same_kind(value, example[name]):
                raise _refusal(path, name, value, f"something like {example[name]!r} was expected")
    try:
        build_config(Defaults, settings["model_index"].get(OUR_DEFAULTS, {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / FILES['model_index']}: {OUR_DEFAULTS}: {one_line(error)}") from None
    return settings


def _same_kind(value: object, example: object) -> bool:
    if isinstance(example, list):
        return isinstance(value, list) and len(value) > 0 and all(_same_kind(item, example[0]) for item in value)
    if type(example) in (int, float):
        return type(value) in (int, type(example)) and 0 <= value <= sys.float_info.max and (value > 0 or example == 0)
    return type(value) is type(example)


def _check_tokenizer(path: Path, model: LatentDiffusion) -> None:
    """Raise ValueError unless the tokenizer is the model's own, CLIP's; another would quietly mean other words."""
    if not path.is_dir():  # transformers would go and look on the hub
        raise ValueError(f"{path} is missing")
    try:
        theirs = CLIPTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ValueError(f"{path} holds no CLIP tokenizer: {one_line(error)}") from None

    def traits(tokenizer: CLIPTokenizer) -> dict[str, object]:
        special = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token")}
        merges = tokenizer.backend_tokenizer.model.__getstate__()  # as bytes; tens of thousands of them to parse
        return {"vocabulary": tokenizer.get_vocab(), "merges": merges, **special}

    wanted = traits(model.cond_stage_model.tokenizer)
    found = traits(theirs) | {"model_max_length": theirs.model_max_length}
    wanted["model_max_length"] = model.config.text.max_position_embeddings
    if other := [name for name in wanted if found[name] != wanted[name]]:
        raise ValueError(f"{path}: not the tokenizer of this model, another {', another '.join(other)}")


def _read_tensors(folder: Path, file: str, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors of a part under today's names, in the shapes we want them in, which are `shapes` and no others."""
    stored = {}
    for name, value in find_tensors(find_shards(folder, file)).items():
        if name.removeprefix("text_model.") == "embeddings.position_ids":  # 0, 1, ... 76: older folders have them
            continue
        older = re.sub(r"(?<=\.attentions\.0\.)\w+", lambda match: OLD.get(match[0], match[0]), name)
        name = next((today for today in (name, older, f"text_model.{name}") if today in shapes), name)
        if name in stored:
            raise ValueError(f"{folder} holds {one_line(name)} twice")
        stored[name] = value
    # projections around attention: a linear layer in one version, a 1 x 1 convolution in another
    flat = {
        name
        for name, value in stored.items()
        if re.search(r"\.attentions\.\d+\.(to|proj)_", name) and len(value.shape) == len(shapes.get(name, ())) - 2 == 2
    }
    check_names(shapes, {name: (*v.shape, 1, 1) if name in flat else v.shape for name, v in stored.items()}, folder)
    check_dtypes(stored, folder)
    tensors = {}
    for name, tensor in read_tensors(stored):
        check_finite(tensor, f"{folder}: {name}")
        tensors[name] = tensor[:, :, None, None] if name in flat else tensor
    return tensors
