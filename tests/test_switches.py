"""The seed's sampler switches that are no options here: each is a few lines around ddim_sample, held to LDM's formula.

The recipes are the functions handed to ddim_sample; `ldm` writes down what LDM's sampler does with its switches.
"""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_ddim import SCHEDULE, alphas_of_a_run, fake_eps, randn
from torch.testing import assert_close

from sd_teach.ddim import ddim_sample, ddim_timesteps

STEPS, ETA = 6, 0.8


def ldm(eps_model, x, draw, temperature=1.0, noise_dropout=0.0):
    """DDIM with fresh noise `draw(x)`, made weaker by `temperature` and dropped in places by `noise_dropout`."""
    times = ddim_timesteps(STEPS).tolist()[::-1]
    for t, now, before in zip(times, *map(torch.from_numpy, alphas_of_a_run(STEPS)), strict=True):
        eps = eps_model(x, torch.full((len(x),), t))
        sigma = ETA * ((1 - before) / (1 - now) * (1 - now / before)).sqrt()
        noise = F.dropout(sigma * draw(x) * temperature, p=noise_dropout)
        pred_x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
        x = before.sqrt() * pred_x0 + (1 - before - sigma**2).sqrt() * eps + noise
    return x


def last(eps_model, noise):
    *_, state = ddim_sample(eps_model, x_T(), SCHEDULE, STEPS, ETA, noise)
    return state.x_prev


def x_T():
    return randn(3, 4, 8, 8).double()


def both(recipe, expected):
    """The results of two functions that draw from the global generator, from the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        ours = recipe()
        torch.manual_seed(5)
        assert_close(ours, expected(), rtol=0, atol=1e-5)
        torch.manual_seed(5)
        assert (ours - last(fake_eps, torch.randn_like)).std() > 0.01  # the switch does something
    return ours


def test_temperature_is_weaker_noise():
    both(
        lambda: last(fake_eps, lambda x: 0.5 * torch.randn_like(x)),
        lambda: ldm(fake_eps, x_T(), torch.randn_like, temperature=0.5),
    )


def test_noise_dropout_is_noise_with_holes():
    both(
        lambda: last(fake_eps, lambda x: F.dropout(torch.randn_like(x), p=0.3)),
        lambda: ldm(fake_eps, x_T(), torch.randn_like, noise_dropout=0.3),
    )


def test_repeat_noise_is_the_same_noise_for_every_image():
    def repeated(x):
        return torch.randn_like(x[:1]).expand_as(x)

    ours = both(lambda: last(fake_eps, repeated), lambda: ldm(fake_eps, x_T(), repeated))
    quiet = last(fake_eps, torch.zeros_like)
    # fake_eps is linear in x, so the images differ by what their x_T do
    assert_close((ours - quiet)[0], (ours - quiet)[1], rtol=0, atol=1e-9)


def test_a_score_corrector_is_a_wrapped_model():
    def corrected(x, t):
        return fake_eps(x, t) + 0.1 * x * t.view(-1, 1, 1, 1) / 1000

    both(lambda: last(corrected, torch.randn_like), lambda: ldm(corrected, x_T(), torch.randn_like))


@pytest.mark.parametrize("log_every_t", [1, 2, 5])
def test_callbacks_and_log_every_t_are_what_one_does_with_the_states(log_every_t):
    """LDM logs where index % log_every_t is 0, its index counting down, and at the first step."""
    states = list(ddim_sample(fake_eps, x_T(), SCHEDULE, STEPS))
    logged = [s.t for s in states if (STEPS - 1 - s.index) % log_every_t == 0 or s.index == 0]
    times = ddim_timesteps(STEPS).tolist()
    assert logged == [t for i, t in reversed(list(enumerate(times))) if i % log_every_t == 0 or i == STEPS - 1]


def test_use_original_steps_is_a_thousand_steps():
    """All of 0..999 instead of a few of 1..1000, and an end without noise: alphas_cumprod_prev[0] is 1."""
    states = list(ddim_sample(fake_eps, x_T(), SCHEDULE, 1000))
    assert [state.t for state in states] == list(range(999, -1, -1))
    assert torch.equal(states[-1].x_prev, states[-1].pred_x0)


def test_use_original_steps_from_a_picture_is_the_end_of_a_thousand_steps(sd):
    times = []
    run = {"strength": 0.005, "steps": 1000, "callback": lambda state: times.append(state.t)}
    sd.image_to_image(Image.new("RGB", (64, 64), "red"), "a cat", **run)
    assert times == [4, 3, 2, 1, 0]
