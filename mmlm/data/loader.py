"""Makes batches of examples in an order in which one integer, the position, says where in the data a run is.

The order is one seeded permutation of the source for each epoch, one after another. Batch b holds the positions
[b * batch_size, (b + 1) * batch_size), whatever the number of workers and ranks; each rank has a consecutive share of
every batch. Augmentation and the choice of captions are keyed by (seed, epoch, example), so they do not depend on the
worker or rank that makes them.
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
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mmlm.core.batch import Batch, Example
from mmlm.core.errors import CorruptImage, UserError
from mmlm.core.keyed_random import keyed_permutation, keyed_uniform
from mmlm.core.stop import children_spared, ignore_stop_signals
from mmlm.data.collate import Prepared, caption_encoder, collate, prepare
from mmlm.data.sources import Source
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.transforms import Transform

_ORDER, _AUGMENT, _CAPTIONS = 0, 1, 2
"""Streams of `keyed_uniform`: the loader's three uses of randomness draw independent numbers."""

DEFAULT_BUCKET = 4
"""T is a multiple of this number of tokens: a compromise between few distinct shapes and little padding."""


def _read(source: Source, index: int) -> Example | CorruptImage:
    """The example, or the error as a value: a corrupt image is dropped from its batch and named in it."""
    try:
        return source[index]
    except CorruptImage as error:
        return error


class _Shares(Dataset):
    """Maps the position at which a global batch starts to this rank's share of the batch.

    Runs in the workers. It draws from no random generator: all randomness is keyed, so a worker has no state.
    """

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
        # An error travels as a value: DataLoader would wrap an error that a worker raises in the worker's traceback,
        # and the user would not see the message on one line.
        try:
            prepared = self._prepare([self._locate(position + offset) for offset in self._share])
            if not prepared.examples:
                self._check_whole_batch(position)
            return prepared
        except UserError as error:
            return error

    def _check_whole_batch(self, position: int) -> None:
        """Called if no example of the share can be decoded. Raises UserError if none of the whole batch can be.

        Every rank's share is empty then, so every rank comes here and raises, without communication.
        """
        reads = (_read(self._source, self._locate(position + offset)[1]) for offset in range(self._batch_size))
        corrupt = list(itertools.takewhile(lambda read: isinstance(read, CorruptImage), reads))
        if len(corrupt) == self._batch_size:
            raise UserError(
                f"all {len(corrupt)} images of a batch are corrupt (the first is {corrupt[0]}); "
                f"check the data set's files"
            )

    def _locate(self, position: int) -> tuple[int, int]:
        """The epoch and the example's index at a position."""
        epoch, place = divmod(position, len(self._source))
        # A permutation costs a sort of all numbers of examples, so that of the current epoch is kept.
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, keyed_permutation(self._seed, epoch, len(self._source), _ORDER))
        return epoch, int(self._order[1][place])

    def _prepare(self, located: Sequence[tuple[int, int]]) -> Prepared:
        """Reads the example at each (epoch, index) and transforms the images."""
        examples = [self._choose_captions(_read(self._source, index), epoch, index) for epoch, index in located]
        uniforms = None
        if self._transform.augment is not None:
            # A batch across the end of an epoch has examples of two epochs, and so numbers of two keys.
            uniforms = torch.cat([self._uniforms(epoch, list(group)) for epoch, group in _by_epoch(located)])
        return prepare(examples, self._transform, uniforms)

    def _uniforms(self, epoch: int, indices: list[int]) -> Tensor:
        return keyed_uniform(self._seed, epoch, torch.tensor(indices), self._transform.num_uniforms, _AUGMENT)

    def _choose_captions(self, example: Example | CorruptImage, epoch: int, index: int) -> Example | CorruptImage:
        """The example with at most ``captions_per_image`` captions, drawn without replacement, in their own order."""
        most = self._captions_per_image
        if isinstance(example, CorruptImage) or most is None or len(example.captions) <= most:
            return example
        draws = keyed_uniform(self._seed, epoch, torch.tensor([index]), len(example.captions), _CAPTIONS)[0]
        chosen = sorted(draws.argsort(stable=True)[:most].tolist())
        return Example(example.id, example.image, tuple(example.captions[i] for i in chosen), example.concept)


def _by_epoch(located: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Iterator[int]]]:
    """For each epoch its consecutive examples' indices."""
    for epoch, group in itertools.groupby(located, key=lambda place: place[0]):
        yield epoch, (index for _, index in group)


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

        Raises:
            UserError: values that do not fit.
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
        return self._collated(prepared, start)

    def _collated(self, prepared: Prepared, start: int) -> Batch:
        """This rank's share of the global batch that starts at position ``start``, with its place in the data."""
        batch = collate(prepared, self._encode, self._pad_id, self._max_tokens, self._bucket)
        return replace(batch, position=start + self.batch_size, epoch=self.epoch_at(start))

    def __iter__(self) -> Iterator[Batch]:
        """Batches from ``position`` on, without end. One iteration at a time: a second one ends the first.

        The batch is empty if nothing of this rank's share can be decoded. Raises UserError on all ranks if nothing of
        the whole batch can be, and RuntimeError if ``position`` is set during the iteration.
        """
        start = self._cursor.position
        for prepared in self._prepared_shares():
            # Workers have prepared the batches that follow ``start``: they cannot follow a position that jumps.
            if self._cursor.position != start:
                raise RuntimeError("the loader's position was changed while iterating; take a new iterator")
            if isinstance(prepared, UserError):
                # A new error: one that is also a local variable here would hold this frame, and with it the workers,
                # alive.
                raise UserError(str(prepared))
            batch = self._collated(prepared, start)
            # Before the yield: while the caller works on a batch, the position counts that batch.
            start += self.batch_size
            self._cursor.position = start
            yield batch

    def _prepared_shares(self) -> Iterator[Prepared | UserError]:
        """This rank's shares from the current position on, made here or by the workers."""
        if self._workers is None:
            return map(self._shares.__getitem__, self._cursor)
        with children_spared():
            return iter(self._workers)


def _start_workers(shares: _Shares, cursor: _Cursor, workers: int) -> DataLoader:
    """Worker processes that prepare whole shares, handed over in order. They start at the first iteration.

    Workers are forked from a server process and not from this one, which has threads by then: a fork copies the locks
    that those threads hold, but not the threads that would release them.
    """
    server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if server else "spawn")
    if server:
        # Every worker needs the modules of mmlm. The server imports them once for all workers, while this process goes
        # on to build the model.
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
        # A generator of its own: DataLoader draws a seed at each iteration, which must not move the run's random state.
        generator=torch.Generator(),
    )
    # A weak reference: the registration must not keep the workers of a loader that is no longer used.
    atexit.register(_end_workers, weakref.ref(loader))
    return loader


def _end_workers(reference: "weakref.ref[DataLoader]") -> None:
    """Called at the exit of the process: ends the workers of an iteration that is still alive.

    multiprocessing would send them SIGTERM, which our workers ignore, and then wait for them for ever.
    """
    loader = reference()
    if loader is not None and isinstance(loader._iterator, _MultiProcessingDataLoaderIter):
        loader._iterator._shutdown_workers()


def _identity(prepared: object) -> object:
    """In place of DataLoader's own conversion of what a worker returns. At module level, so that it can be pickled."""
    return prepared


def _begin_worker(worker: int) -> None:
    """Called first in each worker: ignores signals that ask to stop, and watches the training process.

    Ctrl-C reaches every process of the terminal, but the training process finishes its step and saves, and needs its
    workers for that. A training process that is killed cannot tell its workers to end, so each of them waits for its
    end. torch's own watch does not help: it looks at the parent, which is the fork server, and the server lives on
    because its workers hold the pipe that would tell it of the end.
    """
    ignore_stop_signals()
    threading.Thread(target=_end_with_the_parent, name="parent", daemon=True).start()


def _end_with_the_parent() -> None:
    """Runs in a thread: ends the worker at once when the training process has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class EvaluationBatches:
    """Every example of a source once, in order, with all of its captions and without augmentation.

    A sequence of batches. A batch is read when it is asked for, so that a rank decodes only the batches that it takes.
    An image that cannot be decoded is left out and named in its batch's ``corrupt``.
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
        """``id: reason`` of every image that the last evaluation left out, on any rank; the evaluation sets it."""
        self._source = source
        self._transform = transform
        self._batch_size = batch_size
        self._pad_id = tokenizer.pad_id
        self._max_tokens = max_tokens
        self._bucket = bucket
        self._encode = caption_encoder(tokenizer, max_tokens)

    @property
    def num_examples(self) -> int:
        """Number of examples of the source, including those that cannot be decoded."""
        return len(self._source)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._source) // self._batch_size)

    def __getitem__(self, number: int) -> Batch:
        """Batch ``number``, in the source's order. It is empty if none of its examples can be decoded.

        Raises IndexError beyond the last batch, which also ends an iteration.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} is none of the split's {len(self)}")
        start = number * self._batch_size
        indices = range(start, min(start + self._batch_size, len(self._source)))
        prepared = prepare((_read(self._source, index) for index in indices), self._transform, None)
        return collate(prepared, self._encode, self._pad_id, self._max_tokens, self._bucket)
