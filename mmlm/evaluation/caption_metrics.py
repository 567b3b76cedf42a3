"""Scores of captions that are split into words: BLEU-1..4, ROUGE-L and CIDEr-D, in plain Python.

The reference implementation is COCO's caption evaluation (arXiv:1504.00325; package ``pycocoevalcap``): corpus and
per-example scores agree with it to 1e-9. What short captions do to these scores:

- BLEU-n and the n-gram orders of CIDEr-D need captions of n words. A caption of 2 words that is exactly right gets
  CIDEr-D up to 5 of 10, and its own BLEU-4 is almost 0: compare such numbers only within one data set.
- CIDEr-D weighs n-grams by how few examples of *this* reference set have them. Scores of different sets, or of a
  subset, are not comparable, and a single example always gets 0.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mmlm.core.errors import UserError

MAX_ORDER = 4
"""Longest n-grams that BLEU and CIDEr-D count, in words."""
ROUGE_BETA = 1.2
"""ROUGE-L's weight of recall against precision, as COCO sets it."""
CIDER_SIGMA = 6.0
"""Width of CIDEr-D's length penalty, in bigrams."""
CIDER_SCALE = 10.0
"""CIDEr-D of a perfect caption of at least MAX_ORDER words."""
BLEU_NUMERATOR, BLEU_DENOMINATOR = 1e-15, 1e-9
"""Constants that the reference adds to n-gram counts; they decide the example scores of captions without a match."""

Words = Sequence[str]
"""A caption, split into words."""
NGrams = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class MetricScores:
    """One metric over a set of examples: the corpus score is the mean over the examples, except for BLEU."""

    corpus: float
    per_example: tuple[float, ...]
    """One score for each example, in the order given."""


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[MetricScores, ...]:
    """BLEU-1 to BLEU-4 (Papineni et al., ACL 2002) of captions given as words.

    Corpus scores use summed n-gram counts and the brevity penalty on summed lengths, the reference length of an
    example being the one closest to its candidate's (the shorter of two). Counts are not smoothed beyond
    BLEU_NUMERATOR and BLEU_DENOMINATOR, as in COCO's evaluation. Raises as ``score_captions``.
    """
    check_captions(candidates, references)
    examples = [bleu_counts(c, refs) for c, refs in zip(candidates, references, strict=True)]
    total = BleuCounts(
        matched=[sum(column) for column in zip(*(example.matched for example in examples), strict=True)],
        possible=[sum(column) for column in zip(*(example.possible for example in examples), strict=True)],
        length=sum(example.length for example in examples),
        reference_length=sum(example.reference_length for example in examples),
    )
    per_example = [example.scores() for example in examples]
    return tuple(
        MetricScores(corpus, tuple(scores[order] for scores in per_example))
        for order, corpus in enumerate(total.scores())
    )


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> MetricScores:
    """ROUGE-L (Lin, ACL workshop 2004) with ROUGE_BETA; the corpus score is the mean.

    Precision and recall are each the best over the references, as in COCO's evaluation. An empty candidate gets 0
    (the reference gives it 1 if a reference is empty too, since it reads an empty caption as one empty word). Raises
    as ``score_captions``.
    """
    check_captions(candidates, references)
    return mean_of([_rouge_l_example(c, refs) for c, refs in zip(candidates, references, strict=True)])


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> MetricScores:
    """CIDEr-D (arXiv:1411.5726) with document frequencies from ``references``; the corpus score is the mean.

    As in COCO's evaluation: a caption's length is its number of bigrams, and n-grams that no reference has count as
    if one example had them. Raises as ``score_captions``.
    """
    check_captions(candidates, references)
    reference_ngrams = [[_ngrams(words) for words in refs] for refs in references]
    examples_with = Counter(ngram for refs in reference_ngrams for ngram in set().union(*refs))
    rarity = {ngram: math.log(len(references) / count) for ngram, count in examples_with.items()}
    unseen_rarity = math.log(len(references))

    scores = []
    for words, refs in zip(candidates, reference_ngrams, strict=True):
        candidate = _tf_idf(_ngrams(words), rarity, unseen_rarity)
        similarities = [_cider_similarity(candidate, _tf_idf(ref, rarity, unseen_rarity)) for ref in refs]
        scores.append(CIDER_SCALE * math.fsum(similarities) / len(refs))
    return mean_of(scores)


def check_captions(candidates: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates for {len(references)} lists of references: give one for each")
    if not candidates:
        raise ValueError("0 captions to score: a score needs at least one example")
    for index, refs in enumerate(references):
        if isinstance(refs, str):
            raise TypeError(f"references[{index}] is the string {refs!r}: give a list of references")
        if not refs:
            raise UserError(f"example {index} has no reference caption to score against: give it one or leave it out")


def mean_of(scores: Sequence[float]) -> MetricScores:
    return MetricScores(math.fsum(scores) / len(scores), tuple(scores))


def _ngrams(words: Words) -> NGrams:
    """Counts of all n-grams of 1 to MAX_ORDER words."""
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(words) - order + 1)
    )


@dataclass(frozen=True)
class BleuCounts:
    """The counts that BLEU is computed from, of one example or summed over a corpus; an entry for each order."""

    matched: Sequence[float]
    possible: Sequence[float]
    length: float
    reference_length: float

    def scores(self) -> list[float]:
        """BLEU-1 to BLEU-4."""
        ratio = (self.length + BLEU_NUMERATOR) / (self.reference_length + BLEU_DENOMINATOR)
        brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        scores, product = [], 1.0
        for order, (matched, possible) in enumerate(zip(self.matched, self.possible, strict=True), start=1):
            product *= (matched + BLEU_NUMERATOR) / (possible + BLEU_DENOMINATOR)
            scores.append(brevity * product ** (1 / order))
        return scores


def bleu_counts(candidate: Words, references: Sequence[Words]) -> BleuCounts:
    """The counts of one example, given as words."""
    # A candidate's n-gram counts at most as often as it occurs in the one reference that has it most.
    allowed: NGrams = Counter()
    for reference in references:
        allowed |= _ngrams(reference)
    matched = [0] * MAX_ORDER
    for ngram, count in (_ngrams(candidate) & allowed).items():
        matched[len(ngram) - 1] += count
    return BleuCounts(
        matched=matched,
        possible=[max(0, len(candidate) - order + 1) for order in range(1, MAX_ORDER + 1)],
        length=len(candidate),
        reference_length=min((len(ref) for ref in references), key=lambda n: (abs(n - len(candidate)), n)),
    )


def _rouge_l_example(candidate: Words, references: Sequence[Words]) -> float:
    """ROUGE-L of one example."""
    common = [_longest_common_subsequence(candidate, reference) for reference in references]
    if max(common) == 0:
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(length / len(ref) for length, ref in zip(common, references, strict=True) if ref)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _longest_common_subsequence(first: Words, second: Words) -> int:
    """The length in words of the longest sequence that both have in this order, gaps allowed."""
    # One row of the usual dynamic programme at a time: entry j is the length for the words so far and second[:j].
    above = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for column, other in enumerate(second):
            row.append(above[column] + 1 if word == other else max(row[-1], above[column + 1]))
        above = row
    return above[-1]


@dataclass(frozen=True)
class _TfIdf:
    """A caption's n-gram weights and their norm for each order, and its length in bigrams."""

    weights: tuple[dict[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    bigrams: int


def _tf_idf(ngrams: NGrams, rarity: dict[tuple[str, ...], float], unseen_rarity: float) -> _TfIdf:
    """Counts of n-grams weighed by rarity, the logarithm of the inverse document frequency."""
    weights: tuple[dict[tuple[str, ...], float], ...] = tuple({} for _ in range(MAX_ORDER))
    for ngram, count in ngrams.items():
        weights[len(ngram) - 1][ngram] = count * rarity.get(ngram, unseen_rarity)
    norms = tuple(math.sqrt(math.fsum(weight**2 for weight in order.values())) for order in weights)
    return _TfIdf(weights, norms, sum(count for ngram, count in ngrams.items() if len(ngram) == 2))


def _cider_similarity(candidate: _TfIdf, reference: _TfIdf) -> float:
    """A similarity in [0, 1]: the clipped cosine, averaged over the orders, times the length penalty.

    Clipping counts an n-gram of the candidate at most as often as the reference has it: repeating it gains nothing.
    """
    total = 0.0
    for order in range(MAX_ORDER):
        norm = candidate.norms[order] * reference.norms[order]
        if norm > 0:
            theirs = reference.weights[order]
            shared = (min(w, theirs[g]) * theirs[g] for g, w in candidate.weights[order].items() if g in theirs)
            total += math.fsum(shared) / norm
    difference = candidate.bigrams - reference.bigrams
    return total / MAX_ORDER * math.exp(-(difference**2) / (2 * CIDER_SIGMA**2))
