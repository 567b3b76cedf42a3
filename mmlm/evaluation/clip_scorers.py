"""Who embeds images and texts for CLIPScore: the model itself, or a model of open_clip."""

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.core.batch import Caption
from mmlm.core.computing import exact_float32
from mmlm.core.distributed import gather_results
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.wording import closest, first_line
from mmlm.evaluation.split import EncodedBatch, EncodedSplit
from mmlm.evaluation.texts import in_parts

Pixels = Literal["clip", "half", "imagenet", "none"]
PIXELS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation of red, green and blue in [0, 1] that pixels are normalised by."""


class Scorer(Protocol):
    """Embeds images of a split, and any texts."""

    @property
    def in_words(self) -> str:
        """What tells it apart from others, for the protocol of scores."""
        ...

    def embed(self, split: EncodedSplit, rows: Sequence[int], texts: Sequence[Caption]) -> tuple[Tensor, Tensor]:
        """float[n, E] of the images of n rows, and float[t, E] of t texts; all ranks call it, and get the same."""
        ...


class OwnEmbeddings:
    """The embeddings of the model that is evaluated."""

    in_words = "the model itself"

    def embed(self, split: EncodedSplit, rows: Sequence[int], texts: Sequence[Caption]) -> tuple[Tensor, Tensor]:
        """See ``Scorer``. A text is embedded as captions of its language are."""
        place: dict[Caption, int] = {}
        parts: list[Tensor] = []
        for language in sorted({text.language for text in texts}, key=str):
            distinct = list(dict.fromkeys(text for text in texts if text.language == language))
            place |= {text: len(place) + number for number, text in enumerate(distinct)}
            parts.append(split.embed_texts([text.text for text in distinct], language))
        return split.image_embedding[list(rows)], torch.cat(parts)[[place[text] for text in texts]]


@dataclass(frozen=True)
class OpenClip:
    """A model of open_clip with weights from a file, in float32, whatever the run computes in.

    It sees the pixels that the split holds, which have the run's size: they are resized to its own size (bicubic, with
    antialiasing) and normalised as in its training. Weights are never downloaded; a tokenizer is, where open_clip does
    not bring the architecture's with it.

    Raises ArgumentError: open_clip is not installed, a name that it does not know, no such file, or ``pixels`` None
    where published weights differ.
    """

    name: str
    """Of the architecture, as ``open_clip.list_models()`` has it: ``ViT-B-32``."""
    weights: str
    """The file of its weights."""
    pixels: Pixels | None = None
    """What its training normalised pixels by. None takes what all published weights of the name share, and ``clip``
    where there are none."""

    def __post_init__(self) -> None:
        if importlib.util.find_spec("open_clip") is None:
            raise ArgumentError(f"name: '{self.name}' needs the package open_clip_torch; pip install open_clip_torch")
        import open_clip

        if self.name not in open_clip.list_models():
            near = closest(self.name, open_clip.list_models())
            fix = "open_clip.list_models() has its names" if near is None else f"did you mean '{near}'?"
            raise ArgumentError(f"name: open_clip has no model '{self.name}'; {fix}")
        if not Path(self.weights).is_file():
            raise ArgumentError(f"weights: {self.weights}: there is no such file; give the file of the model's weights")
        self._normalised_by  # noqa: B018 - found out before anything is trained

    @property
    def in_words(self) -> str:
        """Its name, the SHA-256 of its weights, and how pixels are normalised."""
        return f"open_clip {self.name}, weights {self._digest}, pixels {self._normalised_by}"

    @cached_property
    def _digest(self) -> str:
        with Path(self.weights).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def _normalised_by(self) -> str:
        """A key of ``PIXELS``."""
        import open_clip

        if self.pixels is not None:
            return self.pixels
        published = [
            open_clip.get_pretrained_cfg(self.name, tag) for tag in open_clip.list_pretrained_tags_by_model(self.name)
        ]
        means = {tuple(one.get("mean") or PIXELS["clip"][0]) for one in published} or {PIXELS["clip"][0]}
        found = [kind for kind, (mean, _) in PIXELS.items() if means == {mean}]
        if not found:
            raise ArgumentError(
                f"pixels: null, and published weights of '{self.name}' differ in how pixels are normalised; set "
                f"one of {', '.join(PIXELS)}, as in the training of these"
            )
        return found[0]

    @torch.no_grad()
    def embed(self, split: EncodedSplit, rows: Sequence[int], texts: Sequence[Caption]) -> tuple[Tensor, Tensor]:
        """See ``Scorer``. Raises UserError for weights of another architecture."""
        import open_clip

        device, loaded = split.device, list[Any]()
        gather_results(lambda: loaded.append(self._load().to(device)))
        (model,) = loaded
        tokenizer = open_clip.get_tokenizer(self.name)

        def images_of(item: EncodedBatch) -> Tensor:
            images = item.batch.images
            # Many models fail on no images: a black one stands in for a batch of texts alone.
            some = images if len(images) else images.new_zeros(1, 3, 2, 2)
            return model.encode_image(self._resized(some, model))[: len(images)].float()

        def embedded(part: Sequence[str]) -> Tensor:
            return model.encode_text(tokenizer(list(part)).to(device)).float()

        distinct = {text: number for number, text in enumerate(dict.fromkeys(text.text for text in texts))}
        with exact_float32(device):
            images = torch.cat(split.over_batches(images_of))
            of_texts = in_parts(list(distinct), embedded, device)
        return images[list(rows)], of_texts[[distinct[text.text] for text in texts]]

    def _load(self) -> Any:
        import open_clip

        try:
            return open_clip.create_model(self.name, pretrained=self.weights, pretrained_text=False).eval()
        except (RuntimeError, KeyError, ValueError) as error:
            raise UserError(
                f"{self.weights}: is no file of weights of open_clip's {self.name}: {first_line(error)}"
            ) from None

    def _resized(self, images: Tensor, model: Any) -> Tensor:
        """float32[B, 3, H, W] as the model takes them, of uint8[B, 3, S, S]."""
        size = model.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        mean, deviation = (
            torch.tensor(one, device=images.device)[:, None, None] for one in PIXELS[self._normalised_by]
        )
        whole = images.float() / 255
        if images.shape[-2:] != (height, width):
            whole = F.interpolate(whole, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
        return (whole - mean) / deviation
