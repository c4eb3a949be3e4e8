"""Chapter 1's figures hold what they were given."""

import matplotlib.colors
import matplotlib.pyplot as plt
import torch

from sd_teach.plots import text_encoder as plots

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = [START, "a</w>", "cat</w>", *[END] * 5]
ACCENT, BLUE, PALE = map(matplotlib.colors.to_rgba, ("#ffb43a", "#3b6fd4", "#eef0f6"))


def boxes(figure):
    """The colour of each box, in the order in which they were drawn."""
    return [patch.get_facecolor() for patch in figure.axes[0].patches]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_only_what_a_step_has_merged_is_coloured():
    figure = plots.merge_steps([["c", "a", "t</w>"], ["c", "at</w>"], ["cat</w>"]], ["letters", "a t", "c at"])
    assert boxes(figure) == [PALE, PALE, PALE, PALE, ACCENT, ACCENT]
    assert texts(figure) == ["c", "a", "t</w>", "letters", "c", "at</w>", "a t", "cat</w>", "c at"]


def test_words_the_first_end_and_padding_have_colours_of_their_own():
    figure = plots.token_slots([TOKENS], shown=5)
    assert boxes(figure) == [PALE, ACCENT, ACCENT, BLUE, PALE, PALE]
    assert [text for text in texts(figure) if text != "…"] == [
        *"01234", "7", "start", "a", "cat", "end", "end", "end",
    ]  # fmt: skip


def test_a_slot_that_does_not_change_is_white_and_the_one_that_changes_most_is_darkest():
    figure = plots.slot_changes(torch.tensor([[0.0, 0, 2, 1, 1, 1, 1, 1]]), [TOKENS], shown=4)
    brightness = [sum(colour[:3]) for colour in boxes(figure)]
    assert brightness[0] == brightness[1] == 3.0
    assert min(brightness) == brightness[2] < brightness[3] == brightness[4] < 3.0


def test_matrices_keep_their_numbers_and_minus_infinity_is_left_out():
    mask = torch.full((3, 3), -torch.inf).triu(1)
    figure = plots.slot_matrices({"mask": mask, "ones": torch.ones(3, 3)}, TOKENS[:3])
    shown = figure.axes[0].images[0].get_array()
    assert torch.equal(torch.tensor(shown.mask), mask == -torch.inf) and shown.sum() == 0
    assert [axis.get_title() for axis in figure.axes] == ["mask", "ones"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["start", "a", "cat"]


def test_similarities_are_written_into_their_places():
    figure = plots.similarity_map(torch.tensor([[1.0, 0.25], [0.25, 1.0]]), ["a cat", "a dog"])
    assert texts(figure) == ["1.00", "0.25", "0.25", "1.00"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a cat", "a dog"]


def test_pyplot_keeps_no_figure():
    plots.similarity_map(torch.ones(1, 1), ["a cat"])
    assert plt.get_fignums() == []
