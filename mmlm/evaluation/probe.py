"""Probes: what can be read off frozen features by a linear classifier, and by the nearest neighbours."""

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.figure import Figure, FigureGroup
from mmlm.core.intervals import share_interval
from mmlm.core.keyed_random import keyed_integer, stable_hash
from mmlm.core.ranges import check_counts
from mmlm.data.attributes import attributes_of
from mmlm.evaluation.items import spaced
from mmlm.evaluation.split import EncodedBatch, EncodedSplit
from mmlm.model import never_empty

GROUP = FigureGroup(
    "Probes",
    "Can what is known of an image be read off its frozen features? Two halves of the split are each classified by a "
    "probe that was fitted to the other. The linear probe's penalty is chosen on a quarter of the images that it is "
    "fitted to, never on those that are scored.",
)
MOST_VALUES = 100
"""A label with more values than this is no division of the images into a few kinds."""
CONCEPT = "concept"
"""The label of data that know nothing else of their images."""
_TEMPERATURE = 0.07
"""A neighbour votes with weight exp(similarity / temperature) (arXiv:1805.01978)."""


def _family(name: str, meaning: str, kind: str) -> Figure:
    return Figure(
        name,
        meaning,
        GROUP,
        share=True,
        higher_is_better=True,
        chance="chance",
        low=f"{kind}_low",
        high=f"{kind}_high",
        shown=("table",),
        family=True,
    )


@dataclass(frozen=True)
class _Label:
    """A label of n images."""

    rows: tuple[int, ...]
    """The images, as rows of the features."""
    values: tuple[str, ...]
    """What each of them is."""
    second_half: Tensor
    """bool[n]: the half that each belongs to."""
    choosing: Tensor
    """bool[n]: the quarter of each half on which its probe's penalty is chosen."""


class Probe:
    """Accuracy of a linear and of a k-nearest-neighbour classifier on frozen features, for each label of the data.

    The labels are the attributes that the source knows (of drawn scenes the colour, shape, size and count of the first
    group; of emoji the group and the artist; of a folder the folder), or else the concept. They are matched by their
    names. A label needs two values of two images each; other images do not count.

    The split is cut in two halves, and each is classified by what was fitted to the other. Images of one concept lie in
    the same half, unless a label has no two concepts. The linear classifier is scikit-learn's logistic regression
    (L-BFGS) on features of mean 0 and deviation 1 over the images that it is fitted to.

    Args:
        features: ``pooled``, before the projection to the space that images and texts share, or ``embedding``, after.
        labels: which labels; null takes all.
        k: neighbours that vote.
        penalties: inverse weights of the L2 penalty (scikit-learn's C) to choose from.
        most: images that take part, evenly spaced over the split.
        seed: of the halves.

    Raises:
        ArgumentError: no or impossible penalties, or a number below 1.
        UserError: scikit-learn is not installed.
    """

    needs_decoder = False
    figures: Mapping[str, Figure] = {
        "linear": _family(
            "Linear probe", "accuracy of a logistic regression; chance: always the most frequent", "linear"
        ),
        "neighbours": _family("k-NN probe", "accuracy by the votes of the nearest images", "neighbours"),
        "images": Figure("Images", "how many took part", GROUP, shown=("table",)),
    }

    def __init__(
        self,
        features: str = "pooled",
        labels: Sequence[str] | None = None,
        k: int = 20,
        penalties: Sequence[float] = (0.0001, 0.001, 0.01, 0.1, 1.0),
        most: int = 2000,
        seed: int = 0,
    ) -> None:
        if features not in ("pooled", "embedding"):
            raise ArgumentError(f"features: {features!r} must be pooled or embedding")
        check_counts({"k": k, "most": most})
        if not penalties or not all(0 < penalty < math.inf for penalty in penalties):
            raise ArgumentError(f"penalties: {list(penalties)} must be one or more numbers above 0, and finite")
        try:
            from sklearn.linear_model import LogisticRegression  # noqa: F401
        except ImportError as error:
            raise UserError(f"evaluators: Probe needs scikit-learn ({error}); pip install 'mmlm[probe]'") from None
        self.features, self.labels, self.k = features, labels, k
        self.penalties, self.most, self.seed = tuple(penalties), most, seed

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields ``linear/LABEL`` and ``neighbours/LABEL``, shares in [0, 1], with their ends, and ``chance/LABEL``.

        Of a split without a label, ``images`` is 0, and that is all. Raises UserError for a label that there is not.
        """
        chosen = spaced(self.most, len(split.image_ids))
        labels = self._labels(split, chosen)
        taking_part = {row for label in labels.values() for row in label.rows}
        yield "images", float(len(taking_part))
        if not labels:
            return
        features = self._features(split).cpu().double().numpy()[chosen]
        concept = split.image_concept.cpu()[chosen].tolist()
        for name, label in labels.items():
            own, values = features[list(label.rows)], np.array(label.values)
            linear, near = np.zeros(len(values)), np.zeros(len(values))
            for scored in (label.second_half.numpy(), ~label.second_half.numpy()):
                if not scored.any() or scored.all():
                    continue
                fitted = ~scored
                part = label.choosing.numpy()[fitted]
                linear[scored] = self._linear(own[fitted], values[fitted], part, own[scored]) == values[scored]
                near[scored] = _by_neighbours(own[fitted], values[fitted], own[scored], self.k) == values[scored]
            cluster = [concept[row] for row in label.rows]
            for kind, right in (("linear", linear), ("neighbours", near)):
                low, high = share_interval(right.tolist(), cluster)
                yield f"{kind}/{name}", float(right.mean())
                yield f"{kind}_low/{name}", low
                yield f"{kind}_high/{name}", high
            yield f"chance/{name}", Counter(label.values).most_common(1)[0][1] / len(label.values)

    def _labels(self, split: EncodedSplit, chosen: Sequence[int]) -> dict[str, _Label]:
        """The labels that the split has, by name."""
        known = {} if split.source is None else dict(attributes_of(split.source))
        keys = split.image_concept.cpu()[list(chosen)].tolist()
        ids = [split.image_ids[row] for row in chosen]
        found = {name: [of.get(id) for id in ids] for name, of in known.items()} or {
            CONCEPT: [str(key) for key in keys]
        }
        for name in self.labels or ():
            if name not in found:
                raise UserError(
                    f"labels: '{name}' is not known of '{split.name}'; there are: {', '.join(sorted(found))}"
                )
        labels = {}
        for name, values in found.items():
            if self.labels is None or name in self.labels:
                label = self._label(values, ids, keys)
                if label is not None:
                    labels[name] = label
        return labels

    def _label(self, values: Sequence[str | None], ids: Sequence[str], keys: Sequence[int]) -> _Label | None:
        """A label of those images whose value has another image; None if it has not two values, or too many."""
        counts = Counter(value for value in values if value is not None)
        rows = [row for row, value in enumerate(values) if value is not None and counts[value] > 1]
        kept = [str(values[row]) for row in rows]
        if not 2 <= len(set(kept)) <= MOST_VALUES:
            return None
        concepts: dict[str, set[int]] = {}
        for row, value in zip(rows, kept, strict=True):
            concepts.setdefault(value, set()).add(keys[row])
        by_concept = min(map(len, concepts.values())) > 1
        names = [str(keys[row]) if by_concept else ids[row] for row in rows]
        draws = [keyed_integer(self.seed, stable_hash(name)) % 8 for name in names]
        drawn = torch.tensor(draws)
        return _Label(tuple(rows), tuple(kept), drawn % 2 == 1, drawn // 2 == 0)

    @torch.no_grad()
    def _features(self, split: EncodedSplit) -> Tensor:
        """float[B, D] of all images."""
        if self.features == "embedding":
            return split.image_embedding

        def of_batch(item: EncodedBatch) -> Tensor:
            encoded = never_empty.encoded(split.model.encoder, item.batch.images)
            return split.model.through_bridge(encoded)[0]

        return torch.cat(split.over_batches(of_batch))

    def _linear(
        self,
        fitted: NDArray[np.float64],
        values: NDArray[np.str_],
        choosing: NDArray[np.bool_],
        scored: NDArray[np.float64],
    ) -> NDArray[np.str_]:
        """The values that a linear classifier gives to ``scored``: its penalty is chosen on the rows ``choosing``."""
        best = self.penalties[0]
        if len(self.penalties) > 1 and choosing.any() and not choosing.all():
            shares = [
                float(
                    (
                        _classified(fitted[~choosing], values[~choosing], fitted[choosing], penalty) == values[choosing]
                    ).mean()
                )
                for penalty in self.penalties
            ]
            best = self.penalties[shares.index(max(shares))]
        return _classified(fitted, values, scored, best)


def _classified(
    fitted: NDArray[np.float64], values: NDArray[np.str_], scored: NDArray[np.float64], penalty: float
) -> NDArray[np.str_]:
    """The values that a logistic regression on ``fitted`` gives to ``scored``; of one value, that value."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(set(values)) < 2:
        return np.full(len(scored), values[0])
    mean, deviation = fitted.mean(axis=0), fitted.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty may take more steps than are worth it
        solver = LogisticRegression(C=penalty, solver="lbfgs", max_iter=500)
        return solver.fit((fitted - mean) / scale, values).predict((scored - mean) / scale)


def _by_neighbours(
    fitted: NDArray[np.float64], values: NDArray[np.str_], scored: NDArray[np.float64], k: int
) -> NDArray[np.str_]:
    """The values by the votes of the ``k`` images of ``fitted`` whose features are at the smallest angle."""
    unit, other = (each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (fitted, scored))
    names, number = np.unique(values, return_inverse=True)
    similar = other @ unit.T
    nearest = np.argsort(-similar, axis=1, kind="stable")[:, :k]
    weights = np.exp((np.take_along_axis(similar, nearest, axis=1) - 1) / _TEMPERATURE)
    votes = np.zeros((len(scored), len(names)))
    np.add.at(votes, (np.arange(len(scored))[:, None], number[nearest]), weights)
    return names[votes.argmax(axis=1)]
