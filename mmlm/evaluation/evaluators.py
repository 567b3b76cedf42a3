"""Evaluators: each takes an encoded split and yields ``(name, value)``."""

from collections.abc import Iterator, Mapping
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.errors import UserError
from mmlm.core.figure import Figure
from mmlm.evaluation import caption_scores, caption_style, image_use
from mmlm.evaluation.caption_intervals import with_intervals
from mmlm.evaluation.caption_words import TOKENISATION
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.image_use import image_use_gap, shuffled_images
from mmlm.evaluation.per_item import ItemValues
from mmlm.evaluation.requires import Requires
from mmlm.evaluation.retrieval import TIES, figures_of, retrieval_items, retrieval_values
from mmlm.evaluation.retrieval import Protocol as RetrievalProtocol
from mmlm.evaluation.split import EncodedBatch, EncodedSplit
from mmlm.evaluation.written_captions import scored_decoding, written_captions
from mmlm.objectives.kernels.linear_cross_entropy import token_losses


@runtime_checkable
class Evaluator(Protocol):
    """The interface of an evaluator. The caller makes the yielded names unique (``split/evaluator/name``).

    Every rank calls the evaluator with the same split. Work that needs pixels or memory, or takes long, goes through
    ``split.over_batches``, which shares it among the ranks; every rank computes the rest, from the same numbers.
    """

    needs_decoder: bool
    """True if the evaluator writes or scores captions: it is refused for a model without a decoder."""
    figures: Mapping[str, Figure]
    """What the yielded names are: where and how the report, the console and comparisons show their values. A name that
    is not declared here is shown under its own name."""
    # An evaluator may also have ``requires: Requires`` (mmlm/evaluation/requires.py): what it needs of a split, checked
    # by the split's texts before the first step. Without it, a split that it cannot score is found when it is called.
    # And ``rules: Mapping[str, str]`` (mmlm/evaluation/protocol.py): what its values depend on beside the model.

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields named values of ``split``. Raises UserError for a split that it cannot score."""
        ...


class Retrieval:
    """R@1, R@5 and R@10, median rank and mean average precision from image to text and from text to image.

    Images that no text belongs to, and texts that belong to no image, are left out: as queries and as candidates.

    Args:
        protocol: what the candidates and the right answers are (``retrieval.Protocol``).
    """

    needs_decoder = False

    def __init__(self, protocol: RetrievalProtocol = "distinct") -> None:
        self.protocol = protocol
        self.figures: Mapping[str, Figure] = figures_of(protocol)
        self.rules: Mapping[str, str] = {"protocol": protocol, "ties": TIES}
        # Among images of one concept every distinct text is right.
        self.requires = Requires(by_concept=True, concepts=2) if protocol == "distinct" else Requires()

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields ``image_to_text/R@1`` and so on, with their helpers (``retrieval.of_ranks``)."""
        yield from retrieval_values(self.protocol, split)

    def per_item(self, split: EncodedSplit) -> Iterator[ItemValues]:
        """Yields whether each query was found, and its average precision."""
        yield from retrieval_items(self.protocol, split)


class CaptionLoss:
    """Teacher-forced cross-entropy of the reference captions, nats a token, every token weighing the same."""

    needs_decoder = True
    requires = Requires(text_alone=True, answers=True)
    figures: Mapping[str, Figure] = {
        "captioning": Figure(
            "caption loss",
            "of the true captions, nats a token",
            higher_is_better=False,
            shown=("chart",),
            beside="captioning",
        )
    }

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields ``captioning``."""
        tokens = torch.cat([item.batch.target_counts for item in split.batches])
        if not len(tokens):
            raise UserError(f"the split '{split.name}' has no caption")
        yield "captioning", float((caption_losses(split, None) * tokens).sum() / tokens.sum())


class CaptionQuality:
    """Written captions against the references: exact, BLEU-1..4, ROUGE-L, CIDEr-D; and their style.

    Args:
        language: the language to caption in, and the only one whose references count. None starts captions by the
            tokenizer's plain start token and counts all references.
        decoding: how captions are written; greedy by default. Its language is that of the evaluator.

    Raises:
        ArgumentError: several captions an image, of which one only would be scored, or another language.
    """

    needs_decoder = True
    figures: Mapping[str, Figure] = caption_scores.FIGURES | caption_style.FIGURES

    def __init__(self, language: str | None = None, decoding: GenerationSettings | None = None) -> None:
        self.decoding = scored_decoding(decoding, language)
        self.language = language
        self.requires = Requires(language, own_texts=True)
        self.rules: Mapping[str, str] = {
            "words": TOKENISATION,
            "decoding": self.decoding.in_words,
            "language": "any" if language is None else language,
        }

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields the scores over the images that have a reference in the language, with their helpers.

        Raises UserError without one.
        """
        found = written_captions(split, self.language, self.decoding)
        yield from with_intervals(found.captions, found.references, found.concept)

    def per_item(self, split: EncodedSplit) -> Iterator[ItemValues]:
        """Yields the scores that are means over captions, with the captions."""
        found = written_captions(split, self.language, self.decoding)
        scores = caption_scores.score_captions(found.captions, found.references)
        for name, of_items in (("exact", scores.exact), ("CIDEr-D", scores.cider_d), ("ROUGE-L", scores.rouge_l)):
            values = torch.tensor(of_items.per_example, dtype=torch.float64)
            yield ItemValues(name, found.ids, found.concept, values, found.captions)

    def with_decoding(self, decoding: GenerationSettings) -> Self:
        """The scores of captions that are written otherwise."""
        return type(self)(self.language, decoding)


class ImageUse:
    """Image-use gap: mean token loss of the captions with shuffled images minus with their own, nats a token.

    0 for a captioner that ignores its image. ``low`` and ``high`` bound the 95% bootstrap interval over concepts.

    Args:
        seed: the seed of the shuffle and of the bootstrap.
    """

    needs_decoder = True
    requires = Requires(concepts=2, largest_share=0.5)
    figures: Mapping[str, Figure] = image_use.FIGURES

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.rules: Mapping[str, str] = {"seed of the shuffle": str(seed)}

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields ``mean``, ``low`` and ``high``. Raises UserError for a split of too few concepts."""
        swap = shuffled_images(split.image_concept, self.seed).to(split.image_index.device)
        own, other = caption_losses(split, None), caption_losses(split, swap)
        paired = split.image_index != TEXT_ONLY
        concept = split.image_concept[split.image_index[paired]]
        if len(concept.unique()) < 2:
            raise UserError(f"the captions of the split '{split.name}' are not of two concepts of images at least")
        yield from image_use_gap(own[paired], other[paired], concept, seed=self.seed).items()


@torch.no_grad()
def caption_losses(split: EncodedSplit, swap: Tensor | None) -> Tensor:
    """float32[C]: the mean cross-entropy a token of each caption of the split.

    Each caption is predicted from its own image, or from image ``swap[own]`` if ``swap`` int64[B] is given.
    """

    def of_batch(item: EncodedBatch) -> Tensor:
        hidden = split.model.caption_hidden(item.features, item.batch)
        targets = item.batch.targets[item.batch.target_mask]
        assert split.model.decoder is not None, (
            "whoever asks for losses of captions has checked that there is a decoder"
        )
        each = token_losses(hidden, split.model.decoder.head_weight, targets)
        return per_caption_mean(each, item.batch)

    shown = split if swap is None else split.with_images_of(swap)
    return torch.cat(shown.over_batches(of_batch))


def per_caption_mean(token_losses: Tensor, batch: Batch) -> Tensor:
    """float32[P], the losses of the target tokens of ``batch`` in row-major order -> float32[C], one mean a caption."""
    counts = batch.target_counts
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return token_losses.new_zeros(len(counts)).index_add(0, rows, token_losses) / counts
