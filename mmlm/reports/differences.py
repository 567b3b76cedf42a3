"""What several runs do not have in common besides what is compared, and what moves numbers all the same."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from mmlm.reports.run_folder import RunFolder

RECORDED = {"precision": "precision", "git_commit": "commit", "device": "device"}
"""Keys of ``environment.json`` that are compared, with their words. The device of a CPU tells the number of threads."""
SHORT = 12
"""Letters of a commit that are shown."""
OF_DATA = (
    "train",
    "validation",
    "test",
    "path",
    "image_size",
    "max_tokens",
    "captions_per_image",
    "captions",
    "language",
)
"""Settings below ``data`` that decide what is trained and scored; how it is read (workers) does not."""


def differences(runs: Mapping[str, RunFolder]) -> str | None:
    """One line about the precision, commit, device (threads) and data that differ among runs; None if all are equal.

    Of the data, settings are compared, and the examples that each run found. So is the precision of the last scores.

    What a run does not tell, since it is older or has no such file, is taken for equal.
    """
    found = [line for key, word in RECORDED.items() if (line := _of_environment(runs, key, word)) is not None]
    taken = {name: run.scores.precision for name, run in runs.items() if run.scores and run.scores.precision}
    if len(set(taken.values())) > 1:
        found.append(f"precision of the scores ({', '.join(f'{name}: {value}' for name, value in taken.items())})")
    places = list(_places_of_data(runs))
    if not places:
        places = [f"other examples in {name}" for name in _examples_that_differ(runs)]
    if places:
        found.append(f"data ({', '.join(places)})")
    return f"the runs also differ in {'; '.join(found)}" if found else None


def _of_environment(runs: Mapping[str, RunFolder], key: str, word: str) -> str | None:
    told = {name: str(value) for name, run in runs.items() if (value := run.environment.get(key)) is not None}
    if len(set(told.values())) < 2:
        return None
    values = (f"{name}: {value[:SHORT] if key == 'git_commit' else value}" for name, value in told.items())
    return f"{word} ({', '.join(values)})"


def _places_of_data(runs: Mapping[str, RunFolder]) -> Iterator[str]:
    """The keys of ``config.yaml`` below which the data of some runs differ."""
    sections = [section for run in runs.values() if (section := _data_of(run.config)) is not None]
    for key in OF_DATA:
        if any(section.get(key) != sections[0].get(key) for section in sections):
            yield f"data.{key}"


def _examples_that_differ(runs: Mapping[str, RunFolder]) -> Iterator[str]:
    """The splits of which the runs have found other examples, by the digests in ``data.json``."""
    for split in dict.fromkeys(split for run in runs.values() for split in run.data):
        told = [record for run in runs.values() if isinstance(record := run.data.get(split), dict)]
        if len({str(record.get("digest")) for record in told}) > 1:
            yield split


def _data_of(config: str) -> Mapping[str, Any] | None:
    """The section ``data`` of the text of a config; None if it has none, or cannot be read."""
    try:
        found = yaml.safe_load(config)
    except yaml.YAMLError:
        return None
    section = found.get("data") if isinstance(found, dict) else None
    return section if isinstance(section, dict) else None
