import argparse

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sd_teach.training import loop
from sd_teach.training.muon import Muon, orthonormal


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SD_TEACH_RUNS", str(tmp_path))


@pytest.mark.parametrize("rows, columns", [(8, 8), (6, 50)])
def test_what_comes_out_has_the_same_directions_all_of_about_the_same_length(rows, columns):
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, rows, columns, generator=generator).double(), full_matrices=False)
    lengths = torch.logspace(0, -2, rows).double()
    found = u.mT @ orthonormal(u * lengths @ v) @ v.mT  # [3, rows, rows], in the directions of what went in
    assert_close(found, torch.diag_embed(found.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-9)
    assert found.diagonal(dim1=1, dim2=2).min() > 0.6 and found.max() < 1.25


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_steps_are_those_of_torchs_muon(monkeypatch, shape):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # in which it would compute
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimisers = (
        Muon([ours], lr=0.1, weight_decay=0.01),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        for weight, optimiser in zip((ours, theirs), optimisers, strict=True):
            weight.grad = gradient.clone()
            optimiser.step()
    assert (theirs - start).abs().max() > 0.1
    assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_convolution_is_a_matrix_of_its_outputs_whatever_its_layout_in_memory():
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 6, 4, 3, 3, generator=generator)
    flat = nn.Parameter(start.flatten(1).clone())
    last = nn.Parameter(start.clone().to(memory_format=torch.channels_last))
    for weight, its_gradient in ((flat, gradient.flatten(1)), (last, gradient)):
        weight.grad = its_gradient.clone()
        Muon([weight], lr=0.1).step()
    assert not torch.equal(flat, start.flatten(1))
    assert_close(last.flatten(1), flat, rtol=1e-5, atol=1e-6)


def test_muon_trains_matrices_and_adam_the_rest():
    model = nn.Linear(8, 8)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    options = argparse.Namespace(run="r", steps=1, batch=4, lr=0.3, every=1, device="cpu", precision="fp32")
    loop.train(
        loop.Run("r"), model, lambda _: model(x).square().sum(), lambda *_: {}, options, muon=True, weight_decay=0
    )
    rate = loop.learning_rate(0, 1, 0.3)
    step = (before["weight"] - model.weight) / rate
    lengths = torch.linalg.svdvals(step) / (0.2 * 8**0.5)
    assert ((lengths[:4] > 0.6) & (lengths[:4] < 1.25)).all()  # four pictures: a gradient of rank 4
    assert_close((before["bias"] - model.bias).abs(), torch.full((8,), rate), rtol=1e-3, atol=0)
