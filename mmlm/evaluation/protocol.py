"""The protocol of scores: all that moves numbers beside the model. It is written beside them, with its hash.

Two scores are comparable if they were taken of the same examples, in the same precision and by the same rules. What an
evaluator's rules are it says itself (``Ruled``); what is not among them, such as a device, moves no more than rounding.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mmlm.evaluation.split import EncodedSplit

DIGITS = 16
"""Hexadecimal digits of a hash."""


@runtime_checkable
class Ruled(Protocol):
    """An evaluator whose values depend on rules: what counts as right, ties, prompts, how captions are written."""

    rules: Mapping[str, str]
    """Each rule in words, by what it is about: ``ties``, ``prompts``."""


@dataclass(frozen=True)
class SplitProtocol:
    """How the scores of one split were taken."""

    examples: str
    """Hash of the images' ids and the captions that were scored."""
    precision: str
    max_tokens: int
    """Longest caption, read or written."""
    evaluators: Mapping[str, Mapping[str, str]]
    """The rules of each evaluator, by its name; none for one that has none."""
    decoding: str | None = None
    """How images were decoded, where that was not whole, as it usually is; see ``EvaluationBatches.decoding``."""

    def as_json(self) -> dict[str, Any]:
        """The entry of ``scores.json``."""
        return with_hash(
            {
                "examples": self.examples,
                "precision": self.precision,
                "max_tokens": self.max_tokens,
                "evaluators": {name: dict(rules) for name, rules in self.evaluators.items()},
                # Left out where nothing is special: hashes of scores from before it was written stay as they are.
                **({} if self.decoding is None else {"decoding": self.decoding}),
            }
        )


def with_hash(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of ``scores.json`` with the hash of all that it says, in place of any that it had."""
    facts = {key: value for key, value in entry.items() if key != "hash"}
    return {"hash": _digest(facts), **facts}


def protocol_of(
    split: EncodedSplit, evaluators: Mapping[str, object], precision: str | None, decoding: str | None = None
) -> SplitProtocol:
    """The protocol of the evaluators that have scored a split."""
    return SplitProtocol(
        examples=examples_digest(split),
        precision=precision or "unknown",
        max_tokens=split.max_tokens,
        evaluators={
            name: dict(evaluator.rules) if isinstance(evaluator, Ruled) else {}
            for name, evaluator in evaluators.items()
        },
        decoding=decoding,
    )


def examples_digest(split: EncodedSplit) -> str:
    """The hash of what was scored: ids of images in order, and each caption with its language and its image.

    An image that could not be decoded is not among them. Of pixels, only the ids speak.
    """
    captions = [[caption.text, caption.language] for caption in split.captions]
    return _digest([split.image_ids, captions, split.image_index.tolist()])


def _digest(value: object) -> str:
    written = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(written.encode()).hexdigest()[:DIGITS]
