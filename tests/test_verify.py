"""verify tells what load_model would refuse, all of it, and reads no weights."""

import shutil
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_teach import checkpoint, verify
from sd_teach.checkpoint import EXTRA_NAMES, SUMS, load_model
from sd_teach.download import HubFile
from sd_teach.noise import NoiseSchedule
from sd_teach.verify import NETWORKS, schedule_tables

WEIGHTS = "model.safetensors"
TENSOR = "model.diffusion_model.out.2.bias"


@pytest.fixture
def folder(small_folder, tmp_path):
    """A copy of the small model, to be damaged."""
    return shutil.copytree(small_folder, tmp_path / "small")


def rewrite(folder, change):
    """Apply `change` to the stored tensors, and forget the digests that no longer fit."""
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    (folder / SUMS).unlink(missing_ok=True)
    return verify.verify(folder)


def tables(dtype=torch.float32):
    return {name: table.to(dtype) for name, table in schedule_tables(NoiseSchedule()).items()}


def test_a_right_folder_is_told_in_full(small_folder, sd):
    report = verify.verify(small_folder)
    digest = sha256((small_folder / WEIGHTS).read_bytes()).hexdigest()
    assert (report.ok, report.problems, report.tables) == (True, [], [])
    assert (report.sha256, report.origin) == (digest, f"as {SUMS} says")
    state = sd.model.state_dict()
    for network, prefix in NETWORKS.items():
        mine = [tensor for name, tensor in state.items() if name.startswith(prefix)]
        count = len(mine)
        assert report.networks[network] == (count, count, sum(tensor.numel() for tensor in mine), {"F16": count})
    assert sum(wanted for _, wanted, *_ in report.networks.values()) == len(state)


def test_a_right_report_is_printed_in_aligned_columns(small_folder):
    lines = str(verify.verify(small_folder)).splitlines()
    assert lines[0] == f"file      {small_folder}"
    assert lines[2] == "schedule  not stored"
    assert lines[4].split() == ["network", "tensors", "parameters", "dtypes"]
    assert [line.split()[0] for line in lines[5:8]] == list(NETWORKS)
    assert len({line.index(" F16 ") for line in lines[5:8]}) == 1
    assert lines[-1].startswith("right: ")


def test_a_single_file_is_compared_with_stable_diffusion(small_folder):
    report = verify.verify(small_folder / WEIGHTS)
    assert not report.ok
    counts = {network: (wanted, count < wanted) for network, (count, wanted, *_) in report.networks.items()}
    assert counts == {"unet": (686, True), "vae": (248, True), "text": (196, True)}


def test_a_single_file_of_the_right_model_is_right_and_known_by_its_hash(folder, sd, monkeypatch):
    monkeypatch.setattr(checkpoint, "ModelConfig", lambda: sd.model.config)
    report = verify.verify(folder / WEIGHTS)
    assert (report.ok, report.origin) == (True, "unknown here")
    monkeypatch.setattr(verify, "SD_V1_5", HubFile(sha256=report.sha256))
    assert verify.verify(folder / WEIGHTS).origin == "Stable Diffusion v1.5 as published"


def remove(state):
    del state[TENSOR]


def add(state):
    state["unknown\n\x1b[2J"] = torch.zeros(4)


def reshape(state):
    state[TENSOR] = torch.zeros(5)


def make_integer(state):
    state[TENSOR] = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "problem", "printed"),
    [
        (remove, ("missing", TENSOR, "[4]"), f"missing  {TENSOR}  [4]"),
        (add, ("unexpected", "unknown\n\x1b[2J", "[4] F32"), r"unexpected  unknown\n\x1b[2J  [4] F32"),
        (reshape, ("wrong shape", TENSOR, "[5] instead of [4]"), f"wrong shape  {TENSOR}  [5] instead of [4]"),
        (
            make_integer,
            ("wrong dtype", TENSOR, "I64 instead of F64, F32, F16, BF16"),
            f"wrong dtype  {TENSOR}  I64 instead of F64, F32, F16, BF16",
        ),
    ],
)
def test_a_difference_is_told_and_would_not_load(folder, change, problem, printed):
    report = rewrite(folder, change)
    assert (report.ok, report.problems) == (False, [problem])
    assert str(report).splitlines()[-3:] == [printed, "", "wrong: 1 differences from the model"]
    with pytest.raises(ValueError):
        load_model(folder)


def test_every_name_is_printed_in_aligned_columns(folder, sd):
    report = rewrite(folder, dict.clear)
    names = sorted(sd.model.state_dict())
    assert [name for _, name, _ in report.problems] == names
    lines = str(report).splitlines()[-2 - len(names) : -2]
    assert [line.split()[1] for line in lines] == names
    assert len({line.index("[") for line in lines}) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_schedules_tables_are_right_in_every_dtype(folder, dtype):
    report = rewrite(folder, lambda state: state.update(tables(dtype)))
    assert report.ok, report.problems
    assert report.tables == sorted(tables())
    assert "schedule  12 tables\n" in str(report)
    load_model(folder)


def test_all_names_that_are_no_weights_are_accepted_and_not_counted(folder, small_folder):
    others = {name: torch.zeros(1) for name in EXTRA_NAMES - tables().keys()}
    report = rewrite(folder, lambda state: state.update(tables() | others))
    assert report.ok
    assert report.networks == verify.verify(small_folder).networks


def test_tables_computed_in_float32_are_near_enough(folder):
    bar = NoiseSchedule().alphas_cumprod
    stored = {"log_one_minus_alphas_cumprod": (1 - bar).log(), "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt()}
    assert rewrite(folder, lambda state: state.update(stored)).ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", sorted(tables()))
def test_a_table_of_another_schedule_is_told(folder, name, dtype):
    report = rewrite(folder, lambda state: state.update({name: 1.02 * tables(dtype)[name]}))
    assert [problem[:2] for problem in report.problems] == [("wrong schedule", name)]


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda betas: betas[:-1].clone(), "[999] F32 instead of [1000] floats"),
        (lambda betas: betas.long(), "[1000] I64 instead of [1000] floats"),
        (
            lambda betas: betas.index_fill(0, torch.tensor(7), torch.nan),
            "nan instead of 0.000883163 at step 7, 1 of 1000",
        ),
    ],
)
def test_a_broken_table_is_told(folder, change, how):
    report = rewrite(folder, lambda state: state.update(betas=change(tables()["betas"])))
    assert len(report.problems) == 1
    assert report.problems[0][:2] == ("wrong schedule", "betas")
    assert report.problems[0][2].startswith(how)


def test_the_tables_are_the_posterior_of_the_forward_process():
    table = schedule_tables(NoiseSchedule())
    # x_{t-1} given x_t and x_0, by Bayes from the two Gaussians: precisions add
    betas, prev = table["betas"][1:], table["alphas_cumprod_prev"][1:]
    precision = (1 - betas) / betas + 1 / (1 - prev)
    torch.testing.assert_close(table["posterior_variance"][1:], 1 / precision)
    torch.testing.assert_close(table["posterior_mean_coef1"][1:], prev.sqrt() / (1 - prev) / precision)
    torch.testing.assert_close(table["posterior_mean_coef2"][1:], (1 - betas).sqrt() / betas / precision)


def test_a_name_in_two_shards_is_told(folder):
    save_file({TENSOR: torch.zeros(4)}, folder / "model-2.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(f'{{"weight_map": {{"a": "{WEIGHTS}", "b": "model-2.safetensors"}}}}')
    (folder / SUMS).unlink()
    assert verify.verify(folder).problems == [("twice", TENSOR, f"again in {WEIGHTS}")]


def test_a_flipped_bit_is_told(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    report = verify.verify(folder)
    assert (report.ok, report.origin) == (False, f"not as {SUMS} says")
    assert [what for what, *_ in report.problems] == ["damaged"]


@pytest.mark.parametrize(
    "data", [b"", b"this is a text file, no model\n" * 9, None], ids=["empty", "text", "truncated"]
)
@pytest.mark.parametrize("given", ["folder", "file"])
def test_what_cannot_be_read_is_an_error_of_one_line(folder, data, given):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] if data is None else data)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as safetensors, get it again: .+\Z"):
        verify.verify(folder if given == "folder" else path)


def test_a_config_of_no_network_is_an_error_of_one_line(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 4', '"hidden_size": 5'))
    with pytest.raises(ValueError, match=r"config\.json describes no network that can be built: .+\Z"):
        verify.verify(folder)


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no model at"):
        verify.verify(tmp_path / "nowhere")


def test_weights_are_not_read(small_folder, monkeypatch):
    read = []
    monkeypatch.setattr(verify, "read_tensors", lambda wanted: read.extend(wanted) or [])
    assert verify.verify(small_folder).ok and not read
