"""What notebooks teach with."""

import io

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from sd_teach import lesson
from sd_teach.guidance import classifier_free_guidance


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (level,) * 3)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A course with one checked picture, mid grey."""
    monkeypatch.setattr(lesson, "THUMBNAILS", tmp_path / "thumbnails")
    monkeypatch.setenv(lesson.STORE, "1")
    lesson.check_picture("picture", grey(128))
    monkeypatch.delenv(lesson.STORE)


def test_show_source_is_the_source_of_the_package():
    shown = lesson.show_source(classifier_free_guidance).data
    assert shown.startswith("```python\ndef classifier_free_guidance(") and shown.endswith("\n```")
    assert "return eps_uncond + scale * (eps_cond - eps_uncond)" in shown


@pytest.mark.parametrize(("level", "said"), [(131, "as in the course"), (124, "off by up to 4 of 255 grey levels")])
def test_a_picture_may_differ_by_three_grey_levels(stored, capsys, level, said):
    capsys.readouterr()
    lesson.check_picture("picture", grey(level))
    assert capsys.readouterr().out == f"picture: {said}\n"


def test_one_pixel_in_a_sixteenth_of_the_picture_is_noticed(stored, capsys):
    capsys.readouterr()
    picture = grey(128)
    picture.paste((255, 128, 128), (0, 0, 2, 2))
    lesson.check_picture("picture", picture)
    assert "127" in capsys.readouterr().out


def test_a_missing_picture_and_another_number_of_pictures_are_told(stored, capsys):
    capsys.readouterr()
    lesson.check_picture("other", grey(128))
    lesson.check_picture("picture", grey(128), grey(128))
    assert capsys.readouterr().out.splitlines() == [
        "other: the course has no picture of this name",
        "picture: 2 pictures, the course has 1",
    ]


def shown(scrubber: lesson.Scrubber) -> tuple[int, ...]:
    return Image.open(io.BytesIO(scrubber.picture.value)).convert("RGB").getpixel((5, 5))


def test_a_scrubber_shows_the_picture_its_slider_points_at():
    scrubber = lesson.Scrubber([grey(0), grey(200)], ["a", "b"], "t")
    assert shown(scrubber) == (0, 0, 0)
    scrubber.slider.value = 1
    assert shown(scrubber) == (200, 200, 200)
    assert repr(scrubber) == "a slider over 2 pictures"
    assert "s-scrubber" in scrubber._dom_classes  # the browser's test looks for it


def test_a_scrubber_takes_figures():
    figure, axis = plt.subplots(figsize=(1, 1))
    plt.close(figure)
    axis.axis("off")
    assert shown(lesson.Scrubber([figure], ["a"])) == (255, 255, 255)


def test_a_scrubber_wants_a_label_for_each_picture():
    with pytest.raises(ValueError, match="2 pictures and 1 labels"):
        lesson.Scrubber([grey(0), grey(1)], ["a"])


@pytest.mark.parametrize(("size", "wanted"), [((64, 32), (256, 128)), ((32, 64), (256, 512)), ((512, 256), (512, 256))])
def test_a_scrubber_keeps_a_pictures_proportions(size, wanted):
    scrubber = lesson.Scrubber([Image.new("RGB", size)], ["a"])
    assert Image.open(io.BytesIO(scrubber.picture.value)).size == wanted
