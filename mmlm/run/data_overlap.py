"""``overlap.json`` of a run folder: what its training data and validation splits have in common, counted once."""

import json
from dataclasses import asdict
from pathlib import Path

from mmlm.data.overlap import Overlap, Shared, overlap
from mmlm.data.sources import ListsTexts
from mmlm.experiment.experiment import Experiment
from mmlm.record.folder import OVERLAP
from mmlm.record.manifest import DamagedFileError, read_recorded, write_recorded
from mmlm.run.data_record import recorded_data


def overlap_of_run(experiment: Experiment, folder: Path, images: int | None) -> Overlap | None:
    """The overlap of a run's data, from its folder if it was counted for the same data before.

    The data are known by the digests of ``data.json``, which has to be up to date. None if ``images`` (of each set that
    are looked at) is None, if nothing is evaluated, or if a source cannot list its texts.
    """
    splits = {name: batches.source for name, batches in experiment.validation.items()}
    sources = (experiment.train_source, *splits.values())
    if images is None or not splits or not all(isinstance(source, ListsTexts) for source in sources):
        return None
    key = {"images": images, "data": recorded_data(folder)}
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
