"""A model that embeds images and texts and compares them: what every other call is made of.

Every call takes one item or several, by the rule of ``inputs.py``, and gives the same for any ``batch_size``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmlm.core.computing import computing, exact_float32
from mmlm.core.errors import UserError
from mmlm.core.precision import Precision
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.transforms import Transform
from mmlm.experiment.similarity_scale import Scale
from mmlm.model.model import ImageTextModel
from mmlm.pretrained.described import facts, headline
from mmlm.pretrained.digest import image_digest
from mmlm.pretrained.files import MmlmConfig
from mmlm.pretrained.inputs import AnyImage, Given, check_text, pixels_of
from mmlm.reports.notebook import table

_PRECISIONS = {
    torch.float32: Precision.fp32,
    torch.bfloat16: Precision.bf16,
    torch.float16: Precision.fp16,
}


class EmbeddingModel(nn.Module):
    """A network with its tokenizer and image transform, and its embeddings.

    Args:
        config: the parts and sizes.
        model: the network.
        tokenizer, transform: text to ids; images to uint8[B, 3, S, S].
        dtype: what matrix products are computed in: torch.float32, or torch.bfloat16 or torch.float16 by autocast. The
            weights stay float32, and so do embeddings and probabilities.

    Raises:
        UserError: another dtype.
    """

    def __init__(
        self,
        config: MmlmConfig,
        model: ImageTextModel,
        tokenizer: Tokenizer | None,
        transform: Transform | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        if dtype not in _PRECISIONS:
            raise UserError(f"dtype: {dtype} is not one of {', '.join(map(str, _PRECISIONS))}")
        self.config, self.model, self.dtype = config, model, dtype
        self._tokenizer, self._transform = tokenizer, transform

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids. Raises UserError for a model that was made without one."""
        return cast(Tokenizer, _given(self._tokenizer, "tokenizer"))

    @property
    def transform(self) -> Transform:
        """Images to uint8[B, 3, S, S]. Raises UserError for a model that was made without one."""
        return cast(Transform, _given(self._transform, "transform"))

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return next(self.parameters()).device

    @property
    def scale(self) -> Scale | None:
        """What the model has learned to multiply similarities by; None if it brings nothing."""
        value, source = self.config.similarity_scale, self.config.similarity_scale_source
        return None if value is None else Scale(value, source or "of the model")

    def __repr__(self) -> str:
        lines = [f"  {name:<13} {value}" for name, value in facts(self.config, self.model, self.scale)]
        return "\n".join([headline(self.model, self.device, self.dtype), *lines])

    def _repr_html_(self) -> str:
        return table(headline(self.model, self.device, self.dtype), facts(self.config, self.model, self.scale))

    # Embeddings

    def encode_image(
        self, images: AnyImage | Sequence[AnyImage], batch_size: int = 64, *, progress: bool = False
    ) -> Tensor:
        """Images of any sizes -> float32[B, E], unit length; one image is a batch of one.

        Raises UserError for anything that is no image.
        """
        given: Given[AnyImage] = Given.of("images", images)
        return self._embed_images(given, batch_size, progress)

    def encode_text(
        self,
        texts: str | Sequence[str],
        language: str | None = None,
        batch_size: int = 256,
        *,
        progress: bool = False,
    ) -> Tensor:
        """Texts -> float32[C, E], unit length; one text is a batch of one. ``language`` None takes the model's own.

        Raises UserError for a language that the tokenizer lacks, and for anything that is no text.
        """
        given: Given[str] = Given.of("texts", texts)
        return self._embed_texts(given, language, batch_size, progress)

    def similarity(
        self,
        images: AnyImage | Sequence[AnyImage],
        texts: str | Sequence[str],
        language: str | None = None,
        batch_size: int = 64,
        *,
        progress: bool = False,
    ) -> Tensor:
        """float32[B, C]: the cosine of each image with each text; one image or one text is a batch of one.

        Raises UserError as ``encode_image`` and ``encode_text`` do.
        """
        seen: Given[AnyImage] = Given.of("images", images)
        said: Given[str] = Given.of("texts", texts)
        embedded = self._embed_texts(said, language, batch_size, progress)
        with exact_float32(self.device):
            return self._embed_images(seen, batch_size, progress) @ embedded.T

    def digest(self) -> str:
        """What the model is known by in an index of images (see ``image_digest``)."""
        return image_digest(self.config, self.state_dict(), _PRECISIONS[self.dtype])

    # What the calls share

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """A context for passes of the network: in ``dtype``, and without gradients."""
        with torch.no_grad(), computing(self.device, _PRECISIONS[self.dtype]):
            yield

    def _see(self, given: Given[AnyImage], first: int, some: Sequence[AnyImage]) -> Tensor:
        """Some of the images, the first of them number ``first`` -> uint8[B, 3, S, S] on the model's device."""
        pixels = [pixels_of(image, given.named(first + index)) for index, image in enumerate(some)]
        return self.transform(pixels, None).to(self.device)

    def _embed_images(self, given: Given[AnyImage], batch_size: int, progress: bool) -> Tensor:
        """float32[B, E]."""

        def work(first: int, some: Sequence[AnyImage]) -> list[Tensor]:
            with self._computing():
                return [self.model.encode_image(self._see(given, first, some)).embedding]

        return self._joined(given.in_batches(batch_size, work, "embedding images", progress))

    def _embed_texts(self, given: Given[str], language: str | None, batch_size: int, progress: bool) -> Tensor:
        """float32[C, E]."""
        language = language or self.config.language

        def work(first: int, some: Sequence[str]) -> list[Tensor]:
            texts = [check_text(text, given.named(first + index)) for index, text in enumerate(some)]
            ids = [torch.tensor(self.tokenizer.encode(text, language, self.config.max_tokens)) for text in texts]
            tokens = pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_id).to(self.device)
            with self._computing():
                return [self.model.encode_text(tokens, torch.tensor([len(row) for row in ids], device=self.device))]

        return self._joined(given.in_batches(batch_size, work, "embedding texts", progress))

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts)) if parts else torch.empty(0, self.model.sizes.embedding_width, device=self.device)


def _given(part: object, name: str) -> object:
    """``part``, unless the model was made without it: then UserError."""
    if part is None:
        raise UserError(f"{name}: this model was made without one; load it with from_pretrained")
    return part
