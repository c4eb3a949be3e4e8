"""Files that are not what they say: load_model refuses each in one line that names it, or loads exactly the model."""

import io
import json
import pickle
import random
import shutil
import struct
import warnings
import zipfile
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from conftest import SMALL, randomize
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from sd_teach import checkpoint
from sd_teach.checkpoint import SUMS, load_model, save_model
from sd_teach.diffusion import LatentDiffusion

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
NORM = "model.diffusion_model.out.0.weight"  # [8]
# few tensors, so that hundreds of variants load in seconds
TINY = replace(
    SMALL, unet=replace(SMALL.unet, channel_mult=(1,), attention_resolutions=(1,)),
    vae=replace(SMALL.vae, ch_mult=(1, 1)), text=replace(SMALL.text, num_hidden_layers=1),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer():
    """Read the vocabulary once: it takes longer than the rest of a load, and no variant touches it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sd_teach.text_encoder.CLIPTokenizer.from_pretrained", cache(CLIPTokenizer.from_pretrained))
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A right model without digests; do not change it."""
    folder = tmp_path_factory.mktemp("fuzz") / "original"
    save_model(randomize(LatentDiffusion(TINY)), folder)
    (folder / SUMS).unlink()
    return folder


@pytest.fixture(scope="module")
def state(original):
    return load_model(original).state_dict()


@pytest.fixture
def folder(original, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(original, tmp_path / "broken")


@pytest.fixture
def parts(original):
    """The file's header, as a dictionary, and its body."""
    data = (original / WEIGHTS).read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def pack(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def outcome(folder, what=""):
    """What load_model says no with, or the state it loads; anything else fails the test, naming the variant."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, of layers without numbers
            loaded = load_model(folder).state_dict()
    except ValueError as error:
        assert len(str(error).splitlines()) == 1, (what, str(error))
        assert str(error).isprintable(), (what, str(error))
        assert str(folder) in str(error), (what, str(error))
        return str(error)
    except Exception as error:
        pytest.fail(f"{what}: {error!r}")
    return loaded


def refused(folder, what=""):
    said = outcome(folder, what)
    assert isinstance(said, str), f"{what}: loaded"
    return said


def differences(loaded, state):
    """How many numbers are not the model's; names and shapes must be."""
    assert {name: tensor.shape for name, tensor in loaded.items()} == {name: t.shape for name, t in state.items()}
    return sum(int((~torch.isclose(loaded[name], state[name], rtol=0, atol=0)).sum()) for name in state)


def test_the_undamaged_file_loads(folder, state, parts):
    assert differences(outcome(folder), state) == 0
    (folder / WEIGHTS).write_bytes(pack(*parts))  # written by this test
    assert differences(outcome(folder), state) == 0


# --- bytes ---


def test_a_truncated_file_is_refused(folder):
    data, rng = (folder / WEIGHTS).read_bytes(), random.Random(1)
    end = 8 + struct.unpack("<Q", data[:8])[0]
    ends = {*range(10), end - 1, end, end + 1, len(data) - 1, *(rng.randrange(len(data)) for _ in range(60))}
    for length in sorted(ends):
        (folder / WEIGHTS).write_bytes(data[:length])
        assert "cannot be read as safetensors, get it again" in refused(folder, f"first {length} bytes")


def test_a_file_with_bytes_added_is_refused(folder):
    data = (folder / WEIGHTS).read_bytes()
    for more in (b"\0", b"\n", data):
        (folder / WEIGHTS).write_bytes(data + more)
        refused(folder, f"{len(more)} bytes more")


def test_a_flipped_bit_in_the_header_is_refused_or_changes_no_number(folder, state):
    data, rng = (folder / WEIGHTS).read_bytes(), random.Random(2)
    end = 8 + struct.unpack("<Q", data[:8])[0]
    places = [*range(0, 64), *(rng.randrange(64, 8 * end) for _ in range(120))]  # all bits of its length, and some
    results = []
    for place in places:
        broken = bytearray(data)
        broken[place // 8] ^= 1 << place % 8
        (folder / WEIGHTS).write_bytes(broken)
        results.append(outcome(folder, f"bit {place}"))
        if not isinstance(results[-1], str):
            assert differences(results[-1], state) == 0, f"bit {place}"
    assert sum(isinstance(result, str) for result in results) > 0.9 * len(results)


def test_a_flipped_bit_in_the_body_changes_one_number_at_most(folder, state):
    # only digests would tell, which save_model writes and the hub has; all but numbers that become infinite
    data, rng = (folder / WEIGHTS).read_bytes(), random.Random(3)
    end = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(30):
        place = rng.randrange(8 * end, 8 * len(data))
        broken = bytearray(data)
        broken[place // 8] ^= 1 << place % 8
        (folder / WEIGHTS).write_bytes(broken)
        result = outcome(folder, f"bit {place}")
        if isinstance(result, str):
            assert "has numbers that torch.float32 cannot hold" in result
        else:
            assert differences(result, state) == 1, f"bit {place}"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, -1])
def test_a_number_that_is_none_is_refused_by_name(folder, number, place):
    tensors = load_file(folder / WEIGHTS)
    tensors[NORM][place] = number
    save_file(tensors, folder / WEIGHTS)
    assert f"{NORM} has numbers that torch.float32 cannot hold" in refused(folder)


def test_overwritten_bytes_in_the_header_are_refused(folder):
    data, rng = (folder / WEIGHTS).read_bytes(), random.Random(4)
    end = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(60):
        place, count = rng.randrange(60, end - 40), rng.randrange(4, 40)
        broken = data[:place] + rng.randbytes(count) + data[place + count :]
        (folder / WEIGHTS).write_bytes(broken)
        refused(folder, f"{count} bytes at {place}")


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"\xff" * 100, b"<html>404</html>" * 99, b"PK\3\4" * 99])
def test_a_file_of_another_kind_is_refused(folder, data):
    (folder / WEIGHTS).write_bytes(data)
    refused(folder)


# --- headers that parse, and lie ---


def test_another_shape_of_as_many_numbers_is_refused(folder, parts):
    header, body = parts
    rng, names = random.Random(5), sorted(header.keys() - {"__metadata__"})
    for name in rng.sample(names, 25):
        shape = header[name]["shape"]
        others = [[*shape, 1], [1, *shape], shape[::-1], [torch.Size(shape).numel()]]
        other = rng.choice([other for other in others if other != shape])
        (folder / WEIGHTS).write_bytes(pack(header | {name: header[name] | {"shape": other}}, body))
        assert f"1 of the wrong shape: {name} {other} instead of {shape}" in refused(folder)


@pytest.mark.parametrize("dtype", ["I16", "U16"])
def test_another_dtype_of_as_many_bytes_is_refused(folder, parts, dtype):
    header, body = parts
    (folder / WEIGHTS).write_bytes(pack(header | {NORM: header[NORM] | {"dtype": dtype}}, body))
    assert NORM in refused(folder)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64, torch.complex64, torch.float8_e4m3fn]
)
def test_weights_that_are_not_floating_point_of_two_bytes_or_more_are_refused(folder, dtype):
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {NORM: tensors[NORM].to(dtype)}, folder / WEIGHTS)
    assert NORM in refused(folder)


def test_weights_of_half_bytes_are_refused(folder, parts):
    # torch makes a pair of two such numbers, and cannot convert it
    header, body = parts
    name = max(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    shape, (start, end) = header[name]["shape"], header[name]["data_offsets"]
    end -= (end - start) // 2
    halves = entry("F4", [*shape[:-1], 2 * shape[-1]], (start, end))
    (folder / WEIGHTS).write_bytes(pack(header | {name: halves}, body[:end]))
    assert name in refused(folder)


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "BOOL", "I8"])
def test_a_schedule_of_another_dtype_is_refused(folder, parts, dtype):
    header, body = parts
    betas = entry(dtype, [2000 if dtype == "F4" else 1000], (len(body), len(body) + 1000))
    (folder / WEIGHTS).write_bytes(pack(header | {"betas": betas}, body + bytes(1000)))
    assert "betas" in refused(folder)


def entry(dtype="F16", shape=(8,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "overlap": lambda header: header | {NORM: entry(offsets=(0, 16))},
    "swapped offsets": lambda header: header | {NORM: entry(offsets=header[NORM]["data_offsets"][::-1])},
    "past the end": lambda header: header | {NORM: entry(offsets=(1 << 40, (1 << 40) + 16))},
    "beyond 64 bits": lambda header: header | {NORM: entry(offsets=(1 << 70, (1 << 70) + 16))},
    "negative offsets": lambda header: header | {NORM: entry(offsets=(-16, 0))},
    "offsets that are no integers": lambda header: header | {NORM: entry(offsets=(0.5, 16.5))},
    "one offset": lambda header: header | {NORM: entry(offsets=(0,))},
    "a hole": lambda header: {name: what for name, what in header.items() if name != NORM},
    "negative shape": lambda header: header | {NORM: header[NORM] | {"shape": [-8]}},
    "shape that overflows": lambda header: header | {NORM: header[NORM] | {"shape": [1 << 32, 1 << 32, 1 << 32]}},
    "empty and beyond int64": lambda header: header | {"x": entry(shape=(0, (1 << 64) - 1), offsets=(0, 0))},
    "empty and huge": lambda header: header | {"x": entry(shape=(0, (1 << 63) - 1), offsets=(0, 0))},
    "many dimensions": lambda header: header | {NORM: header[NORM] | {"shape": [8] + [1] * 5000}},
    "unknown dtype": lambda header: header | {NORM: header[NORM] | {"dtype": "F17"}},
    "no dtype": lambda header: header | {NORM: {"shape": [8]}},
    "an entry that is no object": lambda header: header | {NORM: 3},
    "a name that is no name": lambda header: header | {"new\nline\x1b[2J\0": entry(shape=(0,), offsets=(0, 0))},
    "an empty name": lambda header: header | {"": entry(shape=(0,), offsets=(0, 0))},
    "a long name": lambda header: header | {"x" * 100_000: entry(shape=(0,), offsets=(0, 0))},
    "metadata that is no text": lambda header: header | {"__metadata__": {"format": 3}},
    "empty": lambda header: {},
    "a list": lambda header: b"[]",
    "a number": lambda header: b"1e999",
    "deep": lambda header: b'{"x":' + b"[" * 100_000 + b"}",
    "not UTF-8": lambda header: json.dumps(header).encode().replace(b"out.0", b"out.\xff"),
    "a lone surrogate": lambda header: json.dumps(header | {"\ud800": entry(shape=(0,), offsets=(0, 0))}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(folder, parts, lie):
    header, body = parts
    (folder / WEIGHTS).write_bytes(pack(LIES[lie](header), body))
    assert len(refused(folder, lie)) < 3000


def test_a_header_longer_than_the_file_is_refused(folder):
    data = (folder / WEIGHTS).read_bytes()
    for length in (0, 1, len(data), 100_000_000, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])
        refused(folder, f"header of {length} bytes")


def test_a_name_told_twice_in_a_header_is_refused_or_changes_no_number(folder, state, parts):
    header, body = parts
    for other in (header[NORM], entry(offsets=(0, 16)), entry("I64", [10**9]), 3):
        text = f'{{"{NORM}": {json.dumps(other)}, {json.dumps(header)[1:]}'
        (folder / WEIGHTS).write_bytes(pack(text.encode(), body))
        result = outcome(folder, other)
        assert isinstance(result, str) or differences(result, state) == 0, other


# --- folders ---


def test_a_name_in_two_shards_is_refused(folder):
    save_file({NORM: torch.zeros(8)}, folder / "model-2.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": WEIGHTS, "b": "model-2.safetensors"}}))
    assert NORM in refused(folder)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "null", '"x"', "{}", '{"weight_map": null}', '{"weight_map": []}', '{"weight_map": {}}',
        '{"weight_map": {"a": 3}}', '{"weight_map": {"a": null}}', '{"weight_map": {"a": ["x"]}}',
        '{"weight_map": {"a": {}}}', '{"weight_map": {"a": "x", "b": 3}}', '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": "."}}', '{"weight_map": {"a": "nowhere"}}', '{"weight_map": {"a": "new\\nline"}}',
        '{"weight_map": {"a": "nul\\u0000"}}', '{"weight_map": {"a": "\\ud800"}}',
        '{"weight_map": {"a": "config.json"}}', '{"weight_map": {"a": "../broken/model.safetensors"}}',
        "[" * 100_000, "\udcff",
    ],
)  # fmt: skip
def test_a_broken_index_is_refused(folder, text):
    (folder / INDEX).write_bytes(text.encode(errors="surrogateescape"))
    refused(folder)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"x" * 64, b"0" * 64 + b"  model.safetensors\n"])
def test_broken_digests_are_refused(folder, data):
    (folder / SUMS).write_bytes(data)
    assert SUMS in refused(folder)


@pytest.mark.parametrize("name", ["config.json", INDEX, WEIGHTS, SUMS])
def test_a_folder_in_the_place_of_a_file_is_refused(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    refused(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '"x"', '{"unet": null}', '{"unet": []}', '{"new\\nline": 1}', "[" * 100_000, "\udcff"],
)
def test_a_broken_config_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(folder)


def test_a_setting_of_another_kind_is_refused_by_name(folder):
    config = asdict(TINY)
    leaves = [(part, name) for part, value in config.items() if isinstance(value, dict) for name in value]
    for part, name in [*leaves, (None, "scale_factor")]:
        right = config[part][name] if part else config[name]
        wrong = [None, {}, True, [], ["x"], float("nan"), 10**400] + ([3] if isinstance(right, str) else ["x"])
        for value in wrong:
            new = {name: value}
            changed = config | ({part: config[part] | new} if part else new)
            (folder / "config.json").write_text(json.dumps(changed))
            assert name in refused(folder, f"{part}.{name} = {value!r}")


def test_sizes_of_nothing_are_refused_or_leave_names_and_shapes(folder, state):
    config = asdict(TINY)
    sizes = [(part, name) for part in ("text", "unet", "vae", "schedule") for name in config[part]]
    for part, name in sizes:
        for size in (0, -1):
            value = [size] if isinstance(config[part][name], tuple) else size
            (folder / "config.json").write_text(json.dumps(config | {part: config[part] | {name: value}}))
            result = outcome(folder, f"{part}.{name} = {value}")
            assert isinstance(result, str) or differences(result, state) == 0, f"{part}.{name} = {value}"


def test_a_flipped_bit_in_the_config_is_refused_or_leaves_names_and_shapes(folder, state):
    text, rng = (folder / "config.json").read_bytes(), random.Random(6)
    for _ in range(100):
        place = rng.randrange(8 * len(text))
        broken = bytearray(text)
        broken[place // 8] ^= 1 << place % 8
        (folder / "config.json").write_bytes(broken)
        result = outcome(folder, f"bit {place}")
        assert isinstance(result, str) or differences(result, state) == 0, f"bit {place}"


# --- pickles ---


@pytest.fixture
def ckpt(state, tmp_path, monkeypatch):
    """The model as a .ckpt file, to be damaged."""
    monkeypatch.setattr(checkpoint, "ModelConfig", lambda: TINY)
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": state, "global_step": 840000}, path)
    return path


def test_the_undamaged_ckpt_loads_with_its_state_dict_or_as_one(ckpt, state):
    assert differences(outcome(ckpt), state) == 0
    torch.save(dict(state), ckpt)
    assert differences(outcome(ckpt), state) == 0


def test_a_truncated_ckpt_is_refused(ckpt):
    data, rng = ckpt.read_bytes(), random.Random(7)
    for length in sorted(
        {0, 1, 2, 4, 30, len(data) - 1, len(data) - 22, *(rng.randrange(len(data)) for _ in range(40))}
    ):
        ckpt.write_bytes(data[:length])
        assert "cannot be read as a .ckpt, get it again" in refused(ckpt, f"first {length} bytes")


def test_a_flipped_bit_in_a_ckpt_is_refused_or_changes_nothing(ckpt, state):
    """Every number in it is under a checksum, the zip archive's own."""
    data, rng = ckpt.read_bytes(), random.Random(8)
    with zipfile.ZipFile(ckpt) as archive:
        names, directory = archive.namelist(), archive.start_dir
        pickled = next(info for info in archive.infolist() if info.filename.endswith("data.pkl"))
    body = [rng.randrange(8 * len(data)) for _ in range(20)]
    program = [8 * pickled.header_offset + rng.randrange(8 * pickled.file_size) for _ in range(20)]
    table = [rng.randrange(8 * directory, 8 * len(data)) for _ in range(60)]
    results = []
    for place in [*range(0, 8 * 30, 3), *body, *program, *table]:  # a local header of 30 bytes comes first
        broken = bytearray(data)
        broken[place // 8] ^= 1 << place % 8
        ckpt.write_bytes(broken)
        results.append(outcome(ckpt, f"bit {place}"))
        if not isinstance(results[-1], str):
            assert differences(results[-1], state) == 0, f"bit {place}"
    assert len(names) > 100 and sum(isinstance(result, str) for result in results) > 0.3 * len(results)


class Program:
    def __reduce__(self):
        return exec, ("raise SystemExit('a program in a file of weights was run')",)


def test_a_program_in_a_ckpt_is_refused_by_name_and_not_run(ckpt, state):
    torch.save({"state_dict": state, "callbacks": Program()}, ckpt)
    assert "holds more than tensors, exec among it" in refused(ckpt).replace("builtins.", "")
    ckpt.write_bytes(pickle.dumps({NORM: Program()}))
    refused(ckpt)
    with zipfile.ZipFile(ckpt, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Program()))
        archive.writestr("archive/version", "3")
    refused(ckpt)


ODDITIES = {
    "a number": 3,
    "a list": [1.0] * 8,
    "a string": "x",
    "none": None,
    "sparse": torch.ones(8).to_sparse(),
    "on no device": torch.ones(8, device="meta"),
    "integers": torch.ones(8, dtype=torch.int64),
    "nothing": torch.ones(0),
    "nan": torch.full((8,), torch.nan),
    "too large": torch.full((8,), 1e300, dtype=torch.float64),
}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_what_is_no_weight_in_a_ckpt_is_refused(ckpt, state, oddity):
    torch.save(dict(state) | {NORM: ODDITIES[oddity]}, ckpt)
    assert NORM in refused(ckpt)


@pytest.mark.parametrize("content", [3, [], {}, {3: torch.ones(8)}, {"state_dict": None}, {"state_dict": {}}, "x"])
def test_a_ckpt_of_another_kind_is_refused(ckpt, content):
    torch.save(content, ckpt)
    refused(ckpt)


def test_ckpts_of_other_times_are_refused(ckpt, state):
    torch.save(dict(state), ckpt, _use_new_zipfile_serialization=False)
    assert "cannot be read as a .ckpt" in refused(ckpt)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as other:
        other.writestr("readme.txt", "no model")
    ckpt.write_bytes(archive.getvalue())
    refused(ckpt)
