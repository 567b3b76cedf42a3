"""Examples to batches, with an exact position: one integer says where in the data a run is.

The global order is one seeded permutation of the source after another. Batch b is positions [b * batch_size,
(b + 1) * batch_size) of it, whatever the number of workers and ranks; ranks hold consecutive shares of each batch.
Augmentation and the choice of captions are keyed by (seed, epoch, example), so they do not depend on who makes them.
"""

import atexit
import itertools
import multiprocessing
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import forkserver

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmlm.core.errors import CorruptImage, UserError
from mmlm.core.flow import Batch, Example
from mmlm.core.keyed_random import keyed_permutation, keyed_uniform
from mmlm.core.stop import children_spared, ignore_stop_signals
from mmlm.data.collate import Prepared, caption_encoder, collate, prepare
from mmlm.data.sources import Source
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.transforms import Transform

_ORDER, _AUGMENT, _CAPTIONS = 0, 1, 2
"""Streams of `keyed_uniform`: the loader's three uses of randomness."""

DEFAULT_BUCKET = 4
"""T is a multiple of this many tokens: few distinct shapes, little padding."""


def _read(source: Source, index: int) -> Example | CorruptImage:
    try:
        return source[index]
    except CorruptImage as error:
        return error


class _Shares(Dataset):
    """This rank's share of the global batch that starts at a position. Runs in the workers; draws from no generator."""

    def __init__(
        self,
        source: Source,
        transform: Transform,
        seed: int,
        captions_per_image: int | None,
        batch_size: int,
        share: range,
    ) -> None:
        self._source = source
        self._transform = transform
        self._seed = seed
        self._captions_per_image = captions_per_image
        self._batch_size = batch_size
        self._share = share
        self._order: tuple[int, Tensor] | None = None

    def __getitem__(self, position: int) -> Prepared | UserError:
        # A worker process that raised would lose the message's one line.
        try:
            prepared = self._prepare([self._locate(position + offset) for offset in self._share])
            if not prepared.examples:
                self._check_whole_batch(position)
            return prepared
        except UserError as error:
            return error

    def _check_whole_batch(self, position: int) -> None:
        """UserError, on every rank alike, if nothing of a batch can be decoded. One rank's share may be empty."""
        reads = (_read(self._source, self._locate(position + offset)[1]) for offset in range(self._batch_size))
        corrupt = list(itertools.takewhile(lambda read: isinstance(read, CorruptImage), reads))
        if len(corrupt) == self._batch_size:
            raise UserError(
                f"all {len(corrupt)} images of a batch are corrupt (the first is {corrupt[0]}); "
                f"check the data set's files"
            )

    def _locate(self, position: int) -> tuple[int, int]:
        """The epoch and example index at a global position."""
        epoch, place = divmod(position, len(self._source))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, keyed_permutation(self._seed, epoch, len(self._source), _ORDER))
        return epoch, int(self._order[1][place])

    def _prepare(self, located: Sequence[tuple[int, int]]) -> Prepared:
        examples = [self._choose_captions(_read(self._source, index), epoch, index) for epoch, index in located]
        uniforms = None
        if self._transform.augment is not None:
            uniforms = torch.cat([self._uniforms(epoch, list(group)) for epoch, group in _by_epoch(located)])
        return prepare(examples, self._transform, uniforms)

    def _uniforms(self, epoch: int, indices: list[int]) -> Tensor:
        return keyed_uniform(self._seed, epoch, torch.tensor(indices), self._transform.num_uniforms, _AUGMENT)

    def _choose_captions(self, example: Example | CorruptImage, epoch: int, index: int) -> Example | CorruptImage:
        """Keep ``captions_per_image`` of an example's captions, drawn without replacement, in their own order."""
        most = self._captions_per_image
        if isinstance(example, CorruptImage) or most is None or len(example.captions) <= most:
            return example
        draws = keyed_uniform(self._seed, epoch, torch.tensor([index]), len(example.captions), _CAPTIONS)[0]
        chosen = sorted(draws.argsort(stable=True)[:most].tolist())
        return Example(example.id, example.image, tuple(example.captions[i] for i in chosen), example.concept)


def _by_epoch(located: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Iterator[int]]]:
    for epoch, group in itertools.groupby(located, key=lambda place: place[0]):
        yield epoch, (index for _, index in group)


@dataclass
class _Cursor:
    """Where the next batch starts, shared by the loader and the sampler of its workers.

    Not the loader itself: workers in a reference cycle would be left to the garbage collector, which closes their
    queues before it can tell them to stop.
    """

    position: int
    batch_size: int

    def __iter__(self) -> Iterator[int]:
        """The positions of the batches from the current one on, without end."""
        return itertools.count(self.position, self.batch_size)


class TrainLoader:
    """Training batches without end, running on across epochs: no tail is dropped, every example comes once an epoch.

    ``position`` is the number of examples that all ranks together have been given since the run's start. Setting it
    and iterating goes on exactly there, with any number of workers and ranks that divides the batch.
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
    ) -> None:
        """``batch_size`` is the global batch (examples of all ranks); each rank gets ``batch_size / world_size``.

        ``captions_per_image`` are drawn anew each epoch (None: all). ``max_tokens`` counts start and end. ``workers``
        is a number of processes; 0 prepares batches in this one. UserError for values that do not fit.
        """
        if not 1 <= batch_size <= len(source):
            raise UserError(f"batch_size={batch_size} must be between 1 and the {len(source)} examples of the data set")
        if batch_size % world_size:
            raise UserError(f"batch_size={batch_size} must be a multiple of the {world_size} ranks that share it")
        for name, value, least in (("captions_per_image", captions_per_image, 1), ("workers", workers, 0)):
            if value is not None and value < least:
                raise UserError(f"{name}={value} must be at least {least}")
        if bucket < 1:
            raise UserError(f"bucket={bucket} must be at least 1 token")
        self.batch_size = batch_size
        self.examples_per_epoch = len(source)
        self._cursor = _Cursor(0, batch_size)
        self._pad_id = tokenizer.pad_id
        self._max_tokens = max_tokens
        self._bucket = bucket
        self._encode = caption_encoder(tokenizer, max_tokens)
        local = batch_size // world_size
        share = range(rank * local, (rank + 1) * local)
        self._shares = _Shares(source, transform, seed, captions_per_image, batch_size, share)
        self._workers = _start_workers(self._shares, self._cursor, workers) if workers else None

    @property
    def position(self) -> int:
        """Examples yielded so far over all ranks; what a worker has prepared ahead is not counted."""
        return self._cursor.position

    @position.setter
    def position(self, value: int) -> None:
        if value < 0:
            raise ValueError(f"position {value} must be at least 0")
        self._cursor.position = value

    @property
    def epoch(self) -> int:
        """The epoch of the next example, from 0."""
        return self._cursor.position // self.examples_per_epoch

    def peek(self) -> Batch:
        """The next batch, made in this process; the position and what workers prepare stay as they are."""
        start = self._cursor.position
        prepared = self._shares[start]
        if isinstance(prepared, UserError):
            raise prepared
        return self._collated(prepared, start)

    def _collated(self, prepared: Prepared, start: int) -> Batch:
        """This rank's share of the global batch that starts at position ``start``, with its place in the data."""
        batch = collate(prepared, self._encode, self._pad_id, self._max_tokens, self._bucket)
        return replace(batch, position=start + self.batch_size, epoch=start // self.examples_per_epoch)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from ``position`` on, without end. One iteration at a time: a second one ends the first.

        A rank's share of which nothing can be decoded is an empty batch. Raises UserError, on all ranks, if that is so
        of the whole batch.
        """
        start = self._cursor.position
        for prepared in self._prepared_shares():
            if self._cursor.position != start:
                raise RuntimeError("the loader's position was changed while iterating; take a new iterator")
            if isinstance(prepared, UserError):
                # A new one: an error that is a local of the frame it is raised in would keep the workers alive.
                raise UserError(str(prepared))
            batch = self._collated(prepared, start)
            start += self.batch_size
            self._cursor.position = start
            yield batch

    def _prepared_shares(self) -> Iterator[Prepared | UserError]:
        if self._workers is None:
            return map(self._shares.__getitem__, self._cursor)
        with children_spared():
            return iter(self._workers)


def _start_workers(shares: _Shares, cursor: _Cursor, workers: int) -> DataLoader:
    """Worker processes that each prepare whole shares, handed over in order. They start at the first iteration.

    They are not forked from this process: it has threads by then, which a fork would cut off in mid-air.
    """
    server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if server else "spawn")
    if server:
        # Workers import the main module again, and all it needs: once for all of them, and while the model is built.
        context.set_forkserver_preload([name for name in sys.modules if name.startswith("mmlm.")])
        with children_spared():
            forkserver.ensure_running()
    loader = DataLoader(
        shares,
        batch_size=None,
        sampler=cursor,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_begin_worker,
        multiprocessing_context=context,
        persistent_workers=True,
        # Its own generator: the loader must not move the run's global random state.
        generator=torch.Generator(),
    )
    atexit.register(_end_workers, weakref.ref(loader))
    return loader


def _end_workers(reference: "weakref.ref[DataLoader]") -> None:
    """Ends the workers of an iteration that is alive when the process ends.

    multiprocessing would do it by SIGTERM, which ours leave alone, and then wait for them for ever.
    """
    loader = reference()
    if loader is not None and loader._iterator is not None:
        loader._iterator._shutdown_workers()


def _identity(prepared: Prepared | UserError) -> Prepared | UserError:
    return prepared


def _begin_worker(worker: int) -> None:
    """Leaves signals to the training process, and ends with it.

    Ctrl-C reaches every process of the terminal; the training process finishes its step and saves, and needs its
    workers. One that is killed can stop nobody, and torch looks at the wrong process here: a worker is the child of
    the fork server, which lives as long as its workers hold the pipe that tells it of the end.
    """
    ignore_stop_signals()
    threading.Thread(target=_end_with_the_parent, name="parent", daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class EvaluationBatches:
    """Every example of a source once, in order, with all of its captions and without augmentation.

    A sequence of batches, each of which is read when it is asked for: ranks share them out without decoding the
    others'. An image that cannot be decoded is left out and named in its batch's ``corrupt``.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        transform: Transform,
        batch_size: int,
        max_tokens: int,
        bucket: int = DEFAULT_BUCKET,
    ) -> None:
        """``batch_size`` is in examples; the last batch may be smaller."""
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        self.corrupt: tuple[str, ...] = ()
        """``id: reason`` of every image that the last evaluation left out, whatever rank read it; set by it."""
        self._source = source
        self._transform = transform
        self._batch_size = batch_size
        self._pad_id = tokenizer.pad_id
        self._max_tokens = max_tokens
        self._bucket = bucket
        self._encode = caption_encoder(tokenizer, max_tokens)

    @property
    def num_examples(self) -> int:
        """Examples of the source, those that cannot be decoded included."""
        return len(self._source)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._source) // self._batch_size)

    def __getitem__(self, number: int) -> Batch:
        """A batch, in the source's order; without images and captions if nothing of it could be decoded.

        Raises IndexError beyond the last.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} is none of the split's {len(self)}")
        start = number * self._batch_size
        indices = range(start, min(start + self._batch_size, len(self._source)))
        prepared = prepare((_read(self._source, index) for index in indices), self._transform, None)
        return collate(prepared, self._encode, self._pad_id, self._max_tokens, self._bucket)
