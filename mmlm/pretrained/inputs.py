"""What is handed to a model: one item or several, and an image in whichever form.

The rule of every call: a list, a tuple or another sequence of items is *several*, and gives as many results; anything
else is *one* item, and gives one result; a tensor keeps its first dimension, as that of a batch of one. A text is one
item, though Python counts it among the sequences.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmlm.core.errors import CorruptImage, UserError
from mmlm.core.wording import printable
from mmlm.data.images import image_pixels, read_image
from mmlm.record.console import Console

AnyImage = str | Path | Image.Image | NDArray[np.uint8] | Tensor
"""A path, a Pillow image, an array uint8[H, W, 3] or, in grey, uint8[H, W], or a tensor uint8[3, H, W]; RGB."""
_KINDS = "a path, a Pillow image, an array uint8[H, W, 3] or uint8[H, W], or a tensor uint8[3, H, W]"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Given(Generic[T]):
    """What was given as an argument."""

    name: str
    """The argument's, for messages."""
    items: Sequence[T]
    single: bool
    """Whether it was one item."""

    @classmethod
    def of(cls, name: str, value: Any) -> "Given[Any]":
        """See the rule above."""
        if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
            return cls(name, value, False)
        return cls(name, [value], True)

    def named(self, index: int) -> str:
        """The name of an item in messages: ``images.3``; of a single one, ``images``."""
        return self.name if self.single else f"{self.name}.{index}"

    def in_batches(
        self, size: int, work: Callable[[int, Sequence[T]], Sequence[R]], doing: str, progress: bool
    ) -> list[R]:
        """The results of ``work(number of the first, items)`` over batches of at most ``size`` items, in order.

        With ``progress``, a bar on stderr says what it is ``doing``. Raises UserError for a size below 1.
        """
        if size < 1:
            raise UserError(f"batch_size: {size} must be at least 1")
        starts = range(0, len(self.items), size)
        results: list[R] = []
        with ExitStack() as stack:
            activity = stack.enter_context(Console(sys.stderr).activity()) if progress else None
            for number, first in enumerate(starts, start=1):
                if activity is not None:
                    activity.update(f"{doing}, batch {number} of {len(starts)}")
                results += work(first, self.items[first : first + size])
        return results


def pixels_of(image: object, name: str) -> Tensor:
    """uint8[3, H, W] RGB on the CPU of an image in any form.

    A file is decoded as training decodes it. Raises UserError, in one line that begins with ``name``.
    """
    if isinstance(image, str | Path):
        return _pixels_of_file(Path(image), name)
    if isinstance(image, Image.Image):
        return image_pixels(image, name)
    if isinstance(image, np.ndarray):
        return _pixels_of_array(image, name)
    if not isinstance(image, Tensor):
        raise UserError(f"{name}: a {type(image).__name__} is no image; give {_KINDS}")
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        kind = f"{str(image.dtype).removeprefix('torch.')}{list(image.shape)}"
        raise UserError(f"{name}: a {kind} tensor is no image; give uint8[3, H, W], RGB from 0 to 255{_several(image)}")
    return image.cpu()


def check_text(text: object, name: str) -> str:
    """The text. Raises UserError for anything else."""
    if not isinstance(text, str):
        raise UserError(f"{name}: a {type(text).__name__} is no text; give a str")
    return text


def _pixels_of_file(file: Path, name: str) -> Tensor:
    try:
        return read_image(file)
    except CorruptImage as error:
        raise CorruptImage(f"{name}: {printable(str(file))}", error.reason) from error.__cause__
    except ValueError as error:  # a null byte, which no path can hold
        raise UserError(f"{name}: {printable(str(file))} is no path ({error})") from None


def _pixels_of_array(array: NDArray[Any], name: str) -> Tensor:
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        kind = f"{array.dtype}{list(array.shape)}"
        raise UserError(
            f"{name}: a {kind} array is no image; give uint8[H, W, 3], RGB from 0 to 255, or uint8[H, W] in grey"
            + _several(array)
        )
    # A copy: a view may run backwards or be read-only, which tensors know nothing of.
    pixels = torch.from_numpy(np.array(array, order="C"))
    return pixels.expand(3, -1, -1).contiguous() if grey else pixels.permute(2, 0, 1).contiguous()


def _several(stacked: Tensor | NDArray[Any]) -> str:
    """What to do about images that are stacked."""
    return "; several images are a list of them: list(...)" if stacked.ndim == 4 else ""
