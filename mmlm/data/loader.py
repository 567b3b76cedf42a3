"""Makes batches of examples in an order in which one integer, the position, says where in the data a run is.

The order is that of ``EpochOrder``: a seeded one for each epoch, one after another. Batch b holds the positions
[b * batch_size, (b + 1) * batch_size), whatever the number of workers and ranks; each rank has a consecutive share of
every batch. Augmentation and the choice of captions are keyed by (seed, epoch, example), so they do not depend on the
worker or rank that makes them.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmlm.core.batch import Batch, Example
from mmlm.core.errors import CorruptImage, UserError
from mmlm.core.keyed_random import keyed_uniform, stream
from mmlm.data.caption_choice import CaptionSettings
from mmlm.data.collate import DEFAULT_BUCKET, Prepared, caption_encoder, collate, prepare
from mmlm.data.order import EpochOrder, Located
from mmlm.data.sources import NamesOrigins, Source, read_example
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.transforms import Transform
from mmlm.data.workers import Unshared, from_workers, hand_over, start_workers

_AUGMENT = stream("mmlm.data.loader.augment")
_CAPTIONS = stream("mmlm.data.loader.captions")
_KINDS = stream("mmlm.data.loader.kinds")


class UnreadableBatch(UserError):  # noqa: N818 - named after what happened
    """Nothing of a whole batch can be read. Raised on all ranks at the same batch."""


class _Shares(Dataset):
    """Maps the position at which a global batch starts to this rank's share of the batch.

    Runs in the workers. It draws from no random generator: all randomness is keyed, so a worker has no state.
    """

    def __init__(
        self,
        source: Source,
        order: EpochOrder,
        transform: Transform,
        seed: int,
        captions_per_image: int | None,
        choice: CaptionSettings,
        batch_size: int,
        share: range,
    ) -> None:
        self._source = source
        self._order = order
        self._transform = transform
        self._seed = seed
        self._captions_per_image, self._choice = captions_per_image, choice
        self._batch_size = batch_size
        self._share = share

    def __getitem__(self, position: int) -> Prepared | Unshared | UserError:
        # An error travels as a value: DataLoader would wrap an error that a worker raises in the worker's traceback,
        # and the user would not see the message on one line.
        try:
            prepared = self._prepare(self._locate(position, self._share))
            if not prepared.examples:
                self._check_whole_batch(position)
            return hand_over(prepared)
        except UserError as error:
            return error

    def _check_whole_batch(self, position: int) -> None:
        """Called if no example of the share can be decoded. Raises UnreadableBatch if none of the whole batch can be.

        Every rank's share is empty then, so every rank comes here and raises, without communication.
        """
        whole = self._locate(position, range(self._batch_size))
        reads = (read_example(self._source, index) for index in whole.indices.tolist())
        corrupt = list(itertools.takewhile(lambda read: isinstance(read, CorruptImage), reads))
        if len(corrupt) == self._batch_size:
            raise UnreadableBatch(
                f"all {len(corrupt)} images of a batch are corrupt (the first is {corrupt[0]}); "
                f"check the data set's files"
            )

    def _locate(self, position: int, offsets: range) -> Located:
        """The examples at some offsets of the batch that starts at ``position``."""
        return self._order.at(position + torch.tensor(offsets, dtype=torch.int64))

    def _prepare(self, located: Located) -> Prepared:
        """Reads the examples and transforms their images."""
        places = zip(located.epochs.tolist(), located.indices.tolist(), strict=True)
        at_least = self._transform.at_least
        examples = [
            self._choose_captions(read_example(self._source, index, at_least), epoch, index) for epoch, index in places
        ]
        uniforms = None
        if self._transform.augment is not None:
            # A batch across the end of an epoch has examples of two epochs, and so numbers of two keys.
            epochs, counts = located.epochs.unique_consecutive(return_counts=True)
            groups = zip(epochs.tolist(), located.indices.split(counts.tolist()), strict=True)
            uniforms = torch.cat([self._uniforms(epoch, indices) for epoch, indices in groups])
        prepared = prepare(examples, self._transform, uniforms)
        return replace(prepared, by_source=self._origins(located.indices.tolist(), examples))

    def _origins(self, indices: Sequence[int], examples: Sequence[Example | CorruptImage]) -> Mapping[str, int]:
        """How many of the examples that could be read come from each source of a mixture."""
        if not isinstance(self._source, NamesOrigins):
            return {}
        pairs = zip(indices, examples, strict=True)
        return Counter(self._source.origin(index) for index, example in pairs if isinstance(example, Example))

    def _uniforms(self, epoch: int, indices: Tensor) -> Tensor:
        return keyed_uniform(self._seed, epoch, indices, self._transform.num_uniforms, _AUGMENT)

    def _choose_captions(self, example: Example | CorruptImage, epoch: int, index: int) -> Example | CorruptImage:
        """The example with the captions that come by their kinds, in their own order.

        Of these it has at most ``captions_per_image``, drawn without replacement, and all texts that are false of it.
        """
        if isinstance(example, CorruptImage):
            return example
        if self._choice.kinds and example.captions:
            draws = keyed_uniform(self._seed, epoch, torch.tensor([index]), len(example.captions), _KINDS)[0]
            coming = self._choice.kept(example.captions, draws.tolist())
            example = replace(example, captions=tuple(example.captions[i] for i in coming))
        most = self._captions_per_image
        false = [i for i, caption in enumerate(example.captions) if self._choice.is_negative(caption)]
        true = [i for i in range(len(example.captions)) if i not in false]
        if most is None or len(true) <= most:
            return example
        draws = keyed_uniform(self._seed, epoch, torch.tensor([index]), len(true), _CAPTIONS)[0]
        chosen = sorted([*false, *(true[i] for i in draws.argsort(stable=True)[:most].tolist())])
        return replace(example, captions=tuple(example.captions[i] for i in chosen))


@dataclass
class _Cursor:
    """The position at which the next batch starts; the sampler of the worker processes' ``DataLoader``.

    The sampler is not the ``TrainLoader`` itself: a reference cycle through the ``DataLoader`` would leave the workers
    to the garbage collector, which may close their queues before the workers are told to stop.
    """

    position: int
    """Examples that all ranks have been given."""
    batch_size: int
    """Examples of a global batch."""

    def __iter__(self) -> Iterator[int]:
        """The start positions of the batches from the current one on, without end."""
        return itertools.count(self.position, self.batch_size)


class TrainLoader:
    """Training batches without end. Batches run on across the end of an epoch: every example comes once in each epoch.

    ``position`` is the number of examples that all ranks together have been given since the run's start. A new
    iteration starts exactly there, with any number of workers and any number of ranks that divides the batch. A batch
    carries its own ``position`` and ``epoch`` (see ``Batch``).
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        transform: Transform,
        batch_size: int,
        seed: int,
        captions_per_image: int | None,
        max_tokens: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        bucket: int = DEFAULT_BUCKET,
        shuffle_window: int | None = None,
        choice: CaptionSettings | None = None,
    ) -> None:
        """Starts the server from which workers are forked, if there are any; the workers start at the first iteration.

        Args:
            source: the examples.
            tokenizer: encodes captions, in this process.
            transform: makes images of one size, in the workers.
            batch_size: examples of the global batch; each rank gets ``batch_size / world_size`` of them.
            seed: of the order, the augmentation and the choice of captions.
            captions_per_image: captions of each example, drawn anew in each epoch; None is all of them.
            max_tokens: longest caption in tokens, start and end included.
            workers: number of processes that prepare images; 0 prepares them in this process.
            rank: the number of this process among ``world_size``.
            world_size: number of processes that share the batch.
            bucket: T is a multiple of this number of tokens, or ``max_tokens``.
            shuffle_window: shards whose examples are mixed; None mixes all examples. See ``EpochOrder``.
            choice: which captions come, and what for, by their kinds; None is all of them, for everything.

        Raises:
            UserError: values that do not fit.
        """
        order = EpochOrder(source, seed, shuffle_window)
        size = order.examples_per_epoch
        if not 1 <= batch_size <= size:
            raise UserError(f"batch_size={batch_size} must be between 1 and the {size} examples of the data set")
        if batch_size % world_size:
            raise UserError(f"batch_size={batch_size} must be a multiple of the {world_size} ranks that share it")
        for name, value, least in (("captions_per_image", captions_per_image, 1), ("workers", workers, 0)):
            if value is not None and value < least:
                raise UserError(f"{name}={value} must be at least {least}")
        if bucket < 1:
            raise UserError(f"bucket={bucket} must be at least 1 token")
        self.batch_size = batch_size
        self.examples_per_epoch = size
        self._cursor = _Cursor(0, batch_size)
        self._pad_id = tokenizer.pad_id
        self._max_tokens = max_tokens
        self._bucket = bucket
        self._choice = choice or CaptionSettings()
        self._encode = caption_encoder(tokenizer, max_tokens)
        local = batch_size // world_size
        self._share = range(rank * local, (rank + 1) * local)
        self._shares = _Shares(
            source, order, transform, seed, captions_per_image, self._choice, batch_size, self._share
        )
        self._workers = start_workers(self._shares, self._cursor, workers) if workers else None

    @property
    def position(self) -> int:
        """Examples that all ranks have been given so far; batches that workers have prepared ahead are not counted."""
        return self._cursor.position

    @position.setter
    def position(self, value: int) -> None:
        if value < 0:
            raise ValueError(f"position {value} must be at least 0")
        self._cursor.position = value

    @property
    def epoch(self) -> int:
        """The epoch of the next example, from 0."""
        return self.epoch_at(self._cursor.position)

    def epoch_at(self, position: int) -> int:
        """The epoch of the example at a position, from 0."""
        return position // self.examples_per_epoch

    def peek(self) -> Batch:
        """The next batch, made in this process. The position and the workers' prepared batches stay as they are."""
        start = self._cursor.position
        prepared = self._shares[start]
        if isinstance(prepared, UserError):
            raise prepared
        assert isinstance(prepared, Prepared), "only a data worker has anything to hand over"
        return self._collated(prepared, start)

    def _collated(self, prepared: Prepared, start: int) -> Batch:
        """This rank's share of the global batch that starts at position ``start``, with its place in the data."""
        batch = collate(prepared, self._encode, self._pad_id, self._max_tokens, self._bucket, self._choice)
        bad = tuple(start + self._share.start + place for place in prepared.corrupt_at)
        return replace(batch, position=start + self.batch_size, epoch=self.epoch_at(start), corrupt_at=bad)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from ``position`` on, without end. One iteration at a time: a second one ends the first.

        The batch is empty if nothing of this rank's share can be decoded. Raises UnreadableBatch on all ranks if
        nothing of the whole batch can be, UserError on one where its workers cannot work, and RuntimeError if
        ``position`` is set during the iteration.
        """
        start = self._cursor.position
        for prepared in self._prepared_shares():
            # Workers have prepared the batches that follow ``start``: they cannot follow a position that jumps.
            if self._cursor.position != start:
                raise RuntimeError("the loader's position was changed while iterating; take a new iterator")
            if isinstance(prepared, UserError):
                # A new error: one that is also a local variable here would hold this frame, and with it the workers,
                # alive.
                raise (UnreadableBatch if isinstance(prepared, UnreadableBatch) else UserError)(str(prepared))
            batch = self._collated(prepared, start)
            # Before the yield: while the caller works on a batch, the position counts that batch.
            start += self.batch_size
            self._cursor.position = start
            yield batch

    def _prepared_shares(self) -> Iterator[Prepared | UserError]:
        """This rank's shares from the current position on, made here or by the workers."""
        if self._workers is None:
            return (cast(Prepared | UserError, self._shares[position]) for position in self._cursor)
        return from_workers(self._workers)
