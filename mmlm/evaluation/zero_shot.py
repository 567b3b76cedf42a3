"""Zero-shot classification: an image belongs to the concept whose texts lie nearest to it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.core.computing import exact_float32
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.figure import Figure, FigureGroup
from mmlm.core.intervals import share_interval
from mmlm.evaluation.macro_scores import given_classes, macro_scores
from mmlm.evaluation.per_item import ItemValues
from mmlm.evaluation.requires import Requires
from mmlm.evaluation.split import EncodedSplit

PLACE = "{}"
"""The place of a concept's text in a template."""
_IMAGES_AT_ONCE = 1024
"""Images that are compared with all classes at once."""

GROUP = FigureGroup("Zero-shot classification", "Is the image nearest to the texts of its own concept?")


def _macro(name: str, meaning: str) -> Figure:
    return Figure(
        f"Macro {name.replace('f1', 'F1')}",
        f"{meaning}; every class that has images weighs the same",
        GROUP,
        share=True,
        higher_is_better=True,
        chance=f"{name}/chance",
        low=f"{name}/low",
        high=f"{name}/high",
        shown=("table",),
    )


class ZeroShot:
    """Accuracy among the concepts of a split, by their texts alone (CLIP, arXiv:2103.00020, section 3.1.4).

    A class is a concept of the split that has a text. Each of its texts is put into each of ``templates``. The class is
    embedded as the mean of these prompts' embeddings, brought to length 1. An image is given to the class of the
    highest cosine similarity. Classes are known by their concept, never by a number, so that a split that lacks a class
    shifts nothing. Images of a concept without a text do not count.

    Classes of equal similarity share an image evenly: a model that embeds everything alike reaches chance.

    Args:
        templates: prompts with ``{}`` once; ``{}`` alone is the text itself.
        language: the language of the prompts, and the only one whose texts name a concept; None takes all texts.

    Raises:
        ArgumentError: no template, or one without the place of the text.
    """

    needs_decoder = False
    figures: Mapping[str, Figure] = {
        "top1": Figure(
            "Top 1",
            "the nearest class is the image's own",
            GROUP,
            title="Zero-shot, top 1",
            share=True,
            higher_is_better=True,
            chance="chance",
            low="top1/low",
            high="top1/high",
            shown=("table", "chart", "compare", "console"),
        ),
        "top5": Figure(
            "Top 5",
            "it is among the 5 nearest",
            GROUP,
            share=True,
            higher_is_better=True,
            chance="top5/chance",
            low="top5/low",
            high="top5/high",
            shown=("table",),
        ),
        "by_class": Figure(
            "Mean over classes",
            "top 1 of each class, every class weighing the same",
            GROUP,
            share=True,
            higher_is_better=True,
            chance="chance",
            low="by_class/low",
            high="by_class/high",
            shown=("table",),
        ),
        "precision": _macro("precision", "of the images given to a class, those that are of it"),
        "f1": _macro("f1", "harmonic mean of precision and recall (recall alone is the mean over classes)"),
    }

    def __init__(self, templates: Sequence[str] = (PLACE,), language: str | None = None) -> None:
        check_templates(templates)
        self.templates, self.language = tuple(templates), language
        self.rules: Mapping[str, str] = {
            "prompts": json.dumps(self.templates, ensure_ascii=False),
            "language": "any" if language is None else language,
            "ties": "classes of equal similarity share an image",
        }
        self.requires = Requires(language, by_concept=True, own_texts=True, concepts=2)

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields ``top1``, ``top5``, ``by_class``, ``precision`` and ``f1``, shares in [0, 1].

        Each comes with its interval and level of chance.

        Raises UserError without texts.
        """
        found = self._classified(split)
        places = found.places()
        of_class = class_means(within(places, 1), found.labels)
        yield from with_ends("top1", within(places, 1), found.labels)
        yield from with_ends("top5", within(places, 5), found.labels)
        yield from with_ends("by_class", of_class, torch.arange(len(of_class)))
        macro = macro_scores(given_classes(found.images, found.classes), found.labels.cpu(), len(found.classes))
        for name, score in zip(("precision", "f1"), macro, strict=True):
            yield name, score.value
            yield f"{name}/low", score.low
            yield f"{name}/high", score.high
            yield f"{name}/chance", score.chance
        yield "chance", 1 / len(found.classes)
        yield "top5/chance", min(1.0, 5 / len(found.classes))

    def per_item(self, split: EncodedSplit) -> Iterator[ItemValues]:
        """Yields whether each image's own class is the nearest, and among the 5 nearest."""
        found = self._classified(split)
        places, rows = found.places(), found.rows.tolist()
        ids, concept = [split.image_ids[row] for row in rows], split.image_concept.cpu()[rows]
        for name, count in (("top1", 1), ("top5", 5)):
            yield ItemValues(name, ids, concept, within(places, count).cpu())

    def _classified(self, split: EncodedSplit) -> "_Classified":
        """What every score is made of. Raises UserError as ``__call__``."""
        texts: dict[int, list[str]] = {}
        for concept in split.concepts:
            own = [text.text for text in concept.texts if self.language in (None, text.language)]
            if own:
                texts.setdefault(concept.key, []).extend(own)
        if not texts:
            raise UserError(f"no concept of the split '{split.name}' has a text to know it by")
        number_of = {key: number for number, key in enumerate(texts)}
        prompts, owner = class_prompts(list(texts.values()), self.templates)
        classes = class_vectors(split.embed_texts(prompts, self.language), owner, len(number_of))
        labels = torch.tensor([number_of.get(key, -1) for key in split.image_concept.tolist()], device=classes.device)
        known = labels >= 0
        return _Classified(known.nonzero().squeeze(1), split.gallery.image_embedding[known], labels[known], classes)


@dataclass(frozen=True)
class _Classified:
    """The n images whose concept has a text, and the K classes that they are given to."""

    rows: Tensor
    """int64[n], in the split."""
    images: Tensor
    """float32[n, E]."""
    labels: Tensor
    """int64[n]: the number of the class of each."""
    classes: Tensor
    """float32[K, E]."""

    def places(self) -> Tensor:
        """int64[n, 2]: see ``class_places``."""
        return class_places(self.images, self.classes, self.labels)


def with_ends(name: str, right: Tensor, cluster: Tensor) -> Iterator[tuple[str, float]]:
    """Yields the mean of ``right`` under ``name``, and the ends of its interval over clusters (``share_interval``)."""
    yield name, right.mean().item()
    low, high = share_interval(right.tolist(), cluster.tolist())
    yield f"{name}/low", low
    yield f"{name}/high", high


def check_templates(templates: Sequence[str]) -> None:
    """Raises ArgumentError for no template, or one without the place of the text."""
    if not templates:
        raise ArgumentError("templates: [] has no prompt; '{}' is the text itself")
    for template in templates:
        if template.count(PLACE) != 1:
            raise ArgumentError(f"templates: '{template}' must have {PLACE} once, where the text goes")


def class_prompts(texts: Sequence[Sequence[str]], templates: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each text of each class in each template, and the number of the class that each of these prompts belongs to."""
    prompts: list[str] = []
    owner: list[int] = []
    for number, of_class in enumerate(texts):
        prompts += [template.replace(PLACE, text) for text in of_class for template in templates]
        owner += [number] * (len(prompts) - len(owner))
    return prompts, owner


def class_vectors(prompts: Tensor, owner: Sequence[int], count: int) -> Tensor:
    """float[count, E], unit length: the mean of the embeddings of each class's prompts.

    ``prompts`` float[n, E] have unit length; ``owner`` is the class of each, and every class has some.
    """
    sums = prompts.new_zeros(count, prompts.shape[1])
    return F.normalize(sums.index_add(0, torch.tensor(owner, device=prompts.device), prompts), dim=1)


def class_probabilities(images: Tensor, classes: Tensor, scale: float) -> Tensor:
    """float64[B, K]: softmax over ``scale`` * similarity of float[B, E] images and float[K, E] classes of unit length.

    A bias that is added to all similarities, as that of the sigmoid loss, would change nothing.
    """
    return (scale * (images.double() @ classes.double().T)).softmax(dim=1)


def class_places(images: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """int64[B, 2]: for each image, how many classes are nearer than its own, and how many as near (its own included).

    ``images`` float[B, E] and ``classes`` float[K, E] have unit length; ``labels`` int64[B] are numbers of classes.
    """
    found = [torch.zeros(0, 2, dtype=torch.int64, device=images.device)]
    # In half precision, many classes would be as near as another.
    with exact_float32(images.device):
        for rows, of_rows in zip(images.split(_IMAGES_AT_ONCE), labels.split(_IMAGES_AT_ONCE), strict=True):
            similar = rows.float() @ classes.float().T
            own = similar.gather(1, of_rows[:, None])
            found.append(torch.stack([(similar > own).sum(dim=1), (similar == own).sum(dim=1)], dim=1))
    return torch.cat(found)


def within(places: Tensor, count: int) -> Tensor:
    """float64[B]: the chance of an image's own class to be among the ``count`` nearest, if chance breaks ties.

    ``places`` int64[B, 2] is as ``class_places`` makes it.
    """
    nearer, alike = places.double().unbind(dim=1)
    return ((count - nearer) / alike).clamp(0, 1)


def class_means(values: Tensor, labels: Tensor) -> Tensor:
    """float64[K]: the mean of float64[B] ``values`` over the images of each class that has images."""
    _, number, count = labels.unique(return_inverse=True, return_counts=True)
    return values.new_zeros(len(count)).index_add(0, number, values) / count
