"""``python -m mmlm.bench parts``: parameters, FLOPs, memory and step time of every part, as a Markdown table.

The whole model is held fixed and one slot varies. Timings of a busy machine mean little by themselves, so every cell
takes turns with the reference, and the table gives the ratio of the two.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from mmlm.bench.cells import (
    CANNOT_RUN,
    LeftOut,
    check_at_least,
    check_choices,
    check_out,
    each_cell,
    left_out,
    publish,
    reasons,
)
from mmlm.bench.measure import Trainer, build_trainer, take_turns
from mmlm.bench.settings import PartsSettings
from mmlm.cli.checked_config import compose_checked
from mmlm.cli.hydra_command import hydra_override
from mmlm.cli.hydra_config import chosen_options
from mmlm.core.computing import resolved
from mmlm.experiment.device import choose_device
from mmlm.model.protocols import MODEL_SLOTS
from mmlm.record.environment import device_name

WARM_UP = 2
"""Steps before anything is measured."""


@dataclass(frozen=True)
class Row:
    """The measurements of one cell."""

    option: str
    is_reference: bool
    part: str
    """Class of the part; empty for an empty slot."""
    parameters: int
    """Parameters of the part."""
    flops: int
    """FLOPs of the part: forward, one image and one caption."""
    model_flops: int
    """FLOPs of the whole model."""
    memory: int
    """Bytes that a training step needs."""
    memory_ratio: float
    """``memory`` as a multiple of the reference's."""
    seconds: float
    """Seconds of a training step."""
    seconds_ratio: float
    """``seconds`` as a multiple of the reference's, timed in turn."""


@dataclass(frozen=True)
class Reference:
    """The model that every cell is compared with."""

    overrides: Sequence[str]
    """The command line that the model is composed from."""
    options: Mapping[str, str]
    """The model's option in each slot."""
    trainer: Trainer
    memory: int
    """Bytes that a training step needs, measured before any other model was built."""


def measure_parts(settings: PartsSettings, argv: Sequence[str]) -> int:
    """Measures and prints the table; returns the exit status. The page names ``argv`` as its command."""
    _check(settings)
    device = choose_device(settings.device)
    base = [f"experiment={settings.experiment}", *map(hydra_override, settings.overrides)]
    options, trainer = chosen_options(base, MODEL_SLOTS), _build(base, settings, device)
    reference = Reference(base, options, trainer, trainer.memory())
    tables: dict[str, list[Row | LeftOut]] = {slot: [] for slot in settings.slots}
    for slot, option in each_cell(settings.slots, settings.options):
        tables[slot].append(_measure(slot, option, reference, settings))
    publish(_document(tables, reference, settings, argv), settings.out)
    return 0


def _check(settings: PartsSettings) -> None:
    check_choices(settings.slots, settings.options, MODEL_SLOTS)
    check_at_least(1, {"batch_size": settings.batch_size, "steps": settings.steps})
    check_at_least(10, {"vocab_size": settings.vocab_size})
    check_out(settings.out)


def _build(overrides: Sequence[str], settings: PartsSettings, device: torch.device) -> Trainer:
    """The trainer of the model that a command line composes, after ``WARM_UP`` steps."""
    config = compose_checked(overrides)
    trainer = build_trainer(config, settings.batch_size or config.train.batch_size, settings.vocab_size, device)
    for _ in range(WARM_UP):
        trainer.step()
    return trainer


def _measure(slot: str, option: str, reference: Reference, settings: PartsSettings) -> Row | LeftOut:
    """Measures one cell in turn with the reference. A cell that is refused, too large or not on disk is left out."""
    try:
        cell = _build([*reference.overrides, f"{slot}={option}"], settings, reference.trainer.device)
        times = take_turns(reference.trainer, cell, settings.steps)
        memory, costs = cell.memory(), cell.costs()
    except CANNOT_RUN as error:
        return left_out(option, error)
    part = getattr(cell.model, slot)
    return Row(
        option=option,
        is_reference=option == reference.options[slot],
        part="" if part is None else type(part).__name__,
        parameters=costs.parameters.get(slot, 0),
        flops=costs.flops.get(slot, 0),
        model_flops=sum(costs.flops.values()),
        memory=memory,
        memory_ratio=memory / reference.memory,
        seconds=times.seconds,
        seconds_ratio=times.ratio,
    )


def _document(
    tables: Mapping[str, Sequence[Row | LeftOut]], reference: Reference, settings: PartsSettings, argv: Sequence[str]
) -> Iterator[str]:
    """The lines of the whole text."""
    trainer = reference.trainer
    data, precision = trainer.config.data, resolved(trainer.config.train.precision, trainer.device)
    yield f"`{shlex.join(['python', '-m', 'mmlm.bench', 'parts', *argv])}`"
    yield ""
    yield (
        f"{device_name(trainer.device)}, PyTorch {torch.__version__}, {precision.name}. A batch of "
        f"{len(trainer.batch.images)} random images of {data.image_size} pixels, each with a random caption of "
        f"3 to {data.max_tokens} tokens out of {settings.vocab_size:,}."
    )
    yield f"Reference: {', '.join(f'{slot}={option}' for slot, option in reference.options.items())}; one slot varies."
    yield (
        "FLOPs: forward, one image and one caption of the longest length, a multiply-add is 2. Step: forward, backward "
        f"and optimizer, median of {settings.steps}; ×: times the reference, timed in turn. The reference's own row is "
        f"a second copy of it: how far its × is from 1 is the noise. Memory: {_memory_meaning(trainer.device)}."
    )
    for slot, rows in tables.items():
        yield from _table(slot, rows)


def _memory_meaning(device: torch.device) -> str:
    if device.type == "cuda":
        return "peak of what PyTorch had allocated in a step"
    return "parameters, gradients, optimizer state and what is saved for backward (no temporary values)"


def _table(slot: str, rows: Sequence[Row | LeftOut]) -> Iterator[str]:
    measured = [row for row in rows if isinstance(row, Row)]
    yield from ("", f"### {slot}")
    if measured:
        yield ""
        yield f"| {slot} | class | parameters | MFLOPs | model MFLOPs | memory, MB | × | step, ms | × |"
        yield "|---|---|--:|--:|--:|--:|--:|--:|--:|"
        yield from map(_line, measured)
    yield from reasons(rows)


def _line(row: Row) -> str:
    cells = (
        f"**{row.option}** (reference)" if row.is_reference else row.option,
        row.part or "none",
        f"{row.parameters:,}",
        f"{row.flops / 1e6:,.2f}",
        f"{row.model_flops / 1e6:,.1f}",
        f"{row.memory / 1e6:,.1f}",
        f"{row.memory_ratio:.2f}",
        f"{1000 * row.seconds:,.1f}",
        f"{row.seconds_ratio:.2f}",
    )
    return f"| {' | '.join(cells)} |"
