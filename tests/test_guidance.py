"""Step 4: two predictions into one."""

import pytest
import torch

from sd_teach.guidance import GuidedModel, classifier_free_guidance

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([981, 981])
COND, UNCOND = torch.full((2, 77, 4), 1.0), torch.full((2, 77, 4), -1.0)


class Recorder:
    """A fake apply_model: answers a function of each image's input and context, remembers what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, context):
        self.calls.append((x, t, context))
        return x * context[:, :1, :1, None] + t[:, None, None, None] * 1e-3


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 7.5, 9.0])
def test_guidance_is_u_plus_s_times_c_minus_u(scale):
    uncond, cond = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    guided = classifier_free_guidance(uncond, cond, scale)
    expected = (1 - scale) * uncond.double() + scale * cond.double()  # the same, written as a weighted sum
    torch.testing.assert_close(guided.double(), expected, rtol=0, atol=1e-5)


def test_guidance_by_hand():
    guided = classifier_free_guidance(torch.tensor([1.0, 0.0]), torch.tensor([3.0, -1.0]), 7.5)
    assert guided.tolist() == [16.0, -7.5]


def test_guidance_leaves_its_inputs_alone():
    uncond, cond = torch.ones(3), torch.full((3,), 2.0)
    classifier_free_guidance(uncond, cond, 5.0)
    assert (uncond == 1).all() and (cond == 2).all()


def test_both_halves_go_in_one_call_the_unconditional_first():
    apply_model = Recorder()
    GuidedModel(apply_model, COND, UNCOND, 7.5)(X, T)
    ((x, t, context),) = apply_model.calls
    assert torch.equal(x, torch.cat([X, X]))
    assert torch.equal(t, torch.cat([T, T]))
    assert torch.equal(context, torch.cat([UNCOND, COND]))


@pytest.mark.parametrize("scale", [0.0, 0.5, 7.5])
def test_the_two_halves_of_the_answer_are_told_apart(scale):
    apply_model = Recorder()
    guided = GuidedModel(apply_model, COND, UNCOND, scale)(X, T)
    uncond, cond = apply_model(X, T, UNCOND), apply_model(X, T, COND)
    assert guided.shape == X.shape
    torch.testing.assert_close(guided, uncond + scale * (cond - uncond), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 1.0])
def test_at_scale_1_only_the_conditional_half_is_computed(scale):
    apply_model = Recorder()
    guided = GuidedModel(apply_model, COND, UNCOND, scale)(X, T)
    ((x, t, context),) = apply_model.calls
    assert torch.equal(x, X) and torch.equal(t, T) and torch.equal(context, COND)
    assert torch.equal(guided, apply_model(X, T, COND))


def test_at_scale_0_the_prompt_has_no_effect():
    guided = GuidedModel(Recorder(), COND, UNCOND, 0.0)(X, T)
    assert torch.equal(guided, Recorder()(X, T, UNCOND))


@pytest.mark.parametrize(("scale", "kept"), [(7.5, 1.0), (1.0, 1.0), (0.5, 0.5), (0.0, 0.0), (-2.0, -2.0)])
def test_below_the_last_guided_time_step_no_scale_is_above_1(scale, kept):
    def guided(t, **until):
        apply_model = Recorder()
        answer = GuidedModel(apply_model, COND, UNCOND, scale, **until)(X, torch.tensor([t, t]))
        assert [len(x) for x, _, _ in apply_model.calls] == [4 if told(t, until) != 1 else 2]
        return answer

    def told(t, until):
        return kept if t < until.get("until", 0) else scale

    for t in (300, 301, 999):
        assert torch.equal(guided(t, until=300), guided(t))
    for t in (0, 299):
        uncond, cond = Recorder()(X, torch.tensor([t, t]), UNCOND), Recorder()(X, torch.tensor([t, t]), COND)
        torch.testing.assert_close(guided(t, until=300), uncond + kept * (cond - uncond), rtol=0, atol=1e-5)
        assert torch.equal(guided(t, until=0), guided(t))


def test_the_real_networks_answer_each_half_as_they_do_alone(sd):
    states = sd.model.get_learned_conditioning(["a cat", ""])
    cond, uncond = states[:1].expand(2, -1, -1), states[1:].expand(2, -1, -1)
    with torch.inference_mode():
        guided = GuidedModel(sd.model.apply_model, cond, uncond, 3.0)(X, T)
        c, u = (sd.model.apply_model(X, T, context) for context in (cond, uncond))
    assert (c - u).abs().max() > 0.01, "the prompt must matter, or swapped halves would go unseen"
    torch.testing.assert_close(guided, u + 3.0 * (c - u), rtol=0, atol=1e-4)
