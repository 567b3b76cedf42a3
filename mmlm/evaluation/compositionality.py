"""Compositionality: does a model prefer a true caption to a false one that has the same words in another order?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, FigureGroup, Place
from mmlm.core.intervals import share_interval
from mmlm.core.keyed_random import keyed_integer, stable_hash
from mmlm.core.ranges import check_counts
from mmlm.data.contrasts import Contrast, HasContrasts
from mmlm.evaluation.contrast_scores import GROUP_CHANCE, group_scores, preferred
from mmlm.evaluation.items import spaced
from mmlm.evaluation.likelihood import blended, choose_weight, log_likelihoods, text_priors
from mmlm.evaluation.requires import Requires
from mmlm.evaluation.split import EncodedSplit
from mmlm.evaluation.swaps import swaps

WAYS: Mapping[str, str] = {
    "embedding": "by the similarity of embeddings",
    "likelihood": "by how probable the captioner finds a caption",
    "corrected": "by that, less how probable it finds the caption with other images",
    "blend": "by both, with the weight that is best on the other half of the images",
}
"""How an image and a caption are scored, and what that is in words."""
GROUP = FigureGroup(
    "Compositionality",
    "Is the true caption preferred to one that is false, such as the same words in another order? Equal scores count "
    "one half.",
)
_GROUP_WORDS = {
    "text": "both of two images prefer their own of two captions",
    "image": "both of two captions prefer their own of two images",
    "group": "all of that",
}


def _figures() -> dict[str, Figure]:
    """The declarations of all values, for each way of scoring."""
    found: dict[str, Figure] = {}
    for way, words in WAYS.items():
        places: tuple[Place, ...] = ("table", "chart", "compare")
        found[way] = Figure(
            f"True over false, {way}",
            words,
            GROUP,
            share=True,
            higher_is_better=True,
            chance=0.5,
            low=f"{way}/low",
            high=f"{way}/high",
            shown=(*places, "console") if way == "embedding" else places,
        )
        found[f"{way}_by_kind"] = Figure(
            f"{way.capitalize()}",
            f"the same for one kind of false caption, {words}",
            GROUP,
            share=True,
            higher_is_better=True,
            chance=0.5,
            low=f"{way}_low",
            high=f"{way}_high",
            shown=("table",),
            family=True,
        )
        for name, meaning in _GROUP_WORDS.items():
            found[f"{way}_{name}"] = Figure(
                f"{name.capitalize()} score, {way}",
                f"{meaning}, {words}",
                GROUP,
                share=True,
                higher_is_better=True,
                chance=GROUP_CHANCE[name],
                low=f"{way}_{name}/low",
                high=f"{way}_{name}/high",
                shown=("table", "compare"),
            )
    found["contrasts"] = Figure("Contrasts", "pairs of a true and a false caption", GROUP, shown=("table",))
    found["weight"] = Figure("Weight", "of the likelihood in the blend, mean of both halves", GROUP, shown=("table",))
    return found


@dataclass(frozen=True)
class _Asked:
    """All contrasts of a split, n of them."""

    contrasts: tuple[Contrast, ...]
    images: Tensor
    """int64[n]: the row of the image of each."""
    texts: tuple[str, ...]
    """The distinct captions."""
    true: Tensor
    """int64[n]: places in ``texts``."""
    false: Tensor
    """int64[n]."""

    @classmethod
    def of(cls, found: list[tuple[int, Contrast]]) -> "_Asked":
        number: dict[str, int] = {}
        for _, contrast in found:
            for text in (contrast.true, contrast.false):
                number.setdefault(text, len(number))
        return cls(
            tuple(contrast for _, contrast in found),
            torch.tensor([row for row, _ in found], dtype=torch.int64),
            tuple(number),
            torch.tensor([number[contrast.true] for _, contrast in found], dtype=torch.int64),
            torch.tensor([number[contrast.false] for _, contrast in found], dtype=torch.int64),
        )


Scored = Mapping[str, tuple[Tensor, Tensor]]
"""By the way of scoring: the scores float64[n] of the true and of the false captions."""


class Compositionality:
    """The share of contrasts in which the true caption scores higher than the false one.

    The contrasts are those that the source of the split knows (``HasContrasts``: drawn scenes, the files of Winoground,
    SugarCrepe and ARO). For other sources they are made of each image's first caption by exchanging words
    (``mmlm/evaluation/swaps.py``), which often, but not always, makes a caption false.

    Captions are scored in up to four ways (``WAYS``); all but the first need a decoder, and a model without one has the
    first alone. The weight of a blend is chosen on the images of one half, drawn by their ids, for those of the other.

    Args:
        likelihood: false leaves out all ways but the embedding.
        prior_images: images of the split, evenly spaced, over which the probability of a caption is averaged.
        most: images that are scored, evenly spaced over the split.
        seed: which words are exchanged, and which half an image belongs to.
        language: of the captions.

    Raises:
        ArgumentError: a number below 1.
    """

    needs_decoder = False
    figures: Mapping[str, Figure] = _figures()

    def __init__(
        self,
        likelihood: bool = True,
        prior_images: int = 4,
        most: int = 1000,
        seed: int = 0,
        language: str | None = None,
    ) -> None:
        check_counts({"prior_images": prior_images, "most": most})
        self.likelihood, self.prior_images, self.most, self.seed = likelihood, prior_images, most, seed
        self.language = language
        self.requires = Requires(language, own_texts=True)

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields a share in [0, 1] for each way of scoring, by kind too, with intervals over the images' concepts.

        Raises UserError for a split without a contrast.
        """
        asked = _Asked.of(self._contrasts(split))
        if not asked.contrasts:
            raise UserError(f"no caption of the split '{split.name}' has two words that could be exchanged")
        scored, weight = self._scores(split, asked)
        concept = split.image_concept.cpu()[asked.images].tolist()
        yield "contrasts", float(len(asked.contrasts))
        if weight is not None:
            yield "weight", weight
        for way, (true, false) in scored.items():
            right = preferred(true, false).tolist()
            yield from _share(way, f"{way}/low", f"{way}/high", right, concept)
            for kind in dict.fromkeys(contrast.kind for contrast in asked.contrasts):
                rows = [row for row, contrast in enumerate(asked.contrasts) if contrast.kind == kind]
                names = (f"{way}_by_kind/{kind}", f"{way}_low/{kind}", f"{way}_high/{kind}")
                yield from _share(*names, [right[row] for row in rows], [concept[row] for row in rows])
            yield from _of_groups(way, asked.contrasts, true, false)

    def _contrasts(self, split: EncodedSplit) -> list[tuple[int, Contrast]]:
        """The contrasts of the images that are scored, with the row of each."""
        rows = spaced(self.most, len(split.image_ids))
        if isinstance(split.source, HasContrasts):
            known = split.source.contrasts()
            return [(row, contrast) for row in rows for contrast in known.get(split.image_ids[row], ())]
        found = []
        for row in rows:
            own = [caption.text for caption in split.references[row] if self.language in (None, caption.language)]
            made = swaps(own[0], self.seed) if own else {}
            # Where the exchange gives another true caption of the image, it is not false.
            found += [(row, Contrast(kind, own[0], text)) for kind, text in made.items() if text not in own]
        return found

    def _scores(self, split: EncodedSplit, asked: _Asked) -> tuple[Scored, float | None]:
        """The scores by each way, and the mean weight of the blend, if there is one."""
        texts = split.embed_texts(asked.texts, self.language).cpu().double()
        images = split.image_embedding.cpu().double()[asked.images]
        found = {"embedding": ((images * texts[asked.true]).sum(dim=1), (images * texts[asked.false]).sum(dim=1))}
        if not self.likelihood or split.model.decoder is None:
            return found, None
        both = torch.cat([asked.images, asked.images]), torch.cat([asked.true, asked.false])
        likely = log_likelihoods(split, both[0], asked.texts, both[1], self.language)
        true, false = likely.chunk(2)
        prior = text_priors(split, asked.texts, self.language, spaced(self.prior_images, len(split.image_ids)))
        found["likelihood"] = true, false
        found["corrected"] = true - prior[asked.true], false - prior[asked.false]
        found["blend"], weight = self._blend(split, asked, found)
        return found, weight

    def _blend(self, split: EncodedSplit, asked: _Asked, scored: Scored) -> tuple[tuple[Tensor, Tensor], float]:
        """Embedding and corrected likelihood together, and the mean weight of the two halves.

        Images of one concept, and both images of a group, lie in the same half.
        """
        names = [contrast.group or str(split.image_concept[row].item()) for row, contrast in _rows(asked)]
        halves = torch.tensor([keyed_integer(self.seed, stable_hash(name)) % 2 for name in names]).bool()
        true, false = (torch.zeros(len(names), dtype=torch.float64) for _ in range(2))
        weights = []
        for half in (halves, ~halves):
            # Without any image in the other half, nothing can be chosen there.
            chosen = ~half if (~half).any() else half
            similar, likely = (tuple(score[chosen] for score in scored[way]) for way in ("embedding", "corrected"))
            # The two are brought to one scale by how far apart they put the true and the false captions.
            scales = _spread(*similar), _spread(*likely)
            weight = choose_weight(partial(_accuracy, similar, likely, scales))
            for side, target in enumerate((true, false)):
                first, second = scored["embedding"][side], scored["corrected"][side]
                target[half] = blended(first[half], second[half], weight, scales)
            weights += [weight] * bool(half.any())
        return (true, false), sum(weights) / len(weights)


def _spread(true: Tensor, false: Tensor) -> float:
    """The mean distance of the scores of true and false captions, above 0."""
    return max(1e-12, (true - false).abs().mean().item())


def _accuracy(
    similar: tuple[Tensor, ...], likely: tuple[Tensor, ...], scales: tuple[float, float], weight: float
) -> float:
    """The share of contrasts that a blend gets right, of the true and false captions' scores."""
    true, false = (blended(*scores, weight, scales) for scores in zip(similar, likely, strict=True))
    return preferred(true, false).mean().item()


def _rows(asked: _Asked) -> Iterator[tuple[int, Contrast]]:
    return zip(asked.images.tolist(), asked.contrasts, strict=True)


def _share(name: str, low: str, high: str, right: list[float], cluster: list[int]) -> Iterator[tuple[str, float]]:
    """Yields the mean of ``right`` and the ends of its interval, each under its name."""
    ends = share_interval(right, cluster)
    yield from zip((name, low, high), (sum(right) / len(right), *ends), strict=True)


def _of_groups(way: str, contrasts: tuple[Contrast, ...], true: Tensor, false: Tensor) -> Iterator[tuple[str, float]]:
    """Yields the three scores of groups of two images, where the split has any; half a group does not count."""
    rows: dict[str, list[int]] = {}
    for row, contrast in enumerate(contrasts):
        if contrast.group is not None:
            rows.setdefault(contrast.group, []).append(row)
    whole = torch.tensor([of_group for of_group in rows.values() if len(of_group) == 2], dtype=torch.int64)
    if len(whole):
        for name, right in group_scores(true[whole], false[whole]).items():
            key = f"{way}_{name}"
            yield from _share(key, f"{key}/low", f"{key}/high", right.tolist(), list(range(len(right))))
