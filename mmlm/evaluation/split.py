"""An evaluation split as the model sees it: every image and caption encoded once, shared by all evaluators.

Several ranks share the batches: rank r of W encodes batches r, r + W, ... of the same batches that one process would
encode, so that every number comes out the same. Afterwards each rank has the whole split except for its large tensors:

- Every rank has the embeddings of all images and texts, tokens, positives keys, captions and ids: retrieval is among
  all of them.
- Only the rank that encoded a batch has its pixels and the decoder's memory. Work on those is done on that rank and
  gathered (``EncodedSplit.over_batches``, ``over_images``); ``with_images_of`` exchanges memory for an evaluator that
  shows a caption the image of another batch.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch, Caption
from mmlm.core.distributed import broadcast_object, gather_results, rank, world_size
from mmlm.core.errors import UserError
from mmlm.data.sources import Source
from mmlm.data.tokenizer import Tokenizer
from mmlm.evaluation.gallery import Gallery
from mmlm.evaluation.pairs import merge_equal_captions, positive_pairs
from mmlm.evaluation.texts import Concept, concepts_of, embed_texts
from mmlm.evaluation.training_captions import TrainingCaptions
from mmlm.model.model import ImageFeatures, ImageTextModel

Result = TypeVar("Result")


class Batches(Protocol):
    """The batches of a split, by number; ``EvaluationBatches`` makes a batch when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Batch: ...


@dataclass(frozen=True)
class EncodedBatch:
    """A batch with the model's features and embeddings of it, on the model's device."""

    batch: Batch
    """The batch. On every rank but ``owner`` it has no pixels: ``images`` is uint8[B, 3, 0, 0]."""
    features: ImageFeatures
    """Image embeddings and memory. On every rank but ``owner`` the memory is None."""
    text_embedding: Tensor
    """float32[C, E], unit length."""
    owner: int = 0
    """The rank that encoded it."""
    first: int = 0
    """The row in the split of its first image."""

    @property
    def rows(self) -> range:
        """The rows in the split of its images."""
        return range(self.first, self.first + len(self.batch.images))

    def without_pixels_and_memory(self) -> "EncodedBatch":
        """The batch as the other ranks get it: all but its large tensors."""
        batch = replace(self.batch, images=self.batch.images.new_empty(len(self.batch.images), 3, 0, 0))
        return replace(self, batch=batch, features=ImageFeatures(self.features.embedding, None))

    def to(self, device: torch.device | str) -> "EncodedBatch":
        """The same with every tensor on ``device``."""
        memory = self.features.memory
        features = ImageFeatures(self.features.embedding.to(device), None if memory is None else memory.to(device))
        text_embedding = self.text_embedding.to(device)
        return replace(self, batch=self.batch.to(device), features=features, text_embedding=text_embedding)


def no_tick(doing: str) -> None:
    """The ``tick`` of an evaluation whose progress nobody watches: it does nothing."""


@dataclass(frozen=True)
class EncodedSplit:
    """All batches of a split. Rows of images and captions count through the batches in order.

    Every property is the same on all ranks. ``over_batches``, ``over_images``, ``with_images_of`` and ``embed_texts``
    are to be called by all ranks alike, since they wait for one another.
    """

    name: str
    model: ImageTextModel
    tokenizer: Tokenizer
    max_tokens: int
    batches: tuple[EncodedBatch, ...]
    """In the order of the source, without the batches in which nothing could be decoded."""
    corrupt: tuple[str, ...] = ()
    """``id: reason`` of every image left out, in order."""
    tick: Callable[[str], None] = no_tick
    """Called before each batch that this rank works on, with a text for the watchdog: the rank is alive."""
    source: Source | None = None
    """Where the examples are from, for evaluators that ask what is known of them besides their captions; None:
    unknown."""
    trained_on: TrainingCaptions | None = None
    """The captions that the model was trained on, for evaluators that compare with them; None: unknown."""
    written: dict[tuple[str | None, str], list[str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """The captions that ``generate_captions`` has written, by language and decoding. A split with other features begins
    without."""

    @property
    def device(self) -> torch.device:
        """The device of the model and of all tensors that every rank has."""
        return self.batches[0].text_embedding.device

    @cached_property
    def image_embedding(self) -> Tensor:
        """float32[B, E], unit length."""
        return torch.cat([b.features.embedding for b in self.batches])

    @cached_property
    def image_index(self) -> Tensor:
        """int64[C]: the image row of each caption, or ``TEXT_ONLY``."""
        index = [item.batch.image_index for item in self.batches]
        shifted = [torch.where(i == TEXT_ONLY, i, i + b.first) for i, b in zip(index, self.batches, strict=True)]
        return torch.cat(shifted)

    @cached_property
    def image_concept(self) -> Tensor:
        """int64[B]."""
        return torch.cat([b.batch.image_concept for b in self.batches])

    @cached_property
    def caption_concept(self) -> Tensor:
        """int64[C]."""
        return torch.cat([b.batch.caption_concept for b in self.batches])

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        """The distinct concepts of the images, each with its texts, in order of appearance.

        An image without a concept in the data is one of its own.
        """
        return concepts_of(self.image_concept, self.caption_concept, self.captions)

    def embed_texts(self, texts: Sequence[str], language: str | None = None) -> Tensor:
        """float32[n, E], unit length: any texts as the model embeds captions of that language; see ``embed_texts``."""
        return embed_texts(self.model, self.tokenizer, texts, language, self.max_tokens, self.device)

    @cached_property
    def captions(self) -> tuple[Caption, ...]:
        """All C captions."""
        return tuple(caption for b in self.batches for caption in b.batch.captions)

    @cached_property
    def lengths(self) -> Tensor:
        """int64[C]: tokens of each caption, start and end included."""
        return torch.cat([b.batch.lengths for b in self.batches])

    @cached_property
    def references(self) -> list[list[Caption]]:
        """The captions of each image, B lists, without answers: these say nothing without what they answer."""
        found: list[list[Caption]] = [[] for _ in range(len(self.image_concept))]
        for caption, row in zip(self.captions, self.image_index.tolist(), strict=True):
            if row != TEXT_ONLY and caption.source is None:
                found[row].append(caption)
        return found

    @cached_property
    def gallery(self) -> Gallery:
        """Images and distinct texts. Captions that read the same are one text, so that a wrong one counts once."""
        return self.gallery_of(range(len(self.captions)))

    def gallery_of(self, rows: Sequence[int]) -> Gallery:
        """``gallery`` as if the split had the captions of these rows alone; answers are no captions of an image."""
        rows = [row for row in rows if self.captions[row].source is None]
        chosen = torch.tensor(rows, dtype=torch.int64)
        caption_key, caption_concept, image_index = (
            tensor[chosen.to(tensor.device)]
            for tensor in (
                torch.cat([b.batch.caption_key for b in self.batches]),
                self.caption_concept,
                self.image_index,
            )
        )
        pairs = positive_pairs(self.image_concept, caption_concept, caption_key, image_index)
        kept, pairs = merge_equal_captions(pairs, caption_key)
        text_embedding = torch.cat([b.text_embedding for b in self.batches])
        kept_rows = chosen[kept.cpu()]
        return Gallery(
            image_embedding=self.image_embedding,
            text_embedding=text_embedding[kept_rows.to(text_embedding.device)],
            pairs=pairs,
            texts=tuple(self.captions[row].text for row in kept_rows.tolist()),
            languages=tuple(self.captions[row].language for row in kept_rows.tolist()),
        )

    @cached_property
    def image_ids(self) -> tuple[str, ...]:
        """The example id of each image, B of them."""
        return tuple(chain.from_iterable(item.batch.ids for item in self.batches))

    def over_batches(self, function: Callable[[EncodedBatch], Result]) -> list[Result]:
        """The results of ``function`` on every batch, in order, on every rank; each rank computes its own batches.

        ``function`` returns a tensor, which comes back on ``device``, or plain values (strings, numbers, and lists and
        dictionaries of them). It is called once for each batch and may not communicate with other ranks. An error in it
        is raised on all ranks (``gather_results``).
        """
        several = world_size() > 1

        def own() -> dict[int, Result]:
            results: dict[int, Result] = {}
            for number, item in enumerate(self.batches):
                if item.owner == rank():
                    self.tick(f"evaluating {self.name}, batch {number + 1} of {len(self.batches)}")
                    result = function(item)
                    # Ranks exchange tensors by way of the CPU: another rank cannot read this one's device.
                    on_cpu = result.cpu() if several and isinstance(result, Tensor) else result
                    results[number] = cast(Result, on_cpu)
            return results

        every = {number: result for part in gather_results(own) for number, result in part.items()}
        ordered = [every[number] for number in range(len(self.batches))]
        here = [result.to(self.device) if isinstance(result, Tensor) else result for result in ordered]
        return cast(list[Result], here)

    def over_images(self, rows: Collection[int], function: Callable[[int, Tensor], Result]) -> dict[int, Result]:
        """The results of ``function(row, uint8[3, S, S] on the CPU)`` on the images of ``rows``, by row, in order.

        The rank that holds the pixels computes them. The rules for ``function`` are those of ``over_batches``, and it
        may not return a tensor. Raises IndexError for a row that the split does not have.
        """
        wanted = set(rows)
        if not wanted <= set(range(len(self.image_ids))):
            raise IndexError(f"image row {max(wanted)} is none of the split's {len(self.image_ids)}")

        def of_batch(item: EncodedBatch) -> dict[int, Result]:
            images = item.batch.images
            return {row: function(row, images[row - item.first].cpu()) for row in item.rows if row in wanted}

        return {row: result for part in self.over_batches(of_batch) for row, result in part.items()}

    def with_images_of(self, swap: Tensor) -> "EncodedSplit":
        """The same captions, each image's features replaced by those of image ``swap[row]`` (int64[B]).

        Memory is sent around batch by batch: besides its own memory, a rank holds that of the images it is to show (as
        much again) and that of one batch.
        """
        swap = swap.cpu()
        # The image rows that each of this rank's own batches is to show from now on.
        taken = {n: swap[b.first : b.rows.stop] for n, b in enumerate(self.batches) if b.owner == rank()}
        memory: dict[int, Tensor] = {}
        for source in self.batches:
            # Every rank takes part in sending every batch, and keeps the rows that its own batches want of it.
            theirs = _sent(source.features.memory, source.owner)
            if theirs is None:  # a model without a decoder has no memory
                continue
            for number, rows in taken.items():
                here = (rows >= source.first) & (rows < source.rows.stop)
                if number not in memory:
                    memory[number] = theirs.new_empty(len(rows), *theirs.shape[1:], device=self.device)
                picked = theirs[(rows[here] - source.first).to(theirs.device)]
                memory[number][here.to(self.device)] = picked.to(self.device)
        embedding = self.image_embedding[swap.to(self.device)]
        batches = tuple(
            replace(item, features=ImageFeatures(embedding[item.first : item.rows.stop], memory.get(number)))
            for number, item in enumerate(self.batches)
        )
        return replace(self, batches=batches)


def _sent(memory: Tensor | None, source: int) -> Tensor | None:
    """The memory of a batch that rank ``source`` encoded; on the CPU if there are several ranks."""
    if world_size() == 1:
        return memory
    own = memory.cpu().contiguous() if memory is not None and source == rank() else None
    return broadcast_object(own, source)


@torch.no_grad()
def encode_split(
    name: str,
    model: ImageTextModel,
    tokenizer: Tokenizer,
    batches: Batches,
    device: torch.device,
    max_tokens: int,
    tick: Callable[[str], None] = no_tick,
) -> EncodedSplit:
    """Encodes every batch, each on one rank. The caller puts the model, the same on all ranks, in eval mode.

    The model may not communicate with other ranks, which have different numbers of batches. A rank reads only its own
    of ``batches``. Raises UserError, on all ranks, for an empty split.
    """
    own: dict[int, EncodedBatch] = {}

    def encode_own() -> list[tuple[int, EncodedBatch | None, tuple[str, ...]]]:
        corrupt: dict[int, tuple[str, ...]] = {}
        for number in range(rank(), len(batches), world_size()):
            tick(f"encoding {name}, batch {number + 1} of {len(batches)}")
            batch = batches[number].to(device)
            corrupt[number] = batch.corrupt
            if batch.ids or batch.captions:
                features = model.encode_image(batch.images)
                own[number] = EncodedBatch(batch, features, model.encode_text(batch.tokens, batch.lengths), rank())
        return [(number, _travelling(own.get(number)), names) for number, names in corrupt.items()]

    # Every rank now puts the whole split together, in the order of ``batches``: its own batches with pixels and memory,
    # the others without. Rows count through the batches, so a batch's first row is known only here.
    found = sorted(chain.from_iterable(gather_results(encode_own)), key=lambda part: part[0])
    encoded, first = [], 0
    for number, light, _ in found:
        if light is not None:
            item = replace(own[number] if number in own else light.to(device), first=first)
            encoded.append(item)
            first = item.rows.stop
    if not encoded:
        raise UserError(f"evaluation split '{name}' has no image that can be decoded")
    corrupt = tuple(chain.from_iterable(names for _, _, names in found))
    return EncodedSplit(name, model, tokenizer, max_tokens, tuple(encoded), corrupt, tick)


def _travelling(item: EncodedBatch | None) -> EncodedBatch | None:
    """A batch as it is sent to the other ranks; None for a batch in which nothing could be decoded."""
    return None if item is None else item.without_pixels_and_memory().to("cpu")
