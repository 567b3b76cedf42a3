"""overlap: what an evaluation split has in common with the training data, against the plain definition."""

import torch

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import CorruptImage
from mmlm.data.overlap import Overlap, Shared, overlap


class Listed:
    """Examples in memory; None is one that cannot be read."""

    def __init__(self, *examples: tuple[torch.Tensor | None, str]) -> None:
        self.examples = examples
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        self.read.append(index)
        image, text = self.examples[index]
        if image is None:
            raise CorruptImage(str(index), "is damaged")
        return Example(str(index), image, (Caption(text),))

    def captions(self):
        return (Caption(text) for _, text in self.examples)

    def texts(self):
        return (ExampleTexts(str(n), (Caption(text),), None, True) for n, (_, text) in enumerate(self.examples))


def picture(seed: int) -> torch.Tensor:
    """Large soft patches, whose gradients differ from one seed to another."""
    patches = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(patches, size=(40, 40), mode="bilinear")[0].to(torch.uint8)


def test_equal_and_similar_images_and_known_captions():
    train = Listed((picture(0), "A cat."), (picture(1), "a dog"), (picture(2), "a bird"), (None, "a broken one"))
    brighter = (picture(1).int() + 3).clamp(max=255).to(torch.uint8)
    split = Listed(
        (picture(0), "a CAT."), (brighter, "other"), (picture(7), "a dog"), (picture(0), "new"), (None, "a broken one")
    )
    clean = Listed((picture(9), "new"))
    found = overlap(train, {"val": split, "clean": clean}, 1000)
    assert found == Overlap(3, 4, {"val": Shared(4, 2, 1, 5, 3), "clean": Shared(1, 0, 0, 1, 0)})
    assert found.line() == (
        "in common with the training data (3 of 4 images looked at): val 2 equal and 1 similar of 4 images, all "
        "captions of 3 of 5 examples; clean 0 equal and 0 similar of 1 images, all captions of 0 of 1 examples"
    )


def test_a_number_of_images_is_looked_at_over_the_whole_set():
    train = Listed(*((picture(n), str(n)) for n in range(20)))
    found = overlap(train, {"val": Listed((picture(8), "x"))}, 5)
    assert sorted(train.read) == [0, 4, 8, 12, 16]
    assert (found.looked_at, found.splits["val"].equal) == (5, 1)
