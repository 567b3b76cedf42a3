"""What a model gives back when it captions, classifies, searches and shows where it looked.

Each result keeps the image that it is about as it was given, and shows it in a notebook.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.core.wording import printable
from mmlm.experiment.similarity_scale import Scale
from mmlm.pretrained.inputs import AnyImage, pixels_of
from mmlm.reports.contact_sheet import thumbnail_uri
from mmlm.reports.notebook import Picture, gallery, lit

_SHOWN = 3
"""Labels and alternatives of an image in a notebook."""
_PICTURES = 60
"""Pictures of a list in a notebook, at most."""


@dataclass(frozen=True)
class WrittenCaption:
    """A caption that the model wrote."""

    text: str
    token_log_probabilities: tuple[float, ...]
    """Of each token after those before it, natural logarithms; of the end token too, where the caption reached it."""
    alternatives: tuple["WrittenCaption", ...] = ()
    """Other captions of the image, the highest score first."""
    image: AnyImage | None = field(default=None, repr=False, compare=False)
    score: float | None = field(default=None, compare=False)
    """What the captions of an image are ordered by: log-probability under the rules / tokens ** length penalty, or the
    similarity to the image where it decides."""

    @property
    def log_probability(self) -> float:
        """Of the whole caption: the sum over its tokens."""
        return sum(self.token_log_probabilities)

    @property
    def per_token(self) -> float:
        """The mean over its tokens, which does not fall with the length."""
        return self.log_probability / len(self.token_log_probabilities)

    def __str__(self) -> str:
        return self.text

    def picture(self) -> Picture:
        """The caption below its image."""
        others = [f"{one.text} ({one.log_probability:.2f})" for one in self.alternatives[:_SHOWN]]
        return Picture(thumbnail(self.image), [self.text, f"log-probability {self.log_probability:.2f}", *others])

    def _repr_html_(self) -> str:
        return gallery("", [self.picture()])


@dataclass(frozen=True)
class Classification:
    """The label of an image, among those that were given."""

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    """Of each of ``labels``; their sum is 1."""
    scale: Scale
    """What the similarities were multiplied by before the softmax, and where that comes from."""
    image: AnyImage | None = field(default=None, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The most probable one."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """That of ``label``."""
        return self.top(1)[0][1]

    def top(self, count: int) -> list[tuple[str, float]]:
        """The most probable labels with their probabilities; of equal ones, the first that was given comes first."""
        pairs = zip(self.labels, self.probabilities, strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])[:count]

    def picture(self) -> Picture:
        """The labels below the image."""
        return Picture(thumbnail(self.image), [f"{label} {100 * share:.1f}%" for label, share in self.top(_SHOWN)])

    def _repr_html_(self) -> str:
        return gallery("", [self.picture()])


@dataclass(frozen=True)
class Hit:
    """An image that a search found."""

    row: int
    """Its place among the images that were searched, from 0."""
    name: str
    """The path of a file; ``images.3`` for an image that is none."""
    similarity: float
    """Cosine, -1 to 1."""
    image: AnyImage = field(repr=False, compare=False)


@dataclass(frozen=True)
class SearchResult:
    """The images that are most similar to a query, the most similar first."""

    query: AnyImage = field(compare=False)
    hits: tuple[Hit, ...]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __getitem__(self, rank: int) -> Hit:
        return self.hits[rank]

    def _repr_html_(self) -> str:
        found = [Picture(thumbnail(hit.image), [f"{hit.similarity:.3f}", printable(hit.name)]) for hit in self.hits]
        if isinstance(self.query, str):
            return gallery(f"images nearest to: {self.query}", found[:_PICTURES])
        return gallery("images nearest to the first", [Picture(thumbnail(self.query), ["query"]), *found[:_PICTURES]])


@dataclass(frozen=True)
class Attention:
    """Where the decoder looked while it said a text."""

    text: str
    tokens: tuple[str, ...]
    """T texts, one a token: without start and end."""
    maps: Tensor = field(repr=False, compare=False)
    """float32[T, rows, columns]: the share of each patch of the image as each token was predicted. A map sums to at
    most 1: parts of the attention may lie on the text and on tokens that are no patch."""
    words: tuple[str, ...]
    word_maps: Tensor = field(repr=False, compare=False)
    """float32[words, rows, columns]: the mean over the tokens of a word, scaled to sum to 1."""
    seen: Tensor = field(repr=False, compare=False)
    """uint8[3, S, S]: the image as the model sees it, which the maps lie on."""

    def _repr_html_(self) -> str:
        lit_up = [
            Picture(thumbnail_uri(lit(self.seen, where)), [printable(word)])
            for word, where in zip(self.words, self.word_maps, strict=True)
        ]
        return gallery(self.text, [Picture(thumbnail_uri(self.seen), [""]), *lit_up])


Shown = TypeVar("Shown", WrittenCaption, Classification)


class Results(list[Shown]):
    """A list of results that shows their pictures in a notebook."""

    def _repr_html_(self) -> str:
        more = len(self) - _PICTURES
        return gallery(
            f"the first {_PICTURES} of {len(self):,}" if more > 0 else "", [r.picture() for r in self[:_PICTURES]]
        )


def thumbnail(image: AnyImage | None) -> str:
    """A small copy of an image as a ``data:`` address; empty for none, and for a file that cannot be read any more."""
    try:
        return "" if image is None else thumbnail_uri(pixels_of(image, "image"))
    except UserError:
        return ""
