"""``init_from.run=RUN`` without ``experiment=``: the run brings its parts, sizes, tokenizer and recipe into another.

Nothing of the run is imported here, so that a mistake is answered at once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from mmlm.cli.own_data import quoted
from mmlm.core.errors import UserError
from mmlm.experiment.opened_config import opened_values, read_values
from mmlm.record.folder import CONFIG, METRICS, newest_of, runs_below

EXPERIMENT = "finetune"
"""The experiment of such runs: ``runs/finetune/<name or hash>/seed=<n>``."""
_MODEL = ("encoder", "bridge", "text_encoder", "decoder", "tokenizer")
"""Slots whose parts go with the weights."""
_RECIPE = ("freeze", "objective", "transform", "optim", "schedule", "evaluators")
"""Slots that say how the run was trained."""
_SETTINGS = ("model", "train", "samples", "teacher")
_DATA = ("image_size", "max_tokens", "language")
_FREE = ("dropout", "drop_path", "patch_dropout", "packed", "pool", "pretrained", "weights")
"""Settings of parts that weights fit whatever their values are."""
_SMALLER = 0.1
"""The learning rate, of that of a run that was not itself started from another."""


def with_run(tokens: Sequence[str], notices: list[str]) -> tuple[list[str], DictConfig | None]:
    """The arguments with ``init_from.run=RUN`` made exact, and what the run brings; None if nothing is to be.

    Of several runs, the newest is taken that did not itself start from another of them: the command that starts a run
    is also the one that resumes it. What is taken is added to ``notices``. Raises UserError for an override that the
    weights do not fit.
    """
    given = _given(tokens)
    if "init_from.run" not in given or "experiment" in given or "init_from.weights" in given:
        return list(tokens), None
    path = given["init_from.run"]
    if any(flag in tokens for flag in ("-m", "--multirun")) and "," in path:
        raise UserError("init_from.run: one run brings its parts; for several, start each command by itself")
    if not any(key in ("data", "data.train") for key in given):
        raise UserError(
            f"data: {path} brings a model and no images; give data=PATH (your own), or an option such as data=emoji"
        )
    folder = _chosen(path, notices)
    values = OmegaConf.to_container(opened_values(folder / CONFIG, _listed(given, "plugins")), resolve=True)
    run = cast(dict[str, Any], values)
    _check_overrides(given, run, folder)
    brought = _brought(run)
    rate = ""
    own = (run.get("optim") or {}).get("lr")
    anew = (run.get("init_from") or {}).get("run") is None
    if anew and isinstance(own, float) and (folder / METRICS).is_file():
        brought["optim"]["lr"] = float(f"{own * _SMALLER:.3g}")
        if "optim.lr" not in given:
            rate = f"; learning rate {brought['optim']['lr']:g}, a tenth of its own (optim.lr=)"
    notices.append(f"init_from.run: {folder} brings its parts, sizes and tokenizer, and how it was trained{rate}")
    exact = [
        f"init_from.run={quoted(str(folder))}" if token.startswith("init_from.run=") else token for token in tokens
    ]
    return exact, OmegaConf.create(brought, flags={"allow_objects": True})


def option_name(brought: DictConfig) -> str:
    """A name for what a run brings, which is another for everything else: no option has it."""
    text = json.dumps(OmegaConf.to_container(brought), sort_keys=True)
    return f"run_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def options_of(brought: DictConfig, name: str) -> list[tuple[str, str, dict[str, Any]]]:
    """What to tell Hydra of a run: (group, package, node) of an option of each slot, and of the experiment, last.

    Each option takes the place of the base's, so that nothing of the base's own part is left in it.
    """
    values = cast(dict[str, Any], OmegaConf.to_container(brought))
    slots = [slot for slot in (*_MODEL, *_RECIPE) if slot in values]
    options = [
        (slot, "_global_", {slot: None}) if values[slot] is None else (slot, slot, values[slot]) for slot in slots
    ]
    rest = {key: value for key, value in values.items() if key not in slots}
    defaults = [{f"override /{slot}": name} for slot in slots]
    return [*options, ("experiment", "_global_", {"defaults": defaults, "experiment": EXPERIMENT, **rest})]


def _given(tokens: Sequence[str]) -> dict[str, str]:
    """Key and value of every override, without quotes."""
    pairs = (token.partition("=") for token in tokens if not token.startswith("-"))
    return {key.lstrip("+~").partition("@")[0]: value.strip("'\"") for key, _, value in pairs}


def _listed(given: Mapping[str, str], key: str) -> list[str]:
    """The names in the value of a setting that is a list. Raises UserError."""
    try:
        value = yaml.safe_load(given.get(key, "[]"))
    except yaml.YAMLError:
        value = None
    if not isinstance(value, list):
        raise UserError(f"{key}: {given[key]} is no list of names; write {key}=[NAME]")
    return [str(name) for name in value]


def _chosen(path: str, notices: list[str]) -> Path:
    """The run folder that a path means. Raises UserError."""
    found = runs_below(path)
    starts = [run for run in found if not _starts_from(run, found)] or found
    folder = newest_of(starts)
    if len(found) > 1:
        notices.append(f"init_from.run: {path} holds {len(found)} runs; taking the one that was trained last, {folder}")
    return folder


def _starts_from(run: Path, others: Sequence[Path]) -> bool:
    """Whether a run began from the weights of another one."""
    if len(others) == 1:
        return False
    began = OmegaConf.select(read_values(run / CONFIG), "init_from.run")
    return isinstance(began, str) and Path(began).resolve() in {other.resolve() for other in others if other != run}


def _brought(run: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's config goes into the new one. Where it writes, what it logs and its data stay behind."""
    taken = {key: run[key] for key in (*_MODEL, *_RECIPE, *_SETTINGS) if key in run}
    taken["data"] = {key: run["data"][key] for key in _DATA if key in run["data"]}
    return taken


def _check_overrides(given: Mapping[str, str], run: Mapping[str, Any], folder: Path) -> None:
    """UserError for an override of a part or size that the weights are not for, unless the user says what to take."""
    if "init_from.missing" in given or "init_from.unexpected" in given:
        return
    parts = _listed(given, "init_from.parts") if "init_from.parts" in given else None
    others = [slot for slot in _MODEL[:-1] if run.get(slot) is not None]
    for key, value in given.items():
        slot = key.partition(".")[0]
        if slot == "tokenizer" and parts is not None and not {"decoder", "text_encoder"} & set(parts):
            continue
        if slot not in (*_MODEL, "model") or key.rpartition(".")[2] in _FREE:
            continue
        if parts is not None and slot not in (*parts, "tokenizer"):
            continue
        own = OmegaConf.select(OmegaConf.create(dict(run)), key)
        if "." in key and yaml.safe_load(value) == own:
            continue
        whose = own if "." in key else _name(own)
        kept = [other for other in others if other != slot]
        fix = (
            ""
            if slot in ("tokenizer", "model")
            else f", or say which parts to take: init_from.parts=[{','.join(kept)}]"
        )
        raise UserError(
            f"{key}: {value} does not fit the weights of {folder}, whose {key} is {whose}; leave it out{fix}"
        )


def _name(part: object) -> str:
    """A part in a word: the name of its class."""
    target = part.get("_target_") if isinstance(part, Mapping | DictConfig) else None
    return str(target).rpartition(".")[2] if target is not None else "none"
