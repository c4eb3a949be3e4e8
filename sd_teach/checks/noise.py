"""Exercises of chapter 2."""

from collections.abc import Callable

import torch

from sd_teach import noise as reference
from sd_teach.checks import Verdict, mark
from sd_teach.noise import NoiseSchedule, draw_noise, image_generators


def noise_of_seeds(answer: Callable) -> Verdict:
    """2.1: (seed, n, shape) -> [n, *shape], image k being the noise of seed + k."""
    seed, n, shape = 40, 3, (4, 8, 8)
    expected = draw_noise(image_generators(seed, n), shape)
    one = torch.Generator().manual_seed(seed)
    state = torch.get_rng_state()
    verdict = mark(
        "2.1",
        answer,
        seed,
        n,
        shape,
        ask="write my_noise: seed + k gives image k, each from a generator of its own",
        expected=expected,
        mistakes={
            "all images come from one generator, so only the first can be made again alone: give each its own": (
                torch.randn(n, *shape, generator=one)
            ),
            "all images are the same: the seed must grow with k": expected[:1].expand(n, *shape),
            "your seeds start one too late: image 0 has the seed itself": draw_noise(
                image_generators(seed + 1, n), shape
            ),
            "these numbers lie between 0 and 1: torch.rand is uniform, noise is torch.randn": torch.stack(
                [torch.rand(shape, generator=generator) for generator in image_generators(seed, n)]
            ),
        },
        right="image k of a batch is the image of its own seed, and the global generator was left alone",
        atol=0.0,
    )
    if verdict.state == "right" and not torch.equal(state, torch.get_rng_state()):
        torch.set_rng_state(state)
        sentence = "the numbers are right, but torch.manual_seed reseeds everybody's generator: use torch.Generator()"
        return Verdict("2.1", "wrong", sentence)
    return verdict


def alphas_cumprod(answer: Callable) -> Verdict:
    """2.2: (beta_start, beta_end, steps) -> alpha_bar of every time step, [steps], float32."""
    start, end, steps = 0.00085, 0.012, 1000
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    linear = torch.linspace(start, end, steps, dtype=torch.float64)
    return mark(
        "2.2",
        answer,
        start,
        end,
        steps,
        ask="write my_alphas_cumprod: from the two ends of beta to alpha_bar at every step",
        expected=NoiseSchedule().alphas_cumprod,
        mistakes={
            "your betas are evenly spaced; here their square roots are (scaled linear)": torch.cumprod(1 - linear, 0),
            "you spaced the square roots but did not square them again": torch.cumprod(1 - betas.sqrt(), 0),
            "this is the product of the betas: what is left after a step is 1 - beta": torch.cumprod(betas, 0),
            "you summed the betas; what is left is multiplied from step to step: cumprod of 1 - beta": (
                1 - torch.cumsum(betas, 0)
            ),
            "these are single steps, 1 - beta_t: alpha_bar_t is the product of all up to t": 1 - betas,
            "this is sqrt(alpha_bar), the factor of the signal; alpha_bar itself is asked for": (
                torch.cumprod(1 - betas, 0).sqrt()
            ),
        },
        right="the square roots of beta are evenly spaced, and what is left is a product",
        atol=2e-6,
    )


def q_sample(answer: Callable) -> Verdict:
    """2.3: (x0, t, noise, alphas_cumprod) -> x_t, all [8, 4, 8, 8] but t, [8], and alphas_cumprod, [1000]."""
    schedule = NoiseSchedule()
    # as many images as places in a row: a forgotten view(-1, 1, 1, 1) raises no error
    x0, noise = (draw_noise(image_generators(seed, 8), (4, 8, 8)) for seed in (0, 100))
    t = torch.arange(8) * 120 + 60
    flat = schedule.alphas_cumprod[t]
    a, beta = flat.view(-1, 1, 1, 1), schedule.betas[t].view(-1, 1, 1, 1)
    return mark(
        "2.3",
        answer,
        x0,
        t,
        noise,
        schedule.alphas_cumprod,
        ask="write my_q_sample: x_t in one jump, for a batch in which every picture has its own t",
        expected=reference.q_sample(x0, t, noise, schedule),
        mistakes={
            "both square roots are missing: alpha_bar counts variance, and variances add": a * x0 + (1 - a) * noise,
            "the square root of the signal's factor is missing": a * x0 + (1 - a).sqrt() * noise,
            "the square root of the noise's factor is missing": a.sqrt() * x0 + (1 - a) * noise,
            "the factors have changed places: at small t nearly everything is signal": (
                (1 - a).sqrt() * x0 + a.sqrt() * noise
            ),
            "the noise's factor is sqrt(1 - alpha_bar), not 1 - sqrt(alpha_bar)": a.sqrt() * x0
            + (1 - a.sqrt()) * noise,
            "alpha_bar runs along the width of the latent instead of along the batch: give it the shape [b, 1, 1, 1]": (
                flat.sqrt() * x0 + (1 - flat).sqrt() * noise
            ),
            "this adds one step's noise, with beta_t; alpha_bar_t does all steps up to t at once": (
                (1 - beta).sqrt() * x0 + beta.sqrt() * noise
            ),
        },
        right="one jump from the picture to any time step, each image to its own",
    )


def x0_and_score(answer: Callable) -> Verdict:
    """2.4: (x_t, eps, alpha_bar) -> (x0, score), for one alpha_bar."""
    x, eps = draw_noise(image_generators(3, 2), (4, 4, 4))
    a = torch.tensor(0.3)
    x0, score = (x - (1 - a).sqrt() * eps) / a.sqrt(), -eps / (1 - a).sqrt()
    return mark(
        "2.4",
        answer,
        x,
        eps,
        a,
        ask="write my_x0_and_score: the same prediction in its two other forms",
        expected=(x0, score),
        mistakes={
            "x0 is right; the score points towards less noise, so it has a minus": (x0, -score),
            "x0 is right; the score is divided by the standard deviation of the noise, sqrt(1 - alpha_bar)": (x0, -eps),
            "x0 is right; for the score the square root of 1 - alpha_bar is missing": (x0, -eps / (1 - a)),
            "the score is right; x0 is still too small: divide by sqrt(alpha_bar)": (
                x - (1 - a).sqrt() * eps,
                score,
            ),
            "the score is right; in x0 the square roots are missing": ((x - (1 - a) * eps) / a, score),
            "the score is right; in x0 the noise is added where it must be taken away": (
                (x + (1 - a).sqrt() * eps) / a.sqrt(),
                score,
            ),
            "the score is right; for x0 all of eps was taken away: only sqrt(1 - alpha_bar) of it is in x_t": (
                (x - eps) / a.sqrt(),
                score,
            ),
            "both are right, in the other order: (x0, score) is asked for": (score, x0),
        },
        right="noise, picture and score are one prediction in three forms",
    )
