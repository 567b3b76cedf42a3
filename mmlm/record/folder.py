"""The run folder: the names of the files in it, writing one of them whole, and finding the folder.

runs/<experiment>/<name or hash>/seed=<n>/
    config.yaml        the resolved config, from which the run is resumed and evaluated
    environment.json   command, commit, device and package versions (record/environment.py)
    metrics.jsonl      one row of metrics a line (record/metrics.py)
    watched.jsonl      scores of checkpoints by mmlm.evaluate watch=true (record/watched.py)
    overlap.json       what training and validation data have in common (run/data_overlap.py)
    data.json          what the examples were when the run began (run/data_record.py)
    figures.json       what the names of metrics and scores are (record/figures.py)
    scores.json        the scores of every evaluated split (evaluation/evaluate.py)
    samples.json       examples of captions and retrieval, for the report
    items.json         what the scores are made of, image by image (evaluation/items.py)
    per_item.parquet   every score that is a mean, item by item (evaluation/per_item.py)
    changes.json       what the config changes of that of caption_base (record/changes.py)
    report.html        the page for people (reports/page.py)
    manifest.jsonl     the SHA-256 of each of these files (record/manifest.py)
    tokenizer/         files of the tokenizer, if it has any
    checkpoints/       what a run is resumed from; checkpoints/files.py names the files inside
    stacks/            where ranks stood when one of them stalled (launch/watchdog.py)
    slurm/             the batch file and logs of launcher=slurm; launch/slurm.py names them
    starts.json        while it is trained, or has died: where its starts died (record/starts.py)
    doing/             the step that each rank is in, for the same purpose
    lock               held while a process writes into the folder (record/lock.py)
    wandb/             what logger=wandb writes (record/loggers/wandb.py)
    tensorboard/       what logger=tensorboard writes (record/loggers/tensorboard.py)
    logger_id          the run's id for loggers, so that a resumed run continues its curves
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mmlm.core.errors import UserError
from mmlm.core.wording import utf8

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
WATCHED = "watched.jsonl"
DATA = "data.json"
OVERLAP = "overlap.json"
FIGURES = "figures.json"
SCORES = "scores.json"
SAMPLES = "samples.json"
ITEMS = "items.json"
PER_ITEM = "per_item.parquet"
CHANGES = "changes.json"
REPORT = "report.html"
MANIFEST = "manifest.jsonl"
TOKENIZER = "tokenizer"
CHECKPOINTS = "checkpoints"
STACKS = "stacks"
STARTS = "starts.json"
DOING = "doing"
LOCK = "lock"
TENSORBOARD = "tensorboard"
LOGGER_ID = "logger_id"
ASIDE = ".before-"
"""Part of the name of a run folder that was moved aside because a new run took its place."""


def write_whole(file: Path, text: str) -> None:
    """``write_whole_bytes`` of a text in UTF-8."""
    write_whole_bytes(file, utf8(text))


def write_whole_bytes(file: Path, content: bytes) -> None:
    """Replaces ``file`` by ``content`` in one step: a reader, or a killed run, meets the old file or the new one.

    It is not flushed to the disk: a crash of the machine, unlike one of the process, may still lose the file.
    Checkpoints, which have to survive that, are written by ``checkpoints/files.py``. Raises UserError if the disk is
    full or cannot be written to.
    """
    # The process id is in the draft's name: a training and a command that evaluates it may write the same file at once.
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(file)
    except OSError as error:
        raise unwritten(file, error) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def unwritten(file: Path, error: OSError) -> UserError:
    """The error about a file that could not be written."""
    return UserError(
        f"{file} could not be written ({error.strerror}); free space there, or make that folder writable, then give "
        "the same command again"
    )


def find_run(path: str) -> Path:
    """Returns ``path`` if it is a run folder, or else the only run folder below it.

    Raises UserError if there is no run folder below ``path``, or more than one.
    """
    found = runs_below(path)
    if len(found) > 1:
        raise UserError(f"run: {path} holds {len(found)} runs; name one, such as {found[0]}")
    return found[0]


def newest_run(path: str) -> tuple[Path, int]:
    """The run folder at ``path`` or below it that was trained last, and how many there are. Raises UserError.

    A run was trained last if its metrics were written last; evaluating a run, or writing its report, makes it no newer.
    """
    found = runs_below(path)
    return newest_of(found), len(found)


def newest_of(runs: Sequence[Path]) -> Path:
    """The run folder that was trained last, of one or more."""
    return max(runs, key=_trained_at)


def runs_below(path: str) -> list[Path]:
    """``path`` itself if it is a run folder, or else all run folders below it, sorted. Raises UserError for none."""
    root = Path(path)
    if (root / CONFIG).is_file():
        return [root]
    # A run folder is called seed=<n>; any config.yaml will not do, for wandb writes one of its own below a run folder.
    found = sorted(file.parent for file in root.glob(f"**/seed=*/{CONFIG}")) if root.is_dir() else []
    found = [folder for folder in found if ASIDE not in folder.name]
    if not found:
        raise UserError(f"run: {path} is no run folder (it has no {CONFIG}); train one with python -m mmlm.train")
    return found


def _trained_at(folder: Path) -> float:
    """When the run last wrote metrics, or else its config: seconds since 1970."""
    metrics = folder / METRICS
    return (metrics if metrics.is_file() else folder / CONFIG).stat().st_mtime
