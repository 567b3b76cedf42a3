"""``overlap.json`` of a run folder: what training data have in common with the splits that are scored, counted once."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from mmlm.core.errors import UserError
from mmlm.data.overlap import Overlap, Shared, overlap
from mmlm.data.sources import ListsTexts, Source, texts_of
from mmlm.experiment.build import build_source
from mmlm.experiment.config import Config
from mmlm.experiment.experiment import Experiment
from mmlm.record.folder import OVERLAP
from mmlm.record.manifest import DamagedFileError, read_recorded, write_recorded
from mmlm.run.data_record import describe_data, recorded_data


def overlap_lines(config: Config, experiment: Experiment, folder: Path) -> list[str]:
    """Counts the overlap of a run's data, unless its folder has it, and tells it.

    A test split that cannot be opened is named: training does not read it, so no training ends for it.
    """
    if config.data.overlap_images is None:
        return []
    tests: dict[str, Source] = {}
    left_out: list[str] = []
    for name, node in config.data.test.items():
        try:
            source = build_source(config, node, f"data.test.{name}")
        except UserError as error:
            left_out.append(f"data.test.{name} is not compared with the training data: {error}")
            continue
        if isinstance(source, ListsTexts):
            tests[name] = source
    shared = overlap_of_run(experiment, folder, config.data.overlap_images, tests)
    return [*([] if shared is None else [shared.line()]), *left_out]


def overlap_of_run(experiment: Experiment, folder: Path, images: int, tests: Mapping[str, Source]) -> Overlap | None:
    """The overlap of a run's data, from its folder if it was counted for the same data before.

    The data are known by the digests of ``data.json``, which has to be up to date, and those of ``tests`` by digests of
    their own: a run goes on whatever becomes of its test splits. ``images`` of each set are looked at. None if there is
    nothing to compare with, or if a source cannot list its texts.
    """
    splits = {name: batches.source for name, batches in experiment.validation.items()} | dict(tests)
    sources = (experiment.train_source, *splits.values())
    if not splits or not all(isinstance(source, ListsTexts) for source in sources):
        return None
    key: dict[str, object] = {"images": images, "data": recorded_data(folder)}
    if tests:
        key["test"] = {name: describe_data(texts_of(source)) for name, source in tests.items()}
    found = _read(folder / OVERLAP, key)
    if found is None:
        found = overlap(experiment.train_source, splits, images)
        write_recorded(folder / OVERLAP, json.dumps({"of": key, "overlap": asdict(found)}, indent=1) + "\n")
    return found


def _read(file: Path, key: object) -> Overlap | None:
    """What was counted before; None if nothing was, if it was of other data, or if the file is damaged."""
    try:
        content = json.loads(read_recorded(file))
        if content["of"] != key:
            return None
        found = content["overlap"]
        return Overlap(**{**found, "splits": {name: Shared(**shared) for name, shared in found["splits"].items()}})
    except (DamagedFileError, FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
