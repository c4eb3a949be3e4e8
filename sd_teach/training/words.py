"""Teach the text encoder a dictionary's words: `python -m sd_teach.training.words --help`.

Captions name 528 subjects; people say more: "automobile", "bunny", "spectacles". Of thousands of nouns the sentence
encoder tells which subject is nearest in meaning. "An automobile at night" is to give the states that "a car at night"
gives, so that the UNet, which has heard of cars alone, draws one. A noun that is a single token takes its subject's row
in the table of token embeddings; for the rest, rows and layers learn by distillation (Hinton et al. 2015,
https://arxiv.org/abs/1503.02531) from the encoder as it was, which also holds what captions mean where it is.
No picture is looked at, and the synonyms kept for the metrics are no more than nouns of the dictionary among others.

The same lesson says that "a cat and an owl" is a cat on the left and an owl on the right: from the owl's last token on
states become those of "an owl on the right", and the slots after the end speak of the two in turn. Left to itself, the
encoder mixes them, and the UNet puts a cat's shape into the owl.
"""

import copy
import random

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from sd_teach.text_encoder import FrozenCLIPEmbedder
from sd_teach.training import data, dictionary, scenes, text
from sd_teach.training.loop import Run, command, load_trained, parser, runs_folder, train

NEAR = 0.45  # how near to a subject a noun must be for the lesson; 1 would be the same meaning
SURE = 0.75  # the same for words that name no thing in the dictionary: "foxes", but not "thick"
KIND = (0.3, 0.2, 0.1)  # added for what the dictionary calls a noun: another name, what it is a kind of, what that is
KEEP = 4.0  # weight of the states of captions, which should stay
SLOTS = 10  # after the end token slots repeat: so many of them take part


def load_text_encoder(encoder: FrozenCLIPEmbedder) -> None:
    """Give it the weights of this lesson's run, or else those of the contrastive training's, or else assets/tiny's."""
    name = "words" if Run("words").checkpoint.exists() else "text"
    load_trained(encoder, name, "cond_stage_model.", inside="" if name == "words" else "text.")


def whole_words(tokenizer: CLIPTokenizer) -> dict[str, int]:
    """The tokens that are words of three letters or more, with their ids."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])  # it comes in any order
    words = {token.removesuffix("</w>"): i for token, i in vocabulary if token.endswith("</w>")}
    return {word: i for word, i in words.items() if len(word) > 2 and word.isascii() and word.isalpha()}


def called(noun: str, subjects: dict[int, int]) -> dict[int, int]:
    """The subjects that the dictionary itself calls a noun, and how far above it each is: {subject: 0, 1 or 2}.

    subjects: by the place where the dictionary has them. "guy" is another name of a cat there, but not of the animal.
    """
    found = {}
    for place, level in dictionary.kinds(noun).items():
        if place in subjects:
            found[subjects[place]] = min(level, found.get(subjects[place], level))
    return found


def nouns(tokenizer: CLIPTokenizer) -> dict[str, int]:
    """The dictionary's things, and words that are one token, each with the subject it is near to; no subject's name.

    Beside how near meanings are, it counts what the dictionary itself calls a noun. Names of two words written as one
    ("raincloud") belong to them, too, and plurals where the subject is named in the plural.
    """
    settings = "_".join(map(str, (len(data.subjects()), NEAR, SURE, *KIND)))
    cache = runs_folder() / "data" / f"nouns_{settings}.pt"
    if not cache.exists():
        names = {name: subject.index for subject in data.subjects() for name in subject.names}
        places = {dictionary.place(name): subject for name, subject in names.items()}
        kinds = {noun: called(noun, places) for noun in dictionary.nouns()}
        words = whole_words(tokenizer)
        others = [noun for noun in kinds if noun not in words]
        things = [noun for noun in others if kinds[noun] or dictionary.is_thing(noun, names=True)]
        near = text.nearness(torch.cat([text.meanings(things), text.token_meanings(tokenizer)[list(words.values())]]))
        told = {}
        for word, row in zip([*things, *words], near, strict=True):
            for subject, level in kinds.get(word, {}).items():
                row[subject] += KIND[level]
            if row.max() > (NEAR if kinds.get(word) or dictionary.meaning(word) else SURE):
                told[word] = int(row.argmax())
        several = [word for word, subject in told.items() if data.subjects()[subject].name.endswith("s")]
        told = {scenes.plural(word): told[word] for word in several if not word.endswith("s")} | told
        told |= {name.replace(" ", ""): subject for name, subject in names.items()}
        torch.save({word: subject for word, subject in told.items() if word not in names}, cache)
    return torch.load(cache, weights_only=True)


def heard(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Which tokens captions have, names and plurals among them: bool [vocabulary]."""
    names = [name for subject in data.subjects() for name in subject.names]
    ids = tokenizer([*captions, *names, *map(scenes.plural, names)])["input_ids"]
    found = torch.zeros(len(tokenizer), dtype=torch.bool)
    found[[i for one in ids for i in one]] = True
    return found


@torch.no_grad()
def take_rows(table: Tensor, tokenizer: CLIPTokenizer, told: dict[str, int], known: Tensor) -> Tensor:
    """Give each of these words that is one token the row of its subject's name, where that is one token too.

    table: [vocabulary, d], changed in place. known: bool [vocabulary], the rows that stay. Returns which rows changed.
    """
    ids, taken = whole_words(tokenizer), torch.zeros_like(known)
    for word in told.keys() & ids.keys():
        names = [name for name in data.subjects()[told[word]].names if name in ids]
        if names and not known[ids[word]]:
            table[ids[word]] = table[ids[names[0]]]
            taken[ids[word]] = True
    return taken


def said_with(scene: list[int], nouns: tuple[str, str], seed: int) -> tuple[str, str]:
    """A caption of a scene, the same but for the subject's noun."""
    one, other = (scenes.caption(scene, random.Random(seed), {scene[scenes.SUBJECT]: [noun]}, 1.0)[0] for noun in nouns)
    return one, other


def alike(ids: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where captions that differ in a noun should mean the same: (row, slot in ids, slot in others), [n] each.

    ids, others: [b, 77]. From the noun's last token to the end, and some slots after it. The noun's tokens before its
    last, which cannot know yet what it will be, should say what the slot before the other noun says.
    """
    found = []
    for row, (one, other) in enumerate(zip(ids.tolist(), others.tolist(), strict=True)):
        ends, first, same = (one.index(49407), other.index(49407)), 0, 0
        while first < min(ends) and one[first] == other[first]:
            first += 1
        while same < min(ends) - first and one[ends[0] - same] == other[ends[1] - same]:
            same += 1
        slots = range(-same, min(SLOTS, 77 - max(ends)))
        found += [(row, slot, first - 1) for slot in range(first, ends[0] - same)]
        found += [(row, ends[0] + i, ends[1] + i) for i in slots]
    return torch.tensor(found).unbind(1)


def alone(scene: list[int], rng: random.Random) -> tuple[str, str, str]:
    """A caption of a pair in 3D, and the same of its first thing alone on the left, of its second alone on the right.

    "a cat and an owl at night", "a cat on the left at night", "an owl on the right at night".
    """
    things, tints = scene[: scenes.STYLE], scene[scenes.TINT : scenes.BACKGROUND]
    subjects = [data.subjects()[thing] for thing in things]
    names = [rng.choice(scenes.fitting(s.names, s, tint)) for s, tint in zip(subjects, tints, strict=True)]
    named, frame = rng.random() < 0.7, rng.choice(scenes.FRAMES["3d"])

    def say(scene: list[int], *nouns: str) -> str:
        return scenes.sentence(scene, nouns, background=named, frame=frame)

    def row(i: int, side: int) -> list[int]:
        return [things[i], scenes.NONE, 0, tints[i], scenes.NONE, scene[scenes.BACKGROUND], side, 0]

    return say(scene, *names), say(row(0, scenes.LEFT), names[0]), say(row(1, scenes.RIGHT), names[1])


def apart(ids: Tensor, firsts: Tensor, seconds: Tensor) -> Tensor:
    """Where captions of two things should say what those of one say: rows of (row, slot, whose, slot there), [n, 4].

    ids, firsts, seconds: [b, 77]. whose: 0 for the first's, 1 for the second's. The second thing's last token says what
    "right" says in "an owl on the right", and so on up to the end token. From there on slots take turns.
    """
    found = []
    for row, captions in enumerate(zip(ids.tolist(), firsts.tolist(), seconds.tolist(), strict=True)):
        both, _, second = captions
        end, *ends = (caption.index(49407) for caption in captions)
        back = 1
        while both[end - back] == second[ends[1] - back]:
            back += 1
        found += [(row, end - i, 1, ends[1] - i) for i in range(1, back + 1)]
        found += [(row, slot, slot % 2, min(76, ends[slot % 2] + slot - end)) for slot in range(end, 77)]
    return torch.tensor(found)


def two_things(
    teacher: FrozenCLIPEmbedder, pairs: list[list[int]], count: int, rng: random.Random, slots: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Captions of `count` of these pairs and what they should mean: ids [count, slots]; rows, slots [m], states [m, d].

    pairs: scenes of two things. slots: how many to keep; 0 for SLOTS after the longest caption's end.
    """
    captions = zip(*(alone(scene, rng) for scene in rng.choices(pairs, k=count)), strict=True)
    ids, *others = (teacher.tokenize(list(side)) for side in captions)
    slots = slots or min(77, int(text.first_end(ids).max()) + SLOTS)
    found = apart(ids, *others)
    row, slot, whose, there = found[found[:, 1] < slots].unbind(1)
    with torch.no_grad():
        states = torch.stack([teacher.encode_tokens(other[:, : int(there.max()) + 1]) for other in others])
    return ids[:, :slots], row, slot, states[whose, row, there]


class Checks:
    """What the encoder can be asked without a UNet.

    synonyms: the fraction whose states are nearest to those of the right name; moved: how far the states of captions of
    one thing went, as a fraction of their variance; apart: how far those of two, in captions of the lesson, are from
    what it wants, again as a fraction of the variance.
    """

    def __init__(self, teacher: FrozenCLIPEmbedder, captions: list[str], pairs: list[list[int]]):
        self.ids, self.row, self.slot, self.wanted = two_things(teacher, pairs, 500, random.Random(1))
        self.asked = [(subject, word) for subject in data.subjects() for word in subject.synonyms]
        self.named = self.states(teacher, [(subject, subject.name) for subject in data.subjects()])
        self.captions = captions[:256]
        with torch.no_grad():
            self.before = teacher(self.captions)

    @torch.no_grad()
    def states(self, encoder: FrozenCLIPEmbedder, pairs: list[tuple[data.Subject, str]]) -> Tensor:
        ids = encoder.tokenize([data.caption(word, subject.article, "blue") for subject, word in pairs])[:, :36]
        around = text.first_end(ids)[:, None] + torch.arange(-5, SLOTS)  # "on a blue background", the end
        return encoder.encode_tokens(ids)[torch.arange(len(ids))[:, None], around].flatten(1)

    @torch.no_grad()
    def __call__(self, encoder: FrozenCLIPEmbedder) -> dict[str, float]:
        found = torch.cdist(self.states(encoder, self.asked), self.named).argmin(1)
        right = found == torch.tensor([subject.index for subject, _ in self.asked])
        moved = (encoder(self.captions) - self.before).square().mean() / self.before.var()
        error = (encoder.encode_tokens(self.ids)[self.row, self.slot] - self.wanted).square().mean()
        return {
            "synonyms": right.float().mean().item(),
            "moved": moved.item(),
            "apart": (error / self.wanted.var()).item(),
        }


@command
def main() -> None:
    options = parser(__doc__, run="words", steps=4000, batch=128, lr=1e-3, fresh=False)
    options = options.parse_args()
    run = Run(options.run)
    torch.manual_seed(0)
    teacher = FrozenCLIPEmbedder(text.TINY)
    load_trained(teacher, "text", "cond_stage_model.", inside="text.")
    tokenizer = teacher.tokenizer
    drawn = scenes.draw(16_000, torch.Generator().manual_seed(0))
    drawn = drawn[drawn[:, scenes.LAYOUT] != scenes.PAIR].tolist()  # pairs have a lesson of their own
    captions = [scenes.caption(scene, random.Random(i))[0] for i, scene in enumerate(drawn)]
    of_subject = [[] for _ in data.subjects()]
    for scene in drawn:
        of_subject[scene[scenes.SUBJECT]].append(scene)

    model = copy.deepcopy(teacher).requires_grad_(True)
    table = model.transformer["text_model"].embeddings.token_embedding.weight
    told, ids = nouns(tokenizer), whole_words(tokenizer)
    known = heard(tokenizer, captions)
    known |= take_rows(table, tokenizer, told, known)
    table.register_hook(lambda gradient: gradient * ~known[:, None])
    told = [(noun, subject) for noun, subject in told.items() if noun not in ids or not known[ids[noun]]]
    pairs = scenes.draw(16_000, torch.Generator().manual_seed(0), {"pair": 1.0}).tolist()

    def loss_at(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(told), (options.batch,), generator=generator).tolist()
        rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
        said = []
        for noun, subject in (told[i] for i in chosen):
            both = (noun, data.subjects()[subject].name)
            said.append(said_with(rng.choice(of_subject[subject]), both, rng.randrange(2**32)))
        ids, others = (teacher.tokenize(list(side)) for side in zip(*said, strict=True))
        row, slot, other_slot = alike(ids, others)
        n = 1 + int(max(slot.max(), other_slot.max()))
        # the UNet reads all 77 slots of a caption; mostly fewer of them, for speed
        kept = teacher.tokenize(rng.choices(captions, k=options.batch // 2))[:, : 77 if rng.random() < 0.1 else n]
        with torch.no_grad():
            wanted, before = teacher.encode_tokens(others[:, :n])[row, other_slot], teacher.encode_tokens(kept)
        error = (model.encode_tokens(ids[:, :n])[row, slot] - wanted).square().mean()
        kept_error = (model.encode_tokens(kept) - before).square().mean()

        slots = 77 if rng.random() < 0.1 else 0
        ids, row, slot, wanted = two_things(teacher, pairs, options.batch // 2, rng, slots)
        stays = torch.ones(ids.shape, dtype=torch.bool)
        stays[row, slot] = False
        with torch.no_grad():
            before = teacher.encode_tokens(ids)
        states = model.encode_tokens(ids)
        apart_error = (states[row, slot] - wanted).square().mean()
        return error + KEEP * kept_error + apart_error + (states - before)[stays].square().mean()

    checks = Checks(teacher, captions, pairs)
    settings = {"average_decay": 0.998, "weight_decay": 0.0, "fast": [table]}  # a row learns only when its token comes
    train(run, model, loss_at, lambda average, step: checks(average), options, **settings)


if __name__ == "__main__":
    main()
