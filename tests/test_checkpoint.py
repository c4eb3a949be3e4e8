"""Weights on disk: what was saved is what is loaded, and anything else is refused by name."""

import gc
import json
import re
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_teach import ASSETS, checkpoint, tiny_256
from sd_teach.checkpoint import EXTRA_NAMES, SUMS, check_names, load_model, model_digest, save_model
from sd_teach.diffusion import LatentDiffusion, ModelConfig
from sd_teach.download import SD_V1_5
from sd_teach.text_encoder import TextConfig
from sd_teach.unet import UNetConfig
from sd_teach.vae import VAEConfig
from sd_teach.verify import verify

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
TENSOR = "model.diffusion_model.out.2.bias"


@pytest.fixture
def folder(small_folder, tmp_path):
    """A copy of the small model, to be damaged."""
    return shutil.copytree(small_folder, tmp_path / "small")


@pytest.fixture(scope="module")
def sharded_folder(tmp_path_factory):
    """A model of 9 million parameters: more than one shard."""
    config = ModelConfig(
        text=TextConfig(hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2),
        unet=UNetConfig(
            model_channels=64, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2, 1), context_dim=128
        ),
        vae=VAEConfig(ch=4, ch_mult=(1, 1, 2, 2), num_res_blocks=1, norm_groups=2),
    )
    folder = tmp_path_factory.mktemp("sharded")
    torch.manual_seed(0)
    save_model(LatentDiffusion(config), folder)
    return folder


def rewrite(folder, change):
    """Apply `change` to the stored tensors, and forget the digests that no longer fit."""
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    (folder / SUMS).unlink()


def flip_last_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def assert_same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# what was saved is what is loaded


def test_what_is_loaded_is_what_was_saved_in_float16(tmp_path, sd):
    generator = torch.Generator().manual_seed(1)
    model = LatentDiffusion(sd.model.config)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert_same_weights(loaded, model.half().float())


def test_a_loaded_model_saved_again_is_the_same_file(small_folder, tmp_path):
    save_model(load_model(small_folder), tmp_path)
    for name in (WEIGHTS, SUMS, "config.json"):
        assert (tmp_path / name).read_bytes() == (small_folder / name).read_bytes()


def test_a_model_that_cannot_be_saved_leaves_the_one_that_is_there(small_folder, tmp_path, sd):
    shutil.copytree(small_folder, tmp_path / "model")
    with pytest.raises(KeyError, match="nothing"):
        save_model(sd.model, tmp_path / "model", ["nothing"])
    assert_same_weights(load_model(tmp_path / "model"), load_model(small_folder))


def test_saving_leaves_the_model_as_it_was(tmp_path, sd):
    before = {name: tensor.clone() for name, tensor in sd.model.state_dict().items()}
    save_model(sd.model, tmp_path)
    after = sd.model.state_dict()
    assert all(after[name].dtype == torch.float32 and torch.equal(after[name], before[name]) for name in before)


def test_shards_are_16_mb_or_less(sharded_folder):
    shards = sorted(sharded_folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert max(shard.stat().st_size for shard in shards) <= 16 * 2**20
    assert sum(shard.stat().st_size for shard in shards) > 16 * 2**20
    index = json.loads((sharded_folder / INDEX).read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert all(tensor.dtype == torch.float16 for shard in shards for tensor in load_file(shard).values())


def test_a_sharded_model_is_loaded_whole(sharded_folder, tmp_path):
    model = load_model(sharded_folder)
    torch.manual_seed(0)
    assert_same_weights(model, LatentDiffusion(model.config).half().float())
    shards = sorted(sharded_folder.glob("model-*.safetensors"))
    assert model_digest(sharded_folder) == sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()


def test_a_smaller_model_saved_over_a_bigger_one_leaves_nothing_of_it(sharded_folder, tmp_path, sd):
    folder = shutil.copytree(sharded_folder, tmp_path / "model")
    save_model(sd.model, folder)
    assert sorted(path.name for path in folder.iterdir()) == [SUMS, "config.json", WEIGHTS]
    assert_same_weights(load_model(folder), sd.model)


def test_the_digest_is_the_sha256_of_the_file(small_folder):
    digest = sha256((small_folder / WEIGHTS).read_bytes()).hexdigest()
    assert model_digest(small_folder) == model_digest(small_folder / WEIGHTS) == digest
    assert (small_folder / SUMS).read_text() == f"{digest}  {WEIGHTS}\n"


def test_sums_are_optional(folder, sd):
    (folder / SUMS).unlink()
    assert_same_weights(load_model(folder), sd.model)


def test_a_single_file_holds_the_default_model(folder, sd, monkeypatch):
    monkeypatch.setattr(checkpoint, "ModelConfig", lambda: sd.model.config)
    assert_same_weights(load_model(folder / WEIGHTS), sd.model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_ckpt_holds_the_same_model_in_any_dtype(tmp_path, sd, monkeypatch, dtype):
    monkeypatch.setattr(checkpoint, "ModelConfig", lambda: sd.model.config)
    state = {name: tensor.to(dtype) for name, tensor in sd.model.state_dict().items()}
    torch.save({"state_dict": state | extras(sd.model.schedule), "epoch": 3}, tmp_path / "model.ckpt")
    loaded = load_model(tmp_path / "model.ckpt").state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name].float()) for name in state)
    assert verify(tmp_path / "model.ckpt").ok


def mapped(path) -> bool:
    """Whether this process has the file in its memory."""
    gc.collect()
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_weights_that_need_no_change_stay_in_their_file(tmp_path, sd, monkeypatch, suffix):
    monkeypatch.setattr(checkpoint, "ModelConfig", lambda: sd.model.config)
    path, state = tmp_path / f"model{suffix}", sd.model.state_dict()
    (torch.save if suffix == ".ckpt" else save_file)(
        {name: tensor.contiguous() for name, tensor in state.items()}, path
    )
    model = load_model(path)
    assert mapped(path)
    del model
    assert not mapped(path)
    half = load_model(path, torch.bfloat16)
    assert mapped(path)  # the VAE stays in float32
    del half
    prepared = load_model(path, prepare=lambda part: None)
    assert not mapped(path)
    assert_same_weights(prepared, sd.model)


def test_a_large_model_is_loaded_part_by_part_and_each_is_prepared_when_it_is_whole(small_folder, sd, monkeypatch):
    total = sum(parameter.numel() for parameter in sd.model.parameters())
    for limit, least in ((total, 1), (total - 1, 3), (2000, 10)):
        monkeypatch.setattr(checkpoint, "PART", limit)
        parts = []
        model = load_model(small_folder, prepare=parts.append)
        assert_same_weights(model, sd.model)
        assert len(parts) >= least and (limit == total) == (parts == [model])
        assert sum(parameter.numel() for part in parts for parameter in part.parameters()) == total
        assert not any(parameter.is_meta for part in parts for parameter in part.parameters())


def test_what_prepare_puts_in_a_layers_place_stays_there(small_folder):
    def prepare(part):
        part.model.diffusion_model.out[2] = torch.nn.Identity()

    model = load_model(small_folder, prepare=prepare)
    assert isinstance(model.model.diffusion_model.out[2], torch.nn.Identity)


def test_the_digest_of_the_verified_download_is_not_computed_again(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "find_sd_v1_5", lambda: tmp_path / "v1-5.safetensors")  # verified, and not read
    assert model_digest("sd-v1-5") == SD_V1_5.sha256


def test_a_single_file_of_another_model_is_not_stable_diffusion(folder):
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold this model; 748 missing: cond_stage_model"):
        load_model(folder / WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_that_of_unet_and_text_encoder_and_the_vae_stays_float32(small_folder, dtype):
    model = load_model(small_folder, dtype)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name.startswith("first_stage_model.") else dtype), name


def test_nothing_is_left_on_the_meta_device(small_folder):
    model = load_model(small_folder)
    tensors = [*model.parameters(), *model.buffers(), model.schedule.betas, model.schedule.alphas_cumprod]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


def test_a_loaded_model_is_frozen_and_in_eval_mode(small_folder):
    model = load_model(small_folder)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def extras(schedule) -> dict[str, torch.Tensor]:
    """What a training checkpoint holds beside the networks, with its true values where the schedule gives them."""
    betas, bar = schedule.betas, schedule.alphas_cumprod
    prev = torch.cat([torch.ones(1), bar[:-1]])
    variance = betas * (1 - prev) / (1 - bar)
    return {
        "betas": betas,
        "alphas_cumprod": bar.clone(),
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * prev.sqrt() / (1 - bar),
        "posterior_mean_coef2": (1 - prev) * (1 - betas).sqrt() / (1 - bar),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(1000),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }


def test_names_beside_the_networks_are_accepted_and_ignored(folder, sd):
    added = extras(sd.model.schedule)
    assert added.keys() == EXTRA_NAMES
    rewrite(folder, lambda state: state.update(added))
    assert_same_weights(load_model(folder), sd.model)


def test_a_schedule_stored_in_half_precision_is_accepted(folder, sd):
    added = {name: tensor.half() for name, tensor in extras(sd.model.schedule).items()}
    rewrite(folder, lambda state: state.update(added))
    assert_same_weights(load_model(folder), sd.model)


@pytest.mark.parametrize("name", ["betas", "alphas_cumprod"])
def test_weights_trained_with_another_schedule_are_refused(folder, sd, name):
    rewrite(folder, lambda state: state.update({name: extras(sd.model.schedule)[name] * 0.95}))
    with pytest.raises(ValueError, match=f"schedule.*{name}|{name}.*schedule"):
        load_model(folder)


# anything else is refused


def remove(state):
    del state[TENSOR]


def add(state):
    state["model.diffusion_model.out.3.bias"] = torch.zeros(4)


def rename(state):
    state[f"model_ema.{TENSOR}"] = state.pop(TENSOR)


def reshape(state):
    state[TENSOR] = torch.zeros(5)


def transpose(state):
    # as many numbers, in another order
    name = "model.diffusion_model.time_embed.0.weight"
    state[name] = state[name].T.contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, f"1 missing: {TENSOR}$"),
        (add, r"1 unexpected: model\.diffusion_model\.out\.3\.bias$"),
        (rename, f"1 missing: {TENSOR}; 1 unexpected: model_ema.{TENSOR}$"),
        (reshape, rf"1 of the wrong shape: {TENSOR} \[5\] instead of \[4\]$"),
        (transpose, r"1 of the wrong shape: .*time_embed\.0\.weight \[8, 32\] instead of \[32, 8\]$"),
        (dict.clear, r"\d{3} missing: "),
    ],
)
def test_weights_that_are_not_exactly_the_models_are_refused_by_name(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=f"{folder.name} does not hold this model; {message}"):
        load_model(folder)


def test_a_long_list_of_names_is_cut_but_counted():
    expected = {f"layer.{k}": torch.Size([1]) for k in range(9)}
    with pytest.raises(ValueError, match=r"9 missing: layer\.0, layer\.1, layer\.2, \.\.\.$"):
        check_names(expected, {}, "here")


def test_names_that_agree_are_quiet():
    names = {"layer": torch.Size([1, 2])}
    assert check_names(names, dict(names), "here") is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def overwrite(path):
    path.write_text("this is a web page, not a model\n" * 100)


@pytest.mark.parametrize("damage", [truncate, empty, overwrite])
@pytest.mark.parametrize("given", [".", WEIGHTS])
def test_a_damaged_file_is_named(folder, damage, given):
    damage(folder / WEIGHTS)
    (folder / SUMS).unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as safetensors, get it again"):
        load_model(folder / given)


def test_a_flipped_bit_is_noticed(folder):
    flip_last_bit(folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its sha256 is not the one in SHA256SUMS"):
        load_model(folder)


def test_a_flipped_bit_in_the_last_shard_is_noticed(sharded_folder, tmp_path):
    folder = shutil.copytree(sharded_folder, tmp_path / "model")
    last = max(folder.glob("model-*.safetensors"))
    flip_last_bit(last)
    with pytest.raises(ValueError, match=f"{last.name} is damaged"):
        load_model(folder)


def test_weights_that_the_sums_do_not_list_are_refused(folder):
    (folder / SUMS).write_text("")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_model(folder)


def test_sums_that_cannot_be_read_are_named(folder):
    (folder / SUMS).write_text("these are no sums\n")
    with pytest.raises(ValueError, match=SUMS):
        load_model(folder)


def test_a_shard_that_is_not_there_is_named(sharded_folder, tmp_path):
    folder = shutil.copytree(sharded_folder, tmp_path / "model")
    last = max(folder.glob("model-*.safetensors"))
    last.unlink()
    with pytest.raises(ValueError, match=f"lacks {last.name}"):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "null"])
def test_a_broken_index_is_named(folder, text):
    (folder / INDEX).write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is not an index"):
        load_model(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"unet": {"colour": 3}}', "UNetConfig has no field colour"),
        ('{"banana": 1, "apple": 2}', "ModelConfig has no field apple, banana"),
        ("{", "config.json"),
        ("", "config.json"),
        ("[]", "config.json"),
        ('{"unet": 3}', "config.json"),
        ('{"unet": {"model_channels": "many"}}', "config.json"),
        ('{"unet": {"model_channels": 9}}', "config.json"),
    ],
)
def test_a_config_that_is_none_is_refused_by_name(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_a_config_of_another_size_does_not_fit_the_weights(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["unet"]["model_channels"] = 16
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"of the wrong shape: .*model\.diffusion_model"):
        load_model(folder)


def test_a_size_that_would_take_hours_to_build_is_refused():
    assert checkpoint.build_config(UNetConfig, {"num_res_blocks": 100_000}).num_res_blocks == 100_000
    with pytest.raises(TypeError, match=r"UNetConfig\.num_res_blocks is 100001"):
        checkpoint.build_config(UNetConfig, {"num_res_blocks": 100_001})


def test_a_folder_without_config_is_no_model(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no model folder: no config\.json"):
        load_model(folder)


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="no model folder"):
        load_model(tmp_path)


def test_a_folder_without_weights_says_what_it_lacks(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"lacks model\.safetensors"):
        load_model(folder)


def test_a_single_file_is_not_measured_by_sums_of_other_files(folder, sd, monkeypatch):
    """As in a folder of downloads."""
    monkeypatch.setattr(checkpoint, "ModelConfig", lambda: sd.model.config)
    (folder / SUMS).write_text(f"{'0' * 64}  debian.iso\n")
    assert_same_weights(load_model(folder / WEIGHTS), sd.model)


def test_tiny_256_is_tiny_with_what_is_its_own():
    large, small = load_model("tiny-256").state_dict(), load_model("tiny").state_dict()
    own = load_file(ASSETS / "tiny-256" / WEIGHTS)
    assert all(torch.equal(large[name], weight.float()) for name, weight in own.items())
    unet = "model.diffusion_model."
    for here, there in (("input_blocks.5", "input_blocks.3"), ("input_blocks.7", "input_blocks.5")):
        assert torch.equal(large[f"{unet}{here}.0.out_layers.3.weight"], small[f"{unet}{there}.0.out_layers.3.weight"])
    inner = {name: weight for name, weight in large.items() if name not in own}
    assert len(inner) > 300
    for name, weight in inner.items():
        first = re.sub(r"input_blocks\.(\d+)", lambda number: f"input_blocks.{int(number[1]) - 2}", name)
        assert torch.equal(weight, small[first])


def test_tiny_256_is_found_by_whichever_path(monkeypatch):
    monkeypatch.chdir(ASSETS)
    assert_same_weights(load_model("tiny-256"), load_model("./tiny/../tiny-256"))


def test_the_digest_of_tiny_256_covers_the_files_of_tiny():
    files = [ASSETS / "tiny-256" / WEIGHTS, *sorted((ASSETS / "tiny").glob("model-*.safetensors"))]
    assert model_digest("tiny-256") == sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert verify("tiny-256").ok


@pytest.mark.parametrize("damaged", ["tiny", "tiny-256"])
def test_tiny_256_is_refused_where_a_file_of_either_is_damaged(tmp_path, monkeypatch, damaged):
    for name in ("tiny", "tiny-256"):
        shutil.copytree(ASSETS / name, tmp_path / name)
    for module in (checkpoint, tiny_256):
        monkeypatch.setattr(module, "ASSETS", tmp_path)
    file = sorted((tmp_path / damaged).glob("model*.safetensors"))[0]
    flip_last_bit(file)
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        load_model("tiny-256")
    ((kind, _, told),) = verify("tiny-256").problems
    assert kind == "damaged" and told.startswith(f"{file} is damaged")


@pytest.mark.parametrize("name", ["nowhere", "nowhere/model.safetensors", "sd-v9"])
def test_a_path_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match=f'no model at "{name}"'):
        load_model(name)
    with pytest.raises(ValueError, match=f'no model at "{name}"'):
        model_digest(name)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"neither a model folder nor a \.safetensors or \.ckpt file"):
        load_model(path)
