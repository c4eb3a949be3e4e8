"""Step 2: the noise schedule, the forward process, and where the first latent comes from."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from sd_teach.noise import NoiseSchedule, ScheduleConfig, draw_noise, image_generators, initial_noise, q_sample


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule()


def test_schedule_is_computed_in_float64_and_cast_once(schedule):
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert np.array_equal(schedule.betas.numpy(), betas.astype(np.float32))
    assert np.array_equal(schedule.alphas_cumprod.numpy(), np.cumprod(1 - betas).astype(np.float32))


def test_schedule_has_the_published_numbers(schedule):
    assert float(schedule.betas[0]) == pytest.approx(0.00085, rel=1e-6)
    assert float(schedule.betas[999]) == pytest.approx(0.012, rel=1e-6)
    assert float(schedule.alphas_cumprod[0]) == pytest.approx(0.99915, abs=5e-7)
    assert float(schedule.alphas_cumprod[999]) == pytest.approx(0.0046601, abs=5e-8)


def test_schedule_equals_its_twin_in_diffusers(schedule):
    twin = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        set_alpha_to_one=False,
    )  # fmt: skip
    # a product of 1000 float32 factors there, each off by up to 6e-8
    torch.testing.assert_close(schedule.alphas_cumprod, twin.alphas_cumprod, rtol=1e-5, atol=0)
    torch.testing.assert_close(schedule.betas, twin.betas, rtol=1e-6, atol=0)
    assert float(schedule.alphas_cumprod[0]) == pytest.approx(float(twin.final_alpha_cumprod), rel=1e-7)


def test_schedule_is_real_when_built_on_the_meta_device():
    with torch.device("meta"):
        schedule = NoiseSchedule()
    assert torch.equal(schedule.alphas_cumprod, NoiseSchedule().alphas_cumprod)


def test_schedule_follows_its_config():
    schedule = NoiseSchedule(ScheduleConfig(num_timesteps=3, beta_start=0.01, beta_end=0.09))
    torch.testing.assert_close(schedule.betas, torch.tensor([0.01, 0.04, 0.09]))
    torch.testing.assert_close(schedule.alphas_cumprod, torch.tensor([0.99, 0.99 * 0.96, 0.99 * 0.96 * 0.91]))


@pytest.mark.parametrize(
    "config", [(0, 0.1, 0.2), (10, 0.0, 0.2), (10, 0.2, 0.1), (10, 0.1, 1.0), (10, -0.1, 0.2), (10, float("nan"), 0.2)]
)
def test_an_impossible_schedule_is_refused(config):
    with pytest.raises(ValueError, match="beta_start"):
        NoiseSchedule(ScheduleConfig(*config))


def test_q_sample_is_equation_4(schedule):
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4, 4, 8, 8, generator=generator) for _ in range(2))
    t = torch.tensor([0, 250, 700, 999])
    x_t = q_sample(x0, t, noise, schedule)
    for k, alpha_bar in enumerate(schedule.alphas_cumprod.double().numpy()[t]):
        expected = np.sqrt(alpha_bar) * x0[k].double().numpy() + np.sqrt(1 - alpha_bar) * noise[k].double().numpy()
        np.testing.assert_allclose(x_t[k].numpy(), expected, rtol=0, atol=1e-6)


def test_q_sample_leaves_its_inputs_alone(schedule):
    x0, noise, t = torch.ones(2, 4, 4, 4), torch.full((2, 4, 4, 4), 2.0), torch.tensor([3, 5])
    q_sample(x0, t, noise, schedule)
    assert (x0 == 1).all() and (noise == 2).all() and t.tolist() == [3, 5]


@pytest.mark.parametrize("t", [0, 100, 500, 999])
def test_q_sample_of_one_x0_has_the_mean_and_variance_of_theory(schedule, t):
    n, x0 = 200_000, -1.7
    noise = draw_noise(image_generators(t), (n, 1, 1))
    x_t = q_sample(torch.full((1, n, 1, 1), x0), torch.tensor([t]), noise, schedule)
    alpha_bar = float(schedule.alphas_cumprod[t])
    # four standard errors each
    assert float(x_t.mean()) == pytest.approx(alpha_bar**0.5 * x0, abs=4 * ((1 - alpha_bar) / n) ** 0.5)
    assert float(x_t.var()) == pytest.approx(1 - alpha_bar, rel=4 * (2 / n) ** 0.5)


def test_x_T_of_seed_42_starts_as_on_every_cpu():
    x_T = initial_noise(image_generators(42), 512, 512)
    assert x_T.shape == (1, 4, 64, 64)
    assert x_T.flatten()[:4].tolist() == pytest.approx([1.9269, 1.4873, 0.9007, -2.1055], abs=5e-5)


def test_x_T_is_what_the_global_generator_would_draw():
    state = torch.get_rng_state()
    torch.manual_seed(42)
    expected = torch.randn(1, 4, 64, 64)
    torch.set_rng_state(state)
    assert torch.equal(initial_noise(image_generators(42), 512, 512), expected)


def test_image_k_of_a_batch_has_the_noise_of_its_own_seed_and_goes_on_drawing_it():
    batch = image_generators(100, 3)
    first, second = (draw_noise(batch, (4, 8, 8)) for _ in range(2))
    for k in range(3):
        alone = image_generators(100 + k)
        assert torch.equal(draw_noise(alone, (4, 8, 8))[0], first[k])
        assert torch.equal(draw_noise(alone, (4, 8, 8))[0], second[k])
    assert not torch.equal(first, second)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    initial_noise(image_generators(0, 2), 64, 64)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 32), (8, 8)])
def test_x_T_has_the_shape_of_the_latent_height_first(width, height):
    assert initial_noise(image_generators(0, 2), height, width).shape == (2, 4, height // 8, width // 8)
    assert initial_noise(image_generators(0), height, width, channels=3, downsampling=4).shape == (
        1, 3, height // 4, width // 4,
    )  # fmt: skip


def test_the_norm_of_noise_is_about_the_root_of_its_size():
    norms = initial_noise(image_generators(0, 16), 512, 512).flatten(1).norm(dim=1)
    # a chi distribution: mean sqrt(n), standard deviation sqrt(1/2)
    assert (norms - (4 * 64 * 64) ** 0.5).abs().max() < 4 * 0.5**0.5


@pytest.mark.parametrize(("height", "width"), [(0, 64), (64, 0), (-8, 64), (65, 64), (64, 60), (4, 64)])
def test_sides_that_are_no_multiples_are_refused(height, width):
    with pytest.raises(ValueError, match=f"multiples of 8, got {width} x {height}"):
        initial_noise(image_generators(0), height, width)


@pytest.mark.parametrize(("seed", "n"), [(-1, 1), (2**63, 1), (2**63 - 1, 2), (-3, 4)])
def test_seeds_that_a_generator_cannot_take_are_refused(seed, n):
    with pytest.raises(ValueError, match=f"got {seed}"):
        image_generators(seed, n)


@pytest.mark.parametrize(("seed", "n"), [(0, 1), (2**63 - 1, 1), (2**63 - 4, 4)])
def test_the_first_and_last_seeds_work(seed, n):
    assert [generator.initial_seed() for generator in image_generators(seed, n)] == list(range(seed, seed + n))
