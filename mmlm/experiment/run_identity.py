"""Which configs are the same computation, and the folder of a run."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmlm.experiment.config import Config
from mmlm.experiment.config_file import config_values
from mmlm.experiment.parts import dotted

OUTSIDE_IDENTITY = (
    "name",
    "seed",
    "runs",
    "device",
    "logger",
    "data.workers",
    "data.overlap_images",
    "data.max_bad_share",
    "data.max_bad_in_a_row",
    "train.log_every",
    "train.keep_last",
    "train.diagnose_every",
    "train.max_skipped_steps",
    "train.spike.max_rewinds",
    "train.activation_checkpointing",
    "train.compile",
    "parallel",
    "preflight",
    "processes",
    "launcher",
    "ranks",
    "resume",
)
"""Keys that do not change the numbers: where files go, what is logged, how many processes share the work."""


def identity(config: Config) -> str:
    """Eight hexadecimal digits that are equal for configs of the same computation (whatever their seed).

    A part counts by the package and the name of its class, not by the module in between: a class that moves to another
    file keeps the folders of its runs.
    """
    values = _without_modules(config_values(config))
    for key in OUTSIDE_IDENTITY:
        *parents, last = key.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        del node[last]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _without_modules(values: Any) -> Any:
    """A copy of ``values`` in which every ``_target_: package.module.Name`` reads ``package.Name``."""
    if isinstance(values, Mapping):
        return {
            key: re.sub(r"\..*\.", ".", value) if key == "_target_" else _without_modules(value)
            for key, value in values.items()
        }
    return [_without_modules(value) for value in values] if isinstance(values, list) else values


def run_folder(config: Config) -> Path:
    """``runs/<experiment>/<name or hash>/seed=<n>``: the same config finds the same folder."""
    return Path(config.runs) / config.experiment / (config.name or identity(config)) / f"seed={config.seed}"


def differences(old: Config, new: Config) -> list[str]:
    """``key: old value -> new value`` for every setting that differs and changes what is computed."""
    return [f"{key}: {before} -> {after}" for key, before, after in changed_settings(old, new)]


def changed_settings(old: Config, new: Config) -> list[tuple[str, str | None, str | None]]:
    """(key, old value, new value) of every setting that differs and changes what is computed, sorted by key.

    Values are texts; None stands for a key that is not there.
    """
    before, after = (dict(dotted(dataclasses.asdict(config))) for config in (old, new))
    # An entry of OUTSIDE_IDENTITY stands for a setting or for a whole group of settings.
    outside = tuple(f"{key}." for key in OUTSIDE_IDENTITY)
    keys = sorted(key for key in before.keys() | after.keys() if not f"{key}.".startswith(outside))
    return [
        (key, str(before[key]) if key in before else None, str(after[key]) if key in after else None)
        for key in keys
        if before.get(key) != after.get(key)
    ]
