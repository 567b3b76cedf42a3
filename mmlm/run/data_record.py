"""``data.json`` of a run folder: what the examples of a run were when it began, so that it goes on with no others.

A relative path means other data in another folder, and data may be edited in place: the config is the same then.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmlm.core.batch import Caption, ExampleTexts
from mmlm.core.errors import UserError
from mmlm.data.sources import ListsTexts
from mmlm.experiment.experiment import Experiment
from mmlm.record.folder import DATA
from mmlm.record.manifest import DamagedFileError, read_recorded, write_recorded

Record = Mapping[str, str | int]
"""``examples`` and ``captions``, their numbers, and ``digest``."""


def describe_data(texts: Iterator[ExampleTexts]) -> Record:
    """Counts the examples and captions; makes a digest of the ids, captions, kinds and concepts in their order.

    Pixels do not take part: reading them would take as long as an epoch.
    """
    digest, examples, captions = hashlib.blake2b(digest_size=16), 0, 0
    for example in texts:
        said = [_said(caption) for caption in example.captions]
        digest.update(json.dumps([example.id, example.concept, example.has_image, said]).encode() + b"\n")
        examples += 1
        captions += len(said)
    return {"examples": examples, "captions": captions, "digest": digest.hexdigest()}


def _said(caption: Caption) -> list[object]:
    """Captions of no kind that answer nothing are as before there were kinds and sources, so that old records hold."""
    kind = [] if caption.kind is None else [caption.kind]
    read = [] if caption.source is None else [caption.source, [[turn.read, turn.written] for turn in caption.turns]]
    return [caption.text, caption.language, *kind, *read]


def check_data(experiment: Experiment, folder: Path, changed_is_fine: bool) -> list[str]:
    """Compares the data of a run that goes on with what they were when it began; returns lines to tell the user.

    They are recorded where the run begins, and where ``changed_is_fine``. Sources that cannot list their examples
    without reading images are left out. Raises UserError for data that have changed, and for a record that is damaged.
    """
    found: dict[str, Record] = {}
    if isinstance(experiment.train_source, ListsTexts):
        found["data.train"] = describe_data(experiment.train_source.texts())
    for name, batches in experiment.validation.items():
        if batches.lists_texts:
            found[f"data.validation.{name}"] = describe_data(batches.texts())
    before = (recorded_data(folder) if experiment.state.step else None) or {}
    lines = [
        f"{name} has changed since the run began ({_how(before[name], record)})"
        for name, record in found.items()
        if before.get(name, record) != record
    ]
    if lines and not changed_is_fine:
        raise UserError(
            f"{folder}: {lines[0]}; give another name= for a run of its own, or go on with the new data by "
            "resume=changed"
        )
    if before != found:
        write_recorded(folder / DATA, json.dumps(found, indent=1) + "\n")
    return lines


def recorded_data(folder: Path) -> dict[str, Record] | None:
    """The record in a run folder; None if there is none. Raises DamagedFileError."""
    file = folder / DATA
    try:
        content = json.loads(read_recorded(file))
    except FileNotFoundError:
        return None
    except ValueError:
        raise DamagedFileError(file, "it holds no JSON") from None
    if not isinstance(content, dict) or not all(isinstance(record, dict) for record in content.values()):
        raise DamagedFileError(file, "it holds no object of records")
    return content


def _how(before: Record, now: Record) -> str:
    """How data have changed."""
    then, since = (f"{one['examples']} examples with {one['captions']} captions" for one in (before, now))
    return f"{then}, but other ids or texts" if then == since else f"{then} then, {since} now"
