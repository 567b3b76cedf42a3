"""The labels of a classification: their words, and those words as vectors."""

from collections.abc import Mapping, Sequence

from mmlm.core.errors import UserError

Labels = Sequence[str] | Mapping[str, str | Sequence[str]]
"""Labels, which are their own words, or labels with their words."""


def label_words(labels: Labels) -> dict[str, tuple[str, ...]]:
    """The words of each label, in order. Raises UserError for fewer than two labels, and for any without words."""
    if isinstance(labels, str | bytes) or not isinstance(labels, Sequence | Mapping):
        raise UserError(
            f"labels: a {type(labels).__name__} is no list of labels; give a list of str, or a dict of label: words"
        )
    found: dict[str, tuple[str, ...]] = {}
    for label in labels:
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"labels: {label!r} is no label; give texts that are not blank")
        if label in found:
            raise UserError(f"labels: '{label}' is there twice; remove one")
        words = labels[label] if isinstance(labels, Mapping) else label
        each = (words,) if isinstance(words, str) else tuple(words) if isinstance(words, Sequence) else ()
        if not each or not all(isinstance(word, str) and word.strip() for word in each):
            raise UserError(f"labels: '{label}' must have words, a text or a list of texts")
        found[label] = each
    if len(found) < 2:
        raise UserError(f"labels: there are {len(found)}; give at least two")
    return found
