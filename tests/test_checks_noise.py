"""What the checks of chapter 2 say of right answers, of none, and of the likeliest wrong ones."""

import pytest
import torch

from sd_teach.checks import noise as check
from sd_teach.noise import draw_noise, image_generators


def seeded(draw=torch.randn, step=1, offset=0):
    """An answer to 2.1 that draws with `draw`, image k from seed + step k + offset."""

    def answer(seed, n, shape):
        return torch.stack(
            [draw(shape, generator=torch.Generator().manual_seed(seed + step * k + offset)) for k in range(n)]
        )

    return answer


def from_one_generator(seed, n, shape):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def from_the_global_generator(seed, n, shape):
    return torch.stack([torch.manual_seed(seed + k) and torch.randn(shape) for k in range(n)])


def alphas(spaced=lambda a, b, n: torch.linspace(a**0.5, b**0.5, n, dtype=torch.float64) ** 2, end=None):
    end = end or (lambda betas: torch.cumprod(1 - betas, 0).float())
    return lambda start, stop, steps: end(spaced(start, stop, steps))


def forward(factors):
    def answer(x0, t, noise, alphas_cumprod):
        signal, amount = factors(alphas_cumprod[t].view(-1, 1, 1, 1))
        return signal * x0 + amount * noise

    return answer


def without_view(x0, t, noise, alphas_cumprod):
    a = alphas_cumprod[t]
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def one_step(x0, t, noise, alphas_cumprod):
    before = torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    beta = (1 - alphas_cumprod / before)[t].view(-1, 1, 1, 1)
    return (1 - beta).sqrt() * x0 + beta.sqrt() * noise


def forms(x0, score):
    return lambda x, eps, a: (x0(x, eps, a), score(x, eps, a))


def to_x0(x, eps, a):
    return (x - (1 - a).sqrt() * eps) / a.sqrt()


def to_score(x, eps, a):
    return -eps / (1 - a).sqrt()


RIGHT = {
    check.noise_of_seeds: seeded(),
    check.alphas_cumprod: alphas(),
    check.q_sample: forward(lambda a: (a.sqrt(), (1 - a).sqrt())),
    check.x0_and_score: forms(to_x0, to_score),
}
WRONG = [
    (check.noise_of_seeds, from_one_generator, "one generator"),
    (check.noise_of_seeds, seeded(step=0), "all images are the same"),
    (check.noise_of_seeds, seeded(offset=1), "one too late"),
    (check.noise_of_seeds, seeded(torch.rand), "torch.rand is uniform"),
    (check.noise_of_seeds, from_the_global_generator, "everybody's generator"),
    (check.alphas_cumprod, alphas(lambda a, b, n: torch.linspace(a, b, n)), "evenly spaced; here"),
    (check.alphas_cumprod, alphas(lambda a, b, n: torch.linspace(a**0.5, b**0.5, n)), "did not square"),
    (check.alphas_cumprod, alphas(end=lambda betas: torch.cumprod(betas, 0)), "product of the betas"),
    (check.alphas_cumprod, alphas(end=lambda betas: 1 - torch.cumsum(betas, 0)), "summed the betas"),
    (check.alphas_cumprod, alphas(end=lambda betas: 1 - betas), "single steps"),
    (check.alphas_cumprod, alphas(end=lambda betas: torch.cumprod(1 - betas, 0).sqrt()), "factor of the signal"),
    (check.q_sample, forward(lambda a: (a, 1 - a)), "both square roots"),
    (check.q_sample, forward(lambda a: (a, (1 - a).sqrt())), "signal's factor is missing"),
    (check.q_sample, forward(lambda a: (a.sqrt(), 1 - a)), "noise's factor is missing"),
    (check.q_sample, forward(lambda a: ((1 - a).sqrt(), a.sqrt())), "changed places"),
    (check.q_sample, forward(lambda a: (a.sqrt(), 1 - a.sqrt())), "not 1 - sqrt"),
    (check.q_sample, without_view, "along the width"),
    (check.q_sample, one_step, "one step's noise"),
    (check.x0_and_score, forms(to_x0, lambda x, eps, a: -to_score(x, eps, a)), "has a minus"),
    (check.x0_and_score, forms(to_x0, lambda x, eps, a: -eps), "standard deviation of the noise"),
    (check.x0_and_score, forms(to_x0, lambda x, eps, a: -eps / (1 - a)), "square root of 1 - alpha_bar"),
    (check.x0_and_score, forms(lambda x, eps, a: x - (1 - a).sqrt() * eps, to_score), "still too small"),
    (check.x0_and_score, forms(lambda x, eps, a: (x - (1 - a) * eps) / a, to_score), "square roots are missing"),
    (check.x0_and_score, forms(lambda x, eps, a: (x + (1 - a).sqrt() * eps) / a.sqrt(), to_score), "is added"),
    (check.x0_and_score, forms(lambda x, eps, a: (x - eps) / a.sqrt(), to_score), "all of eps"),
    (check.x0_and_score, forms(to_score, to_x0), "other order"),
]


@pytest.mark.parametrize(("function", "answer"), RIGHT.items(), ids=lambda value: value.__name__)
def test_a_right_answer_is_right_and_no_answer_is_asked_for(function, answer):
    assert function(answer).state == "right"
    assert function(lambda *arguments: ...).state == "open"


@pytest.mark.parametrize(("function", "answer", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_a_likely_mistake_is_told_apart_from_all_others(function, answer, words):
    said = function(answer)
    assert said.state == "wrong" and words in said.sentence


def test_a_schedule_computed_in_float32_is_right_too():
    single = alphas(lambda a, b, n: torch.linspace(a**0.5, b**0.5, n) ** 2)
    assert check.alphas_cumprod(single).state == "right"


def test_marking_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    check.noise_of_seeds(from_the_global_generator)
    check.noise_of_seeds(lambda seed, n, shape: draw_noise(image_generators(seed, n), shape))
    assert torch.equal(before, torch.get_rng_state())
