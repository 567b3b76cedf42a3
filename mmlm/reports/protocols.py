"""In what the protocols of several runs' scores differ: numbers of unlike protocols are not compared."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mmlm.core.errors import UserError
from mmlm.reports.json_file import JsonNode


@dataclass(frozen=True)
class ScoredBy:
    """How the scores of one split were taken, as ``scores.json`` says (``evaluation/protocol.py``)."""

    hash: str
    facts: Mapping[str, str]
    """What holds for all evaluators: ``examples``, ``precision``, ``max_tokens``, ``decoding``."""
    evaluators: Mapping[str, Mapping[str, str]]
    """The rules of each evaluator."""


MEANING = {
    "examples": "the examples",
    "precision": "the precision",
    "max_tokens": "the longest caption, in tokens,",
    "decoding": "how images are decoded",
}
"""The facts in words."""
WHOLE = "whole"
"""How images are decoded where a protocol says nothing of it."""


def parse_protocol(node: JsonNode) -> ScoredBy:
    """One entry of ``protocols`` in ``scores.json``. Raises UserError for one that cannot be understood."""
    evaluators = node.get("evaluators", dict)
    return ScoredBy(
        hash=node.get("hash", str).value,
        facts={
            "examples": node.get("examples", str).value,
            "precision": node.get("precision", str).value,
            "max_tokens": str(node.get("max_tokens", int).value),
            "decoding": node.get("decoding", str, WHOLE).value,
        },
        evaluators={
            name: {key: str(value) for key, value in evaluators.get(name, dict).value.items()}
            for name in evaluators.value
        },
    )


def unlike_protocols(protocols: Mapping[str, Mapping[str, ScoredBy]]) -> str | None:
    """In what the protocols of runs differ, in one line; None if their scores are comparable.

    ``protocols`` are those of each split, by the run's name and the split's. Only splits and evaluators that several
    runs have are compared, and a run that is older than protocols tells nothing.
    """
    found = list(dict.fromkeys(_differences(protocols)))
    return "; ".join(found) if found else None


def refuse_unlike(key: str, protocols: Mapping[str, Mapping[str, ScoredBy]]) -> None:
    """Raises UserError, which begins with the setting ``key``, for protocols that differ."""
    told = unlike_protocols(protocols)
    if told is not None:
        raise UserError(
            f"{key}: scored under unlike protocols, whose numbers do not compare: {told}; evaluate them alike, or "
            "give unlike=true to see them all the same"
        )


def _differences(protocols: Mapping[str, Mapping[str, ScoredBy]]) -> Iterator[str]:
    """What differs, each in some words."""
    for split in dict.fromkeys(split for of_run in protocols.values() for split in of_run):
        of_split = {name: of_run[split] for name, of_run in protocols.items() if split in of_run}
        if len({one.hash for one in of_split.values()}) < 2:
            continue
        for fact, words in MEANING.items():
            yield from _unlike(f"{split}: {words}", {name: one.facts[fact] for name, one in of_split.items()})
        for evaluator in dict.fromkeys(key for one in of_split.values() for key in one.evaluators):
            rules = {name: one.evaluators[evaluator] for name, one in of_split.items() if evaluator in one.evaluators}
            for rule in dict.fromkeys(key for of_run in rules.values() for key in of_run):
                told = {name: of_run.get(rule, "not told") for name, of_run in rules.items()}
                yield from _unlike(f"{split}: {evaluator}'s {rule}", told)


def _unlike(what: str, told: Mapping[str, str]) -> Iterator[str]:
    if len(set(told.values())) > 1:
        yield f"{what} ({', '.join(f'{name}: {value}' for name, value in told.items())})"
