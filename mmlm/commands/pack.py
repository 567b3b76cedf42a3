"""Writes any source as tar shards or Parquet files, several at a time, and goes on where it was stopped."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from mmlm.cli.arguments import PackArguments
from mmlm.cli.checked_config import compose_checked
from mmlm.core.batch import ExampleTexts
from mmlm.core.errors import UserError
from mmlm.core.wording import did_you_mean
from mmlm.data.packed_folder import PackedFolder, Plan
from mmlm.data.packing import pack_file
from mmlm.data.recognise import recognise
from mmlm.data.remarks import remarks_of
from mmlm.data.sources import ListsTexts, Source
from mmlm.data.stored import place_of
from mmlm.experiment.build import build_source
from mmlm.experiment.config import CONFIG_DIR
from mmlm.record.console import Console
from mmlm.run.data_record import describe_data

_SHOWN = 5
"""Examples that are left out, and told by name."""


def pack_source(arguments: PackArguments) -> int:
    """Packs; prints what is packed and the manifest; returns the exit status. Raises UserError."""
    for name in ("shard_size", "threads"):
        if getattr(arguments, name) < 1:
            raise UserError(f"{name}: {getattr(arguments, name)} must be at least 1")
    console = Console()
    source, what = _source(arguments)
    console.line(f"{what}: {len(source):,} examples")
    for line in remarks_of(source):
        console.line(line)
    plan = _plan(source, arguments)
    folder = PackedFolder(Path(arguments.out), plan)
    if folder.done:
        console.line(f"{len(folder.done):,} of {plan.files:,} files are there already")
    _pack(source, plan, folder, Path(arguments.out), arguments.threads, console)
    manifest = folder.finish()
    left_out = list(itertools.chain.from_iterable(file.left_out for _, file in sorted(folder.done.items())))
    for line in left_out[:_SHOWN]:
        console.line(f"left out: {line}")
    if len(left_out) > _SHOWN:
        console.line(f"left out: {len(left_out) - _SHOWN:,} more, which the manifest names")
    console.line(f"{len(source) - len(left_out):,} examples in {plan.files:,} files; manifest: {manifest}")
    return 0


def _source(arguments: PackArguments) -> tuple[Source, str]:
    """The source to pack, and in words what it is. Raises UserError."""
    if arguments.data not in {file.stem for file in (CONFIG_DIR / "data").glob("*.yaml")}:
        if arguments.split is not None or arguments.overrides:
            given = "split" if arguments.split is not None else "overrides"
            raise UserError(f"{given}: is for an option of configs/data, and {arguments.data} is a path")
        found = recognise(place_of(arguments.data))
        return found.source, f"{arguments.data}, taken as {found.what}"
    # Any experiment will do: nothing but the data is built of it.
    config = compose_checked(["experiment=caption_baseline", f"data={arguments.data}", *arguments.overrides])
    nodes = {f"data.validation.{name}": node for name, node in config.data.validation.items()}
    nodes |= {f"data.test.{name}": node for name, node in config.data.test.items()}
    slots = {"train": "data.train"} | {slot.rpartition(".")[2]: slot for slot in nodes}
    split = arguments.split or "train"
    if split not in slots:
        raise UserError(f"split: '{split}' is no split of data={arguments.data}{did_you_mean(split, slots)}")
    slot = slots[split]
    return build_source(config, nodes.get(slot, config.data.train), slot), f"{arguments.data}, {split}"


def _plan(source: Source, arguments: PackArguments) -> Plan:
    record = describe_data(source.texts()) if isinstance(source, ListsTexts) else {}
    return Plan(
        format=arguments.format.name,
        shard_size=arguments.shard_size,
        examples=len(source),
        captions=int(record.get("captions", 0)),
        digest=str(record.get("digest", "")),
    )


def _pack(source: Source, plan: Plan, folder: PackedFolder, out: Path, threads: int, console: Console) -> None:
    """Writes the files that are not done. Raises UserError."""

    def write(number: int, texts: Sequence[ExampleTexts] | None) -> None:
        folder.add(number, pack_file(source, plan.indices(number), texts, out / plan.name(number)))

    pool = ThreadPoolExecutor(threads)
    try:
        with console.activity() as activity:
            running: set[Future[None]] = set()
            for number, texts in _texts_by_file(source, plan):
                if number in folder.done:
                    continue
                while len(running) >= 2 * threads:  # or the texts of all files would wait in memory
                    running = _after_one(running)
                activity.update(f"packing, batch {len(folder.done) + 1} of {plan.files}")
                running.add(pool.submit(write, number, texts))
            while running:
                running = _after_one(running)
                activity.update(f"packing, batch {len(folder.done)} of {plan.files}")
    finally:
        pool.shutdown(cancel_futures=True)


def _after_one(running: set[Future[None]]) -> set[Future[None]]:
    """Waits for the end of one file at least; returns those that are left. Raises what one of them has raised."""
    done, left = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return left


def _texts_by_file(source: Source, plan: Plan) -> Iterator[tuple[int, Sequence[ExampleTexts] | None]]:
    """The number of each file, and the texts of its examples; None for a source that lists none."""
    listed = source.texts() if isinstance(source, ListsTexts) else None
    for number in range(plan.files):
        yield number, None if listed is None else list(itertools.islice(listed, len(plan.indices(number))))
