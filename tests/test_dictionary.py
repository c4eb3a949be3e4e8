"""What words mean, by a dictionary of five lines in WordNet's format."""

import pytest

from sd_teach.training import data, dictionary
from sd_teach.training.words import called

SENSES = [  # lexicographer file, words, place of what it is a kind of, gloss
    (5, ["animal"], None, "a living being"),
    (5, ["duck"], 0, "a swimming bird"),
    (5, ["mallard", "Anas_platyrhynchos"], 1, 'wild dabbling duck; "a mallard on the pond"'),
    (17, ["Red", "Red_River"], None, "a tributary of the Mississippi"),
    (7, ["beauty"], None, "what pleases"),
]


@pytest.fixture(autouse=True)
def small_dictionary(tmp_path, monkeypatch):
    folder = tmp_path / "dict"
    folder.mkdir()
    lines, places, index = b"", [], ""
    for category, words, above, gloss in SENSES:
        places.append(len(lines))
        listed = " ".join(f"{word} 0" for word in words)
        pointers = f"001 @ {places[above]:08} n 0000" if above is not None else "000"
        lines += f"{len(lines):08} {category:02} n {len(words):02x} {listed} {pointers} | {gloss}  \n".encode()
        for word in words:
            index += f"{word.lower()} n 1 1 @ 1 0 {places[-1]:08}  \n"
    (folder / "data.noun").write_bytes(lines)
    (folder / "index.noun").write_text("  1 a licence comes first\n" + index)
    monkeypatch.setattr(data, "fetch", lambda package, wanted: tmp_path)
    dictionary._files.cache_clear()
    dictionary.things.cache_clear()
    yield
    dictionary._files.cache_clear()
    dictionary.things.cache_clear()


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("mallard", "mallard, Anas platyrhynchos: duck, wild dabbling duck"),
        ("mallards", "mallards, Anas platyrhynchos: duck, wild dabbling duck"),
        ("animal", "animal: , a living being"),
        ("red", None),  # the river, but in lower case a colour
        ("beauty", None),  # a noun, but no thing
        ("blorp", None),
    ],
)
def test_a_meaning_is_the_line_of_the_commonest_thing(word, line):
    assert dictionary.meaning(word) == line


def test_things_are_nouns_in_lower_case_whose_commonest_sense_can_be_drawn():
    assert set(dictionary.things()) == {"animal", "duck", "mallard"}


def test_nouns_have_up_to_three_words_and_names_of_several_words_are_things_unless_they_are_latin():
    assert set(dictionary.nouns()) == {"animal", "duck", "mallard", "anas platyrhynchos", "red", "red river", "beauty"}
    things = {noun for noun in dictionary.nouns() if dictionary.is_thing(noun, names=True)}
    assert things == {"animal", "duck", "mallard", "red river"}


def test_kinds_are_a_nouns_senses_and_what_lies_above_them():
    places = [dictionary.place(noun) for noun in ("mallard", "duck", "animal")]
    assert dictionary.kinds("mallard") == dict(zip(places, (0, 1, 2), strict=True))
    assert dictionary.kinds("anas platyrhynchos") == dictionary.kinds("mallard")  # another name of the same
    assert dictionary.kinds("blorp") == {}


def test_a_noun_has_its_place_even_if_it_is_no_thing():
    assert dictionary.thing("beauty") is None and dictionary.place("beauty") in dictionary.kinds("beauty")
    assert dictionary.place("duck") == dictionary.thing("duck") == dictionary.thing("ducks")
    assert dictionary.place("blorp") is None


def test_a_noun_is_called_what_lies_above_it_in_the_same_sense():
    subjects = {dictionary.place("duck"): 7, dictionary.place("red river"): 8, None: 9}
    assert called("mallard", subjects) == {7: 1}
    assert called("duck", subjects) == {7: 0}
    assert called("beauty", subjects) == {}
