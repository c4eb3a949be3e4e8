"""The seven conditioning keys: what each hands to the UNet, and that nothing is dropped in silence."""

import pytest
import torch
from conftest import normal
from parity.diffusers_twins import randomise

from sd_teach.conditioning import CONDITIONS, ConditioningWrapper
from sd_teach.diffusion import DiffusionWrapper
from sd_teach.unet import UNetConfig, UNetModel
from sd_teach.unet_options import UNetModelWithOptions, UNetOptions

SIZES = dict(
    model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2,), num_heads=4, context_dim=7,
    norm_groups=4,
)  # fmt: skip


X, T = normal(2, 4, 8, 8), torch.tensor([1, 999])
GIVEN = {
    "c_concat": [normal(2, 3, 8, 8, seed=2), normal(2, 1, 8, 8, seed=3)],
    "c_crossattn": [normal(2, 5, 7, seed=4), normal(2, 2, 7, seed=5)],
    "c_adm": torch.tensor([3, 0]),
}
LABELS = [GIVEN["c_adm"]]


def conditions(key):
    given = {name: GIVEN[name] for name in CONDITIONS[key]}
    return given | ({"c_crossattn": LABELS} if key == "adm" else {})


def wrapper(key):
    """Around a UNet that takes what the key hands on."""
    concat, text = key in ("concat", "hybrid", "hybrid-adm"), key is not None and ("cross" in key or "hybrid" in key)
    config = UNetOptions(
        **SIZES,
        in_channels=8 if concat else 4,
        use_spatial_transformer=text,
        num_classes=5 if key is not None and "adm" in key else None,
    )
    return ConditioningWrapper(randomise(UNetModelWithOptions(config)).requires_grad_(False), key)


def test_there_are_the_seven_keys_of_ldm():
    assert list(CONDITIONS) == [None, "concat", "crossattn", "hybrid", "adm", "hybrid-adm", "crossattn-adm"]


@pytest.mark.parametrize("key", CONDITIONS)
def test_each_key_hands_its_conditions_to_the_unet(key):
    model = wrapper(key)
    x = torch.cat([X, *GIVEN["c_concat"]], dim=1) if key in ("concat", "hybrid", "hybrid-adm") else X
    context = (
        torch.cat(GIVEN["c_crossattn"], dim=1)
        if key in ("crossattn", "hybrid", "hybrid-adm", "crossattn-adm")
        else None
    )
    y = GIVEN["c_adm"] if key in ("adm", "hybrid-adm", "crossattn-adm") else None
    expected = model.diffusion_model(x, T, context, y)
    assert 0.3 < expected.std() < 3
    assert torch.equal(model(X, T, **conditions(key)), expected)


@pytest.mark.parametrize(("key", "name"), [(key, name) for key, names in CONDITIONS.items() for name in sorted(names)])
def test_every_condition_a_key_takes_changes_the_answer(key, name):
    model, given = wrapper(key), conditions(key)
    other = given[name].flip(0) if name == "c_adm" else [condition.flip(0) for condition in given[name]]
    assert (model(X, T, **given) - model(X, T, **given | {name: other})).std() > 0.01


@pytest.mark.parametrize(("key", "name"), [(key, name) for key, names in CONDITIONS.items() for name in sorted(names)])
def test_a_condition_that_is_missing_is_named(key, name):
    given = conditions(key)
    del given[name]
    with pytest.raises(ValueError, match=f"{key} takes .*{name}.*, got"):
        wrapper(key)(X, T, **given)


@pytest.mark.parametrize(
    ("key", "name"), [(key, name) for key, names in CONDITIONS.items() for name in sorted(GIVEN.keys() - names)]
)
def test_a_condition_that_the_key_does_not_take_is_refused(key, name):
    with pytest.raises(ValueError, match=f"{key} takes .*, got .*{name}"):
        wrapper(key)(X, T, **conditions(key) | {name: GIVEN[name]})


def test_a_key_there_is_none_of_is_refused():
    with pytest.raises(ValueError, match="no conditioning key 'crosattn'"):
        ConditioningWrapper(UNetModel(UNetConfig(**SIZES)), "crosattn")


def test_crossattn_is_stable_diffusions_wrapper():
    unet = randomise(UNetModel(UNetConfig(**SIZES)))
    plain, ours = DiffusionWrapper(unet), ConditioningWrapper(unet)
    assert torch.equal(ours(X, T, c_crossattn=GIVEN["c_crossattn"]), plain(X, T, GIVEN["c_crossattn"]))
    assert ours.state_dict().keys() == plain.state_dict().keys()
