"""CLIPScore and RefCLIPScore: how near a written caption lies to its image, and to the true captions as well."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.core.batch import Caption
from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, FigureGroup
from mmlm.evaluation.clip_scorers import OpenClip, OwnEmbeddings, Scorer
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.image_use import shuffled_images
from mmlm.evaluation.intervals import mean_intervals
from mmlm.evaluation.per_item import ItemValues
from mmlm.evaluation.requires import Requires
from mmlm.evaluation.split import EncodedSplit
from mmlm.evaluation.written_captions import scored_decoding, written_captions

WEIGHT = 2.5
"""What a similarity is multiplied by, so that scores of usual captions fill [0, 1]; no score is above it."""
_SEED = 0
_AT_ONCE = 4096
"""References that are compared at once."""

GROUP = FigureGroup(
    "Captions by embedding",
    "How near do the written captions lie to their images? Whoever scores has to know images and texts: a model that "
    "was never trained to embed them, and scores its own captions, is at chance.",
)


def _figure(name: str, meaning: str) -> Figure:
    return Figure(
        name,
        meaning,
        GROUP,
        higher_is_better=True,
        chance=f"{name}/chance",
        low=f"{name}/low",
        high=f"{name}/high",
        count="scored",
        shown=("table", "chart", "compare"),
    )


class ClipScore:
    """CLIPScore and RefCLIPScore (Hessel et al., arXiv:2104.08718) of the captions that the model writes.

    CLIPScore is 2.5 * max(cos(image, caption), 0). RefCLIPScore is the harmonic mean of that and of max(cos(caption,
    reference), 0) for the nearest of the image's true captions; 0 where both are 0.

    Args:
        language: the language to caption in, and the only one whose references count; None counts all.
        decoding: how captions are written; greedy by default. Its language is that of the evaluator.
        scorer: a model of open_clip that embeds images and texts; None is the model itself, by its own embeddings.
        prefix: what every text begins with for the scorer, such as the paper's ``"A photo depicts "``.

    Raises:
        ArgumentError: as ``scored_decoding``.
    """

    needs_decoder = True
    figures: Mapping[str, Figure] = {
        "CLIPScore": _figure("CLIPScore", "2.5 times the cosine of image and caption, where that is positive"),
        "RefCLIPScore": _figure(
            "RefCLIPScore", "harmonic mean of CLIPScore and the cosine of the caption and the nearest true one"
        ),
    }

    def __init__(
        self,
        language: str | None = None,
        decoding: GenerationSettings | None = None,
        scorer: OpenClip | None = None,
        prefix: str = "",
    ) -> None:
        self.decoding = scored_decoding(decoding, language)
        self.language, self.scorer, self.prefix = language, scorer, prefix
        self.requires = Requires(language, own_texts=True)
        self.rules: Mapping[str, str] = {
            "decoding": self.decoding.in_words,
            "language": "any" if language is None else language,
            "scorer": self._by.in_words,
            "prefix": prefix,
        }

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields the two, with intervals over concepts and chance, and ``scored``, how many captions count.

        Chance is the score of the same captions, each given to an image of another concept; where one concept has more
        than half of the images that cannot be done, and is left out. Raises UserError without a caption to score.
        """
        found = self._embedded(split)
        scores = found.scores()
        ends = mean_intervals(torch.stack(list(scores.values()), dim=1), found.concept, _SEED).tolist()
        yield "scored", float(len(found.ids))
        for (name, values), (low, high) in zip(scores.items(), ends, strict=True):
            yield name, values.mean().item()
            yield f"{name}/low", low
            yield f"{name}/high", high
        try:
            dealt = shuffled_images(found.concept, _SEED)
        except UserError:
            return
        for name, values in found.scores(dealt).items():
            yield f"{name}/chance", values.mean().item()

    def per_item(self, split: EncodedSplit) -> Iterator[ItemValues]:
        """Yields both scores of each caption, with the caption."""
        found = self._embedded(split)
        for name, values in found.scores().items():
            yield ItemValues(name, found.ids, found.concept, values, found.said)

    def with_decoding(self, decoding: GenerationSettings) -> Self:
        """The scores of captions that are written otherwise."""
        return type(self)(self.language, decoding, self.scorer, self.prefix)

    @property
    def _by(self) -> Scorer:
        return OwnEmbeddings() if self.scorer is None else self.scorer

    def _embedded(self, split: EncodedSplit) -> "_Embedded":
        found = written_captions(split, self.language, self.decoding)
        said = [Caption(self.prefix + text, self.language) for text in found.captions]
        true = [Caption(self.prefix + text.text, text.language) for text in chain.from_iterable(found.truths)]
        images, texts = self._by.embed(split, found.rows, [*said, *true])
        texts = texts.cpu()
        owner = torch.arange(len(said)).repeat_interleave(torch.tensor([len(truths) for truths in found.truths]))
        embeddings = images.cpu(), texts[: len(said)], texts[len(said) :]
        return _Embedded(found.ids, found.concept, found.captions, *embeddings, owner)


@dataclass(frozen=True)
class _Embedded:
    """The n images with their captions and references, on the CPU."""

    ids: list[str]
    concept: Tensor
    """int64[n]."""
    said: list[str]
    images: Tensor
    """float[n, E]."""
    captions: Tensor
    """float[n, E]."""
    references: Tensor
    """float[R, E], in the order of the images."""
    owner: Tensor
    """int64[R]: the image of each reference."""

    def scores(self, dealt: Tensor | None = None) -> dict[str, Tensor]:
        """float64[n] of each score; with ``dealt`` int64[n], image i is given the caption of image ``dealt[i]``."""
        captions = self.captions if dealt is None else self.captions[dealt]
        by_image = WEIGHT * cosines(self.images, captions).clamp(min=0)
        by_reference = torch.cat(
            [
                cosines(captions[owner], part)
                for owner, part in zip(self.owner.split(_AT_ONCE), self.references.split(_AT_ONCE), strict=True)
            ]
        )
        nearest = torch.zeros_like(by_image).scatter_reduce(0, self.owner, by_reference, "amax")
        return {"CLIPScore": by_image, "RefCLIPScore": harmonic_mean(by_image, nearest)}


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """float64[n]: the cosine of each row of float[n, E] ``a`` and ``b``."""
    return (F.normalize(a.double(), dim=1) * F.normalize(b.double(), dim=1)).sum(dim=1)


def harmonic_mean(a: Tensor, b: Tensor) -> Tensor:
    """float64[n] of numbers that are not negative; 0 where both are 0."""
    return torch.where(a + b > 0, 2 * a * b / (a + b).clamp(min=torch.finfo(a.dtype).tiny), 0.0)
