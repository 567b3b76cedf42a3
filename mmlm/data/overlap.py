"""What training and evaluation data have in common: equal images, images that look alike, equal captions.

All captions are compared, and of the images of each set a number that is evenly spaced over it: decoding all of a large
set would take longer than its first steps. ``python -m mmlm.lint`` compares every image, and writes lists of ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mmlm.core.batch import Example
from mmlm.data.look import Look, alike, equal_pixels, look_of
from mmlm.data.sources import Source, read_example, texts_of
from mmlm.data.tokenizer import normalise_text

THREADS = 2
"""Decoding an image lets another thread run."""


@dataclass(frozen=True)
class Shared:
    """What a split has in common with the training data."""

    looked_at: int
    """Images of the split that were compared with those of the training data."""
    equal: int
    """Of those, the images whose pixels a training image has too."""
    alike: int
    """Of the rest, the images that look like a training image; see ``mmlm.data.look``."""
    captioned: int
    """Examples of the split with captions."""
    known: int
    """Of those, the examples that have only captions of the training data."""


@dataclass(frozen=True)
class Overlap:
    """What each split has in common with the training data."""

    looked_at: int
    """Training images that were compared."""
    images: int
    """Examples of the training data."""
    splits: Mapping[str, Shared]

    def line(self) -> str:
        """For people."""
        told = "; ".join(f"{name} {_told(shared)}" for name, shared in self.splits.items())
        return f"in common with the training data ({_of(self.looked_at, self.images)} images looked at): {told}"


def _told(shared: Shared) -> str:
    images = f"{shared.equal:,} equal and {shared.alike:,} similar of {shared.looked_at:,} images"
    return f"{images}, all captions of {shared.known:,} of {shared.captioned:,} examples"


def _of(part: int, whole: int) -> str:
    return f"all {whole:,}" if part == whole else f"{part:,} of {whole:,}"


def overlap(train: Source, splits: Mapping[str, Source], images: int) -> Overlap:
    """Compares each split with the training data; ``images`` of each set are looked at, at most.

    What cannot be read is passed over. Captions are equal if people see no difference, by ``normalise_text`` and case.
    """
    ours = _looks(train, images)
    known = {_plain(caption.text) for example in texts_of(train) for caption in example.captions}
    return Overlap(len(ours), len(train), {name: _shared(ours, known, split, images) for name, split in splits.items()})


def _shared(ours: Sequence[Look], known: set[str], split: Source, images: int) -> Shared:
    theirs = _looks(split, images)
    both = [*ours, *theirs]
    equal = {i for group in equal_pixels(both) if group[0] < len(ours) for i in group if i >= len(ours)}
    near = {other for one, other in alike(both) if one < len(ours) <= other} - equal
    captioned = [example.captions for example in texts_of(split) if example.captions]
    seen = sum(all(_plain(caption.text) in known for caption in captions) for captions in captioned)
    return Shared(len(theirs), len(equal), len(near), len(captioned), seen)


def _looks(source: Source, most: int) -> list[Look]:
    """The looks of at most ``most`` images, evenly spaced over the source."""
    count = min(most, len(source))
    places = [number * len(source) // count for number in range(count)]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(_present(pool.map(lambda index: _look(source, index), places)))


def _look(source: Source, index: int) -> Look | None:
    example = read_example(source, index)
    return look_of(example.image) if isinstance(example, Example) and example.image is not None else None


def _present(looks: Iterator[Look | None]) -> Iterator[Look]:
    return (look for look in looks if look is not None)


def _plain(text: str) -> str:
    return normalise_text(text).casefold()
