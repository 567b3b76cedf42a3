"""Scenes that are drawn as they are read: two groups of shapes, told apart by colour, shape, size, count and place.

One position is one scene; there are no files. Everything that a scene has is known exactly: its words, its masks and
boxes, and captions that are false of it. The two groups always differ in colour and in shape, so that a caption with
their colours swapped has the same words and is wrong: a model that reads a caption as a bag of words cannot tell.
(CLEVR, arXiv:1612.06890, is the larger relative: rendered in three dimensions, and asked questions about.)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeVar

import torch
from torch import Tensor

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import ArgumentError
from mmlm.core.keyed_random import keyed_uniform, stream
from mmlm.core.ranges import check_counts
from mmlm.data.contrasts import Contrast, Contrasts
from mmlm.data.regions import Region
from mmlm.data.scene_drawing import COLOURS, GROUNDS, SHAPES, SIZES, UNITS, Drawn, coverage, paint

Option = TypeVar("Option")
Split = Literal["train", "seen", "unseen"]
SPLITS: Mapping[str, int] = {"train": 0, "seen": 1, "unseen": 2}
"""``train`` and ``seen`` have no combination of ``UNSEEN``; in ``unseen`` every scene has one."""
COUNTS: Mapping[str, int] = {"a": 1, "two": 2, "three": 3}
"""The words of the counts; what is counted gets an s, or es, from two on."""
_PAIRS = tuple(product(COLOURS, SHAPES))
UNSEEN = tuple((colour, tuple(SHAPES)[number * 2 % len(SHAPES)]) for number, colour in enumerate(COLOURS))
"""The combinations of colour and shape that no training scene has: one of each colour, and one or two of each shape."""
SEEN = tuple(pair for pair in _PAIRS if pair not in UNSEEN)
"""All other combinations."""
WORDINGS: Mapping[str, Sequence[str]] = {
    "left of": (
        "{first} left of {second}",
        "{first} to the left of {second}",
        "{second} right of {first}",
        "{second} to the right of {first}",
        "on the left {first}, on the right {second}",
    ),
    "above": (
        "{first} above {second}",
        "{first} over {second}",
        "{second} below {first}",
        "{second} under {first}",
        "at the top {first}, at the bottom {second}",
    ),
}
"""For each relation of the first group to the second: the ways to say it."""
_STREAM = stream("mmlm.data.scenes")
_ATTRIBUTES, _MOST_WORDINGS = 8, 5
"""Uniform numbers that the words of a scene take, and those that put its wordings in an order."""
_TEXTS = _ATTRIBUTES + _MOST_WORDINGS
"""Uniform numbers that its captions take; the others place and tint what is drawn."""
_GROUND = 4
"""Those of the ground's colour."""
_DRAWS = _TEXTS + _GROUND + 2 * (2 + 2 * 3)
"""All of them: each group has a radius, a shade and the places of three shapes at most."""
_AT_ONCE = 4096
"""Scenes that are drawn together where many are listed."""


@dataclass(frozen=True)
class Group:
    """Some equal shapes."""

    colour: str
    shape: str
    size: str
    count: int

    @property
    def words(self) -> str:
        """``two small red crosses``."""
        number = next(word for word, count in COUNTS.items() if count == self.count)
        noun = self.shape if self.count == 1 else f"{self.shape}{'es' if self.shape.endswith('s') else 's'}"
        return f"{number} {self.size} {self.colour} {noun}"


@dataclass(frozen=True)
class Scene:
    """The words of a scene."""

    first: Group
    """The group on the left, or above."""
    second: Group
    relation: str
    """Of the first to the second: a key of ``WORDINGS``."""

    @property
    def name(self) -> str:
        """The scene in its first wording: equal for scenes that differ in their drawing only."""
        return self.caption(0)

    def caption(self, wording: int) -> str:
        """What is so, in one of the ways to say it."""
        return WORDINGS[self.relation][wording].format(first=self.first.words, second=self.second.words)

    @property
    def has_unseen(self) -> bool:
        """Whether training scenes lack the colour and shape of one of the groups."""
        return any((group.colour, group.shape) in UNSEEN for group in (self.first, self.second))

    def false(self) -> Mapping[str, "Scene"]:
        """Scenes that this one is not, by what differs.

        ``swap_colour`` leaves every word in its number. ``swap_shape``, ``swap_size`` and ``swap_count`` exchange one
        attribute of the groups, and are there where it differs; ``swap_place`` exchanges the groups. ``replace_count``
        counts the first group wrong by one.
        """
        first, second = self.first, self.second
        found = {"swap_colour": self._with(replace(first, colour=second.colour), replace(second, colour=first.colour))}
        found["swap_shape"] = self._with(replace(first, shape=second.shape), replace(second, shape=first.shape))
        if first.size != second.size:
            found["swap_size"] = self._with(replace(first, size=second.size), replace(second, size=first.size))
        if first.count != second.count:
            found["swap_count"] = self._with(replace(first, count=second.count), replace(second, count=first.count))
        found["swap_place"] = self._with(second, first)
        other = first.count + 1 if first.count < max(COUNTS.values()) else first.count - 1
        found["replace_count"] = self._with(replace(first, count=other), second)
        return found

    def _with(self, first: Group, second: Group) -> "Scene":
        return replace(self, first=first, second=second)


@dataclass(frozen=True)
class Drawing:
    """A scene as it is drawn."""

    image: Tensor
    """uint8[3, S, S]."""
    masks: Tensor
    """float32[2, S, S]: the share of each pixel that the first and the second group cover."""
    boxes: tuple[tuple[tuple[float, float, float, float], ...], ...]
    """For each group the left, upper, right and lower end of each of its shapes, in pixels."""


class Scenes:
    """A map-style source of drawn scenes.

    Args:
        split: which combinations of colour and shape there are, see ``SPLITS``; the scenes of two splits differ.
        examples: how many scenes.
        seed: of all scenes; another seed draws others.
        size: pixels a side.
        wordings: captions of a scene, each in another way of saying it, drawn for each scene.
        language: of the captions.

    Raises:
        ArgumentError: an unknown split, or a number below 1 (``size``: below 16), or more wordings than there are.
    """

    def __init__(
        self,
        split: Split = "train",
        examples: int = 20000,
        seed: int = 0,
        size: int = 32,
        wordings: int = 2,
        language: str | None = "en",
    ) -> None:
        if split not in SPLITS:
            raise ArgumentError(f"split: {split!r} is no split of the scenes; choose one of {', '.join(SPLITS)}")
        check_counts({"examples": examples, "wordings": wordings})
        check_counts({"size": size}, 16)
        if wordings > _MOST_WORDINGS:
            raise ArgumentError(f"wordings: {wordings} must be at most {_MOST_WORDINGS}, the ways to say a relation")
        self._split, self._examples, self._seed, self._size = split, examples, seed, size
        self._wordings, self._language = wordings, language

    def __len__(self) -> int:
        """Number of scenes."""
        return self._examples

    def __getitem__(self, index: int) -> Example:
        """See ``Source``."""
        draws = self._draws_of(index)
        scene = self._scene_of(draws)
        texts = self._texts_of(index, scene, self._order(draws))
        return Example(texts.id, self._painted(draws, *self._groups_of(scene, draws)), texts.captions, texts.concept)

    def scene(self, index: int) -> Scene:
        """The words of the scene at a position."""
        return self._scene_of(self._draws_of(index))

    def drawing(self, index: int) -> Drawing:
        """The scene at a position with its masks and boxes."""
        draws = self._draws_of(index)
        groups = self._groups_of(self._scene_of(draws), draws)
        masks = [torch.stack([torch.from_numpy(coverage(one, self._size)) for one in group]) for group in groups]
        boxes = tuple(tuple(one.box for one in group) for group in groups)
        covered = torch.stack([of_group.sum(dim=0).clamp(max=1) for of_group in masks]).float()
        return Drawing(self._painted(draws, *groups), covered, boxes)

    def regions(self, id: str) -> tuple[Region, ...]:
        """See ``HasRegions``: the two groups, each by its words."""
        index = self.index_of(id)
        scene, masks = self.scene(index), self.drawing(index).masks
        return tuple(Region(group.words, mask) for group, mask in zip((scene.first, scene.second), masks, strict=True))

    def index_of(self, id: str) -> int:
        """The position of the scene with this id."""
        return int(id.rpartition("/")[2])

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        return (caption for texts in self.texts() for caption in texts.captions)

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``ListsTexts``."""
        for index, scene, order in self._listed():
            yield self._texts_of(index, scene, order)

    def attributes(self) -> Mapping[str, Mapping[str, str]]:
        """Colour, shape, size and count of the first group (on the left, or above), and the relation, by the id."""
        found: dict[str, dict[str, str]] = {name: {} for name in ("colour", "shape", "size", "count", "relation")}
        for index, scene, _ in self._listed():
            first = scene.first
            values = (first.colour, first.shape, first.size, str(first.count), scene.relation)
            for of_name, value in zip(found.values(), values, strict=True):
                of_name[self._id(index)] = value
        return found

    def contrasts(self) -> Contrasts:
        """See ``HasContrasts``: what ``Scene.false`` has, in the wording of the scene's first caption.

        But for ``unseen`` scenes, no false caption has a combination that training never shows: it could be told by
        that alone.
        """
        return {
            self._id(index): [
                Contrast(kind, scene.caption(order[0]), false.caption(order[0]))
                for kind, false in scene.false().items()
                if self._split == "unseen" or not false.has_unseen
            ]
            for index, scene, order in self._listed()
        }

    def _listed(self) -> Iterator[tuple[int, Scene, Sequence[int]]]:
        """Position, words and wordings of every scene."""
        for start in range(0, self._examples, _AT_ONCE):
            places = torch.arange(start, min(start + _AT_ONCE, self._examples))
            for index, draws in zip(places.tolist(), self._draws(places, _TEXTS), strict=True):
                yield index, self._scene_of(draws), self._order(draws)

    def _draws(self, places: Tensor, count: int) -> list[list[float]]:
        """Uniform numbers for each of int64[n] ``places``."""
        return keyed_uniform(self._seed, SPLITS[self._split], places, count, _STREAM).tolist()

    def _draws_of(self, index: int) -> list[float]:
        if not 0 <= index < self._examples:
            raise IndexError(f"scene {index} is none of {self._examples}")
        return self._draws(torch.tensor([index]), _DRAWS)[0]

    def _order(self, draws: Sequence[float]) -> list[int]:
        """The wordings of a scene, in a random order."""
        keys = draws[_ATTRIBUTES:_TEXTS]
        return sorted(range(_MOST_WORDINGS), key=keys.__getitem__)[: self._wordings]

    def _id(self, index: int) -> str:
        return f"{self._split}/{self._seed}/{index}"

    def _texts_of(self, index: int, scene: Scene, order: Sequence[int]) -> ExampleTexts:
        captions = tuple(Caption(scene.caption(wording), self._language) for wording in order)
        return ExampleTexts(self._id(index), captions, scene.name, True)

    def _scene_of(self, draws: Sequence[float]) -> Scene:
        one = _chosen(UNSEEN if self._split == "unseen" else SEEN, draws[0])
        other = _chosen([pair for pair in SEEN if pair[0] != one[0] and pair[1] != one[1]], draws[1])
        pairs = (one, other) if draws[2] < 0.5 else (other, one)
        groups = [
            Group(colour, shape, _chosen(tuple(SIZES), size), _chosen(tuple(COUNTS.values()), count))
            for (colour, shape), size, count in zip(pairs, draws[3:5], draws[5:7], strict=True)
        ]
        return Scene(groups[0], groups[1], _chosen(tuple(WORDINGS), draws[7]))

    def _groups_of(self, scene: Scene, draws: Sequence[float]) -> tuple[list[Drawn], list[Drawn]]:
        """The shapes of both groups, in their places."""
        scale, rest = self._size / UNITS, iter(draws[_TEXTS + _GROUND :])
        groups: tuple[list[Drawn], list[Drawn]] = ([], [])
        for number, (group, drawn) in enumerate(zip((scene.first, scene.second), groups, strict=True)):
            radius = SIZES[group.size] * (0.95 + 0.1 * next(rest))
            shade = 24 * (next(rest) - 0.5)
            red, green, blue = (min(255.0, channel + shade) for channel in COLOURS[group.colour])
            # The picture is cut in two halves, one for each group, and a half along its length, one part for a shape.
            part = UNITS / group.count
            for place in range(group.count):
                along = part * (place + 0.5) + (2 * next(rest) - 1) * (part / 2 - radius - 0.2)
                across = UNITS / 2 * (number + 0.5) + (2 * next(rest) - 1) * (UNITS / 4 - radius - 0.6)
                x, y = (across, along) if scene.relation == "left of" else (along, across)
                drawn.append(Drawn(group.shape, (red, green, blue), x * scale, y * scale, radius * scale))
        return groups

    def _painted(self, draws: Sequence[float], first: Sequence[Drawn], second: Sequence[Drawn]) -> Tensor:
        """uint8[3, S, S]."""
        chosen, *tint = draws[_TEXTS : _TEXTS + _GROUND]
        ground = [channel + 5 * (draw - 0.5) for channel, draw in zip(_chosen(GROUNDS, chosen), tint, strict=True)]
        return torch.from_numpy(paint(ground, [*first, *second], self._size))


def _chosen(options: Sequence[Option], draw: float) -> Option:
    """One of the options, by a uniform number."""
    return options[int(draw * len(options))]
