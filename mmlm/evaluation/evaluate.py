"""Runs all evaluators over all splits, and writes the files that the report reads.

With several ranks, all of them have to call each method with the same splits: they share the work and get the same
results.
"""

import functools
import json
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import pyarrow as pa
import torch

from mmlm.core.computing import computing, resolved
from mmlm.core.distributed import gather_objects, gather_results, rank, world_size
from mmlm.core.errors import UserError
from mmlm.core.figure import Figure
from mmlm.core.precision import Precision
from mmlm.core.wording import first_line
from mmlm.data.evaluation_batches import EvaluationBatches
from mmlm.data.tokenizer import Tokenizer
from mmlm.evaluation.evaluators import Evaluator, shown_decoding
from mmlm.evaluation.items import collect_items, split_ranks
from mmlm.evaluation.per_item import Itemised, table_of, write_items
from mmlm.evaluation.protocol import protocol_of, with_hash
from mmlm.evaluation.sample_settings import SampleSettings
from mmlm.evaluation.samples import collect_samples
from mmlm.evaluation.split import EncodedSplit, encode_split, no_tick
from mmlm.model.model import ImageTextModel
from mmlm.record.folder import ITEMS, PER_ITEM, SAMPLES, SCORES
from mmlm.record.manifest import DamagedFileError, read_recorded, write_recorded


class Trained(Protocol):
    """A model with its tokenizer: an experiment that is training, or a run that has been trained."""

    @property
    def model(self) -> ImageTextModel:
        """The model to evaluate."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that goes with the model."""
        ...


def _prefix(name: str) -> str:
    """What stands in front of the names that an evaluator yields: its own name, except for retrieval's."""
    return "" if name == "retrieval" else f"{name}/"


def evaluation_figures(evaluators: Mapping[str, Evaluator]) -> dict[str, Figure]:
    """What the values of ``Evaluation.scores`` are, as the evaluators declare it, by the same names."""
    return {
        f"{_prefix(name)}{key}": figure.under(_prefix(name))
        for name, evaluator in evaluators.items()
        for key, figure in evaluator.figures.items()
    }


def evaluator_of(name: str, evaluators: Mapping[str, Evaluator]) -> str | None:
    """The evaluator whose value has the name ``name`` among ``Evaluation.scores``; None if none of them claims it."""
    for key, evaluator in evaluators.items():
        prefix = _prefix(key)
        if (prefix and name.startswith(prefix)) or name in evaluation_figures({key: evaluator}):
            return key
    return None


@dataclass(frozen=True)
class Evaluation:
    """Evaluators with a model, and the precision and device to compute on. The caller puts the model in eval mode."""

    model: ImageTextModel
    tokenizer: Tokenizer
    evaluators: Mapping[str, Evaluator]
    max_tokens: int
    device: torch.device
    computing: Callable[[], AbstractContextManager[None]]
    """Makes the context to compute in: autocast to the run's precision."""
    tick: Callable[[str], None] = no_tick
    """Called before each batch that this rank works on, with what it does ("evaluating validation, batch 3 of 12")."""
    without: Mapping[str, Collection[str]] = field(default_factory=dict)
    """By split: the evaluators that are left out of it (``requires.find_lacking``)."""
    tell: Callable[[str], None] = no_tick
    """Tells the user, on every rank, of what could not be scored, or was damaged."""
    precision: str | None = None
    """The name of the precision that ``computing`` means, which is written beside the scores; None: unknown."""

    @classmethod
    def of(
        cls,
        trained: Trained,
        evaluators: Mapping[str, Evaluator],
        max_tokens: int,
        device: torch.device,
        precision: Precision,
        tick: Callable[[str], None] = no_tick,
        without: Mapping[str, Collection[str]] = MappingProxyType({}),
        tell: Callable[[str], None] = no_tick,
    ) -> "Evaluation":
        """The evaluation of an experiment or a run, in ``precision`` on ``device``."""
        context = functools.partial(computing, device, precision)
        name = resolved(precision, device).name
        return cls(trained.model, trained.tokenizer, evaluators, max_tokens, device, context, tick, without, tell, name)

    def encode(self, name: str, batches: EvaluationBatches) -> EncodedSplit:
        """The split ``name``, encoded for all evaluators; sets ``batches.corrupt`` to the images that were left out."""
        with self.computing():
            split = encode_split(name, self.model, self.tokenizer, batches, self.device, self.max_tokens, self.tick)
        batches.corrupt = split.corrupt
        return replace(split, source=batches.origin)

    def scores(self, split: EncodedSplit) -> dict[str, float]:
        """The values of one split by ``evaluator/name``; retrieval's names have no prefix (``image_to_text/R@1``).

        An evaluator that cannot score the split costs its own values only, and is told of in one line.
        """
        values: dict[str, float] = {}
        for name in self.evaluators:
            if name in self.without.get(split.name, ()):
                continue
            try:
                found = self.values_of(name, split)
                json.dumps(found)  # a value that could not be written would take those of the others with it
                values |= found
            except Exception as error:
                # An error that another rank has not met would leave the ranks out of step; the contract of evaluators
                # promises that for mistakes of the data only.
                if world_size() > 1 and not isinstance(error, UserError):
                    raise
                self.tell(f"{split.name}: no scores of evaluators.{name}: {_told(error)}")
        # All ranks take rank 0's values: on unlike hardware they could differ in the last bit, and then the ranks would
        # disagree about which checkpoint is the best.
        return gather_objects(values)[0]

    def values_of(self, name: str, split: EncodedSplit) -> dict[str, float]:
        """The values of one evaluator, by the names of ``scores``. Raises what the evaluator raises."""
        with self.computing():
            return {f"{_prefix(name)}{key}": value for key, value in self.evaluators[name](split)}

    def all_scores(self, splits: Mapping[str, EvaluationBatches]) -> dict[str, float]:
        """The values of every split, by ``split/evaluator/name``."""
        return {
            f"{name}/{key}": value
            for name, batches in splits.items()
            for key, value in self.scores(self.encode(name, batches)).items()
        }

    def write(
        self,
        folder: Path,
        step: int,
        splits: Mapping[str, EvaluationBatches],
        samples: SampleSettings,
        language: str | None,
        described: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, dict[str, float]]:
        """Evaluates every split and merges the results into the files of a run folder.

        The files are ``scores.json``, ``samples.json``, ``items.json`` and ``per_item.parquet``. ``described`` holds a
        line about each split that is not the run's own. The results of such a one replace all that the files have under
        its name, for other images may have had it. Rank 0 writes the files. When ``write`` returns, on any rank, they
        are complete.
        """
        scores: dict[str, dict[str, float]] = {}
        shown: dict[str, Any] = {}
        items: dict[str, Any] = {}
        protocols: dict[str, dict[str, Any]] = {}
        tables: list[pa.Table] = []
        decoding = shown_decoding(self.evaluators)
        for name, batches in splits.items():
            split = self.encode(name, batches)
            counts = {"images": len(split.image_concept), "captions": len(split.gallery.texts)}
            found = self.scores(split)
            scores[name] = counts | found
            made = {key: one for key, one in self.evaluators.items() if any(evaluator_of(v, {key: one}) for v in found)}
            protocols[name] = protocol_of(split, made, self.precision, batches.decoding).as_json()
            with self.computing():
                for key, one in made.items():
                    if isinstance(one, Itemised):
                        tables.append(table_of(name, _prefix(key), list(one.per_item(split))))
                ranks = split_ranks(split)
                shown[name] = collect_samples(split, samples, language, ranks, decoding)
                items[name] = collect_items(split, language, ranks, batches.attributes(), decoding=decoding)

        def merge() -> None:
            if rank() == 0:
                noted: dict[str, Any] = dict(scores)
                noted |= {name: {"description": line} | scores[name] for name, line in described.items()}
                for file, results, rules in (
                    (folder / SCORES, noted, protocols),
                    (folder / SAMPLES, shown, None),
                    (folder / ITEMS, items, None),
                ):
                    _merge(file, step, self.precision, results, described, self.tell, rules)
                about = {"step": str(step), "precision": self.precision or "unknown"}
                write_items(folder / PER_ITEM, about, tables, tuple(described))

        gather_results(merge)
        return scores


def _told(error: Exception) -> str:
    """An error of an evaluator in one line: of a bug, the kind and the place too."""
    return (
        str(error)
        if isinstance(error, UserError)
        else f"{type(error).__name__}: {first_line(error)} ({place_of(error)})"
    )


def place_of(error: Exception) -> str:
    """``FILE, line N``: the innermost line of an error that stands outside of installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or list(frames)
    return f"{own[-1].filename}, line {own[-1].lineno}"


def _merge(
    file: Path,
    step: int,
    precision: str | None,
    splits: Mapping[str, Any],
    replaced: Collection[str],
    tell: Callable[[str], None],
    protocols: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Adds results to a file, by split and name, or in place of those of the split if it is ``replaced``.

    Results of another step are dropped, for they belong to other weights. So are those of another precision: the
    figures of a file, and of a table, are taken in one. The file is replaced in one step: a run that is killed here
    leaves the one before. A damaged file is put aside, and told of. ``protocols`` of the splits are added likewise;
    what other evaluators have scored of other examples than these is dropped.
    """
    kept: dict[str, Any] = {}
    rules: dict[str, Any] = {}
    try:
        before = json.loads(read_recorded(file))
        if (before["step"], before.get("precision", precision)) == (step, precision):
            kept = {str(name): dict(values) for name, values in before["splits"].items()}
            rules = {str(name): dict(entry) for name, entry in before.get("protocols", {}).items()}
    except FileNotFoundError:
        pass
    except (DamagedFileError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        aside = file.with_name(f"{file.name}.damaged")
        file.replace(aside)
        tell(f"{file} was damaged and is now {aside.name}; it is written anew, without splits evaluated earlier")
    for name, entry in (protocols or {}).items():
        before_it = rules.get(name, entry)
        if any(before_it.get(key) != entry.get(key) for key in ("examples", "max_tokens", "decoding")):
            kept.pop(name, None)
            before_it = entry
        earlier = {} if name in replaced else before_it["evaluators"]
        rules[name] = with_hash({**entry, "evaluators": {**earlier, **entry["evaluators"]}})
    merged = {n: ({} if n in replaced else kept.get(n, {})) | values for n, values in splits.items()}
    taken = {} if precision is None else {"precision": precision}
    ruled = {} if protocols is None else {"protocols": rules}
    content = {"step": step, **taken, **ruled, "splits": kept | merged}
    write_recorded(file, json.dumps(content, ensure_ascii=False))
