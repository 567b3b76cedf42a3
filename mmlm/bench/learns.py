"""``python -m mmlm.bench learns``: whether every part learns, as a Markdown table.

The whole model is held fixed and one slot varies. Each cell trains for a few hundred steps on names of the shipped
drawings, and has to caption and to match drawings by an artist it has not seen.
"""

import dataclasses
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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
from mmlm.bench.learning import CONTRASTIVE_SHARE, LAST_STEPS, MARGIN, Captioned, Learned, train_cell
from mmlm.bench.settings import LearnsSettings
from mmlm.cli.checked_config import compose_checked
from mmlm.cli.hydra_command import hydra_override
from mmlm.cli.hydra_config import chosen_options
from mmlm.core.computing import resolved
from mmlm.core.errors import UserError
from mmlm.core.stop import KILLED
from mmlm.core.wording import did_you_mean
from mmlm.experiment.build import build_freeze
from mmlm.experiment.config import Config
from mmlm.experiment.device import choose_device
from mmlm.experiment.run_identity import identity
from mmlm.model.protocols import MODEL_SLOTS
from mmlm.training.loop import Interrupted

LEARNING_SLOTS = (*MODEL_SLOTS, "freeze")
NAMES_ONLY = ("data=emoji", "tokenizer=byte_pair")
"""Overrides for every cell: one short caption an image, of the kind that is held out."""
TWO_TOWERS = (
    "bridge=none",
    "decoder=none",
    "text_encoder=transformer",
    "encoder.pool=mean",
    "evaluators=retrieval",
    "objective.weights.captioning=0",
)
COMPANIONS: Mapping[str, Sequence[str]] = {
    "bridge=none": TWO_TOWERS,
    "decoder=none": TWO_TOWERS,
    "freeze=lm_frozen": ("decoder=gpt2_tiny",),
    "freeze=text_locked": ("text_encoder=transformer",),
}
"""The settings that an option needs, given after ``overrides``."""


class Results:
    """The results of cells, by key: in memory, and in a file of one JSON object a line if ``file`` is given."""

    def __init__(self, file: Path | None) -> None:
        """Reads ``file``, if it exists. A last line that was cut off is dropped; any other bad line is a UserError."""
        self._file = file
        self._known: dict[str, Learned] = {}
        if file is None or not file.exists():
            return
        text = file.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(keepends=True), start=1):
            if not line.endswith("\n"):
                file.write_text(text.removesuffix(line), encoding="utf-8")
                break
            try:
                row = json.loads(line)
                key, captioned = row.pop("key"), row.pop("captioned")
                self._known[key] = Learned(captioned and Captioned(**captioned), **row)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise UserError(f"{file}, line {number}: not a result; delete that line") from None

    def get(self, key: str) -> Learned | None:
        """The result of a cell; None if it has not been trained."""
        return self._known.get(key)

    def add(self, key: str, learned: Learned) -> None:
        """Adds the result of a cell, also to the file."""
        self._known[key] = learned
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": key, **dataclasses.asdict(learned)}) + "\n")


def train_parts(settings: LearnsSettings, argv: Sequence[str]) -> int:
    """Trains the cells and prints the table; returns the exit status. The page names ``argv`` as its command."""
    _check(settings)
    reference = chosen_options(_command_line(settings), LEARNING_SLOTS)
    # A mistake that all cells share is reported here once, instead of as the reason why each of them is left out.
    base = compose_checked(_command_line(settings))
    choose_device(settings.device)
    if settings.split not in base.data.validation:
        known = base.data.validation
        raise UserError(f"split: '{settings.split}' is no validation split{did_you_mean(settings.split, known)}")
    results = Results(None if settings.out is None else Path(f"{settings.out}.jsonl"))
    tables: dict[str, dict[str, Learned | LeftOut]] = {slot: {} for slot in settings.slots}
    for slot, option in each_cell(settings.slots, settings.options):
        try:
            tables[slot][option] = _judge(slot, option, results, settings)
        except Interrupted as stop:
            print("interrupted; what has been trained is kept where out is set", file=sys.stderr)
            return KILLED + signal.Signals[stop.signal_name]
    publish(_document(tables, reference, base, settings, argv), settings.out)
    found = [row for table in tables.values() for row in table.values()]
    return int(any(isinstance(row, Learned) and row.missed() for row in found))


def _check(settings: LearnsSettings) -> None:
    check_choices(settings.slots, settings.options, LEARNING_SLOTS)
    check_at_least(1, {"steps": settings.steps})
    check_at_least(2, {"batch_size": settings.batch_size, "examples": settings.examples})
    check_out(settings.out)


def _command_line(settings: LearnsSettings, *cell: str) -> list[str]:
    """The overrides of a cell. If two of them set one key, the later one counts."""
    batch_size = [] if settings.batch_size is None else [f"train.batch_size={settings.batch_size}"]
    return [
        f"experiment={settings.experiment}",
        *NAMES_ONLY,
        *map(hydra_override, settings.overrides),
        f"train.steps={settings.steps}",
        f"seed={settings.seed}",
        f"device={settings.device}",
        *batch_size,
        *cell,
    ]


def _judge(slot: str, option: str, results: Results, settings: LearnsSettings) -> Learned | LeftOut:
    """Trains one cell, unless its result is known.

    A cell is left out if it is refused, too large, not on disk, or freezes weights that are random.
    """
    choice = f"{slot}={option}"
    try:
        config = compose_checked(_command_line(settings, *COMPANIONS.get(choice, ()), choice))
        if slot == "freeze" and _freezes_random_weights(config):
            return LeftOut(option, "freezes random weights; give pretrained ones: overrides=[init_from.run=DIR]")
        key = f"{identity(config)} seed={config.seed} {settings.split} {settings.examples or 'all'}"
        if (known := results.get(key)) is not None:
            return known
        learned = train_cell(config, settings.split, settings.examples)
    except CANNOT_RUN as error:
        return left_out(option, error)
    results.add(key, learned)
    return learned


def _freezes_random_weights(config: Config) -> bool:
    """True for a cell whose freeze plan freezes parts although no weights of theirs are given."""
    plan = build_freeze(config)
    parts = (part for slot in MODEL_SLOTS if (part := getattr(config, slot)) is not None)
    pretrained = any(part.get(key) for part in parts for key in ("pretrained", "weights", "name_or_path"))
    given = config.init_from.run is not None or config.init_from.weights is not None
    return bool(plan.frozen or plan.lora) and not (pretrained or given)


def _document(
    tables: Mapping[str, Mapping[str, Learned | LeftOut]],
    reference: Mapping[str, str],
    base: Config,
    settings: LearnsSettings,
    argv: Sequence[str],
) -> Iterator[str]:
    """The lines of the whole text."""
    found = [row for table in tables.values() for row in table.values() if isinstance(row, Learned)]
    precision = resolved(base.train.precision, choose_device(settings.device)).name
    devices = " and ".join(sorted({row.device for row in found})) or "nothing was trained"
    yield f"`{shlex.join(['python', '-m', 'mmlm.bench', 'learns', *argv])}`"
    yield ""
    yield (
        f"{devices}, PyTorch {torch.__version__}, {precision}. {settings.steps} steps of "
        f"{base.train.batch_size} images, seed {settings.seed}; held out: {settings.split}"
        f"{'' if settings.examples is None else f', {settings.examples} examples of it'}."
    )
    yield f"Reference: {', '.join(f'{slot}={option}' for slot, option in reference.items())}; one slot varies."
    yield (
        f"A part learns if its held-out captioning loss is at least {MARGIN} nat a token below the entropy of the "
        "training captions' unigrams, the 95% interval of its image-use gap (nats a token; over concepts) lies above "
        f"0, and its contrastive loss in training, mean of the last {min(LAST_STEPS, settings.steps)} steps, is below "
        f"{CONTRASTIVE_SHARE} ln B. Seconds: building, training and evaluating."
    )
    for slot, rows in tables.items():
        yield from _table(slot, rows, reference[slot])


def _table(slot: str, rows: Mapping[str, Learned | LeftOut], reference: str) -> Iterator[str]:
    yield from ("", f"### {slot}")
    learned = {option: row for option, row in rows.items() if isinstance(row, Learned)}
    if learned:
        yield ""
        yield f"| {slot} | held-out loss | unigrams | below | image-use gap | contrastive | ½ ln B | learns | seconds |"
        yield "|---|--:|--:|--:|--:|--:|--:|---|--:|"
        for option, row in learned.items():
            yield _line(f"**{option}** (reference)" if option == reference else option, row)
    yield from reasons(rows.values())


def _line(name: str, row: Learned) -> str:
    missed = row.missed()
    cells = (
        name,
        *_captioned(row.captioned),
        "" if row.contrastive is None else f"{row.contrastive:.3f}",
        f"{row.limit:.3f}",
        f"no: {', '.join(missed)}" if missed else "yes",
        f"{row.seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _captioned(made: Captioned | None) -> Sequence[str]:
    if made is None:
        return ("", "", "", "")
    gap = f"{made.gap:.3f} [{made.gap_low:.3f}, {made.gap_high:.3f}]"
    return (f"{made.loss:.3f}", f"{made.entropy:.3f}", f"{made.below:.3f}", gap)
