"""Evaluation and the report's samples on a few examples, before training: what would fail hours later fails now."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mmlm.core.errors import UserError
from mmlm.core.wording import first_line
from mmlm.data.evaluation_batches import EvaluationBatches
from mmlm.evaluation.evaluate import Evaluation, place_of
from mmlm.evaluation.items import collect_items, split_ranks
from mmlm.evaluation.requires import SplitTexts, required_by
from mmlm.evaluation.sample_settings import SampleSettings
from mmlm.evaluation.samples import collect_samples


def rehearse(
    evaluation: Evaluation, splits: Mapping[str, EvaluationBatches], samples: SampleSettings, language: str | None
) -> list[str]:
    """Runs all evaluators, and collects what the report shows, on one batch of each split; returns a line for each.

    All ranks call it; the caller puts the model in eval mode. Raises UserError that names the part that fails.
    """
    lines = []
    for name, batches in splits.items():
        some = batches.sample()
        at = f"on {some.num_examples} of the {batches.num_examples} examples of '{name}'"
        with _named("encoder, bridge or text encoder", f"fails {at}"):
            split = evaluation.encode(name, some)
        texts, scored = SplitTexts(name, tuple(some.texts())), []
        for key, evaluator in evaluation.evaluators.items():
            requires = required_by(evaluator)
            # A few examples can have too little for an evaluator that the whole split is enough for.
            too_few = requires is not None and texts.lacking(requires) is not None
            if too_few or key in evaluation.without.get(name, ()):
                continue
            with _named(f"evaluators.{key}", f"{type(evaluator).__name__} fails {at}"):
                json.dumps(evaluation.values_of(key, split))  # as its values are written at the end
            scored.append(key)
        with _named("samples", f"what the report shows fails {at}"), evaluation.computing():
            ranks = split_ranks(split)
            json.dumps(collect_samples(split, samples, language, ranks))
            json.dumps(collect_items(split, language, ranks, some.attributes()))
        lines.append(f"{name}: {', '.join(scored) or 'no evaluator'} and the report's samples run {at}")
    return lines


@contextmanager
def _named(key: str, what: str) -> Iterator[None]:
    """Turns every error of the block into a UserError in one line that begins with ``key``."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    except Exception as error:
        raise UserError(f"{key}: {what} ({type(error).__name__}: {first_line(error)}; {place_of(error)})") from error
