"""Perplexity and bits per byte: how well a captioner predicts the true captions of a split."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Caption
from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, FigureGroup
from mmlm.data.tokenizer import whole_length
from mmlm.evaluation.intervals import mean_intervals, percentiles, resampled_sums
from mmlm.evaluation.per_item import ItemValues
from mmlm.evaluation.requires import Requires
from mmlm.evaluation.split import EncodedBatch, EncodedSplit
from mmlm.objectives.kernels.linear_cross_entropy import token_losses

GROUP = FigureGroup(
    "Prediction of the captions",
    "How well does the decoder predict the true captions? The end of a caption counts as a token, its start does not.",
)
_SEED = 0


@dataclass(frozen=True)
class _Predicted:
    """The n captions that are read whole."""

    rows: Tensor
    """int64[n]: rows of captions of the split."""
    nats: Tensor
    """float64[n]: minus the natural logarithm of the probability of each."""
    tokens: Tensor
    """float64[n]: tokens that are predicted, the end included and the start not."""
    size: Tensor
    """float64[n]: bytes of each text in UTF-8."""
    cluster: Tensor
    """int64[n]: the image of each; a caption without an image is alone."""


class Perplexity:
    """Perplexity, bits per byte, and nats a caption of the true captions, each token predicted from those before it.

    Sums over all tokens of the split over their number (or that of bytes): padding is no token, and neither batches nor
    ranks are means of their own. Perplexity depends on what a token is, so that it compares models of one tokenizer;
    bits per byte compares any, as long as the tokenizers keep the text: pieces that a vocabulary lacks are not
    predicted, and cost nothing. A caption that is cut at ``data.max_tokens`` is left out, for its bytes are not all
    predicted.
    """

    needs_decoder = True
    requires = Requires(text_alone=True, answers=True)
    figures: Mapping[str, Figure] = {
        "perplexity": Figure(
            "Perplexity",
            "of the true captions a token, end included and start not; 1 is certain, chance is any token alike",
            GROUP,
            higher_is_better=False,
            chance="perplexity/chance",
            low="perplexity/low",
            high="perplexity/high",
            count="predicted",
            shown=("table", "chart", "compare"),
            log_scale=True,
        ),
        "bits_per_byte": Figure(
            "Bits per byte",
            "of the true captions in UTF-8, the end of each predicted too; for models of any tokenizer",
            GROUP,
            higher_is_better=False,
            chance="bits_per_byte/chance",
            low="bits_per_byte/low",
            high="bits_per_byte/high",
            count="predicted",
            shown=("table", "chart", "compare"),
        ),
        "nats_per_caption": Figure(
            "Nats a caption",
            "minus the logarithm of a caption's probability, mean over captions",
            GROUP,
            higher_is_better=False,
            chance="nats_per_caption/chance",
            low="nats_per_caption/low",
            high="nats_per_caption/high",
            count="predicted",
            shown=("table",),
        ),
    }

    def __init__(self) -> None:
        self.rules: Mapping[str, str] = {"tokens": "end counted, start and padding not", "cut captions": "left out"}

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields the three with their intervals, whose draws are of images, their chances, and ``predicted``.

        ``predicted`` is how many captions count. Bits per byte are left out where all captions are empty. Raises
        UserError where no caption is read whole.
        """
        found = self._predicted(split)
        chance = math.log(split.tokenizer.vocab_size)
        nats, tokens, size = (float(one.sum()) for one in (found.nats, found.tokens, found.size))
        drawn = resampled_sums(torch.stack([found.nats, found.tokens, found.size], dim=1), found.cluster, _SEED)
        yield "predicted", float(len(found.rows))
        yield from _with_ends("perplexity", nats / tokens, percentiles(drawn[:, 0] / drawn[:, 1]), True)
        yield "perplexity/chance", math.exp(chance)
        if size:
            # A draw of empty captions alone has no byte, and says nothing.
            bits = (drawn[:, 0] / drawn[:, 2])[drawn[:, 2] > 0] / math.log(2)
            yield from _with_ends("bits_per_byte", nats / size / math.log(2), percentiles(bits))
            yield "bits_per_byte/chance", chance * tokens / size / math.log(2)
        ends = mean_intervals(found.nats[:, None], found.cluster, _SEED)[0]
        yield from _with_ends("nats_per_caption", float(found.nats.mean()), ends)
        yield "nats_per_caption/chance", chance * tokens / len(found.rows)

    def per_item(self, split: EncodedSplit) -> Iterator[ItemValues]:
        """Yields the nats of each caption: perplexity is no mean over captions."""
        found = self._predicted(split)
        texts = [split.captions[row].text for row in found.rows.tolist()]
        images = split.image_index.cpu()[found.rows].tolist()
        ids = ["" if image == TEXT_ONLY else split.image_ids[image] for image in images]
        yield ItemValues("nats_per_caption", numbered(ids, texts), found.cluster, found.nats)

    def _predicted(self, split: EncodedSplit) -> _Predicted:
        """What is predicted of the captions that are read whole. UserError where there is none."""
        lengths = split.lengths.cpu()
        rows = torch.tensor([row for row in range(len(lengths)) if not _is_cut(split, row, int(lengths[row]))])
        if not len(rows):
            raise UserError(
                f"no caption of the split '{split.name}' is read whole in data.max_tokens={split.max_tokens}"
                if len(lengths)
                else f"the split '{split.name}' has no caption"
            )
        image = split.image_index.cpu()
        alone = len(split.image_concept) + torch.arange(len(image))
        size = [sum(len(text.encode()) for text in _written(caption)) for caption in split.captions]
        tokens = torch.cat([item.batch.target_counts for item in split.batches]).cpu().double()
        return _Predicted(
            rows,
            caption_nats(split)[rows],
            tokens[rows],
            torch.tensor(size, dtype=torch.float64)[rows],
            torch.where(image == TEXT_ONLY, alone, image)[rows],
        )


@torch.no_grad()
def caption_nats(split: EncodedSplit) -> Tensor:
    """float64[C], on the CPU: minus the natural logarithm of the probability of each caption, given its own image."""

    def of_batch(item: EncodedBatch) -> Tensor:
        decoder = split.model.decoder
        assert decoder is not None, "whoever asks for the probability of captions has checked that there is a decoder"
        targets = item.batch.targets[item.batch.target_mask]
        hidden = split.model.caption_hidden(item.features, item.batch)
        each = token_losses(hidden, decoder.head_weight, targets).double()
        counts = item.batch.target_counts
        rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        return each.new_zeros(len(counts)).index_add(0, rows, each)

    return torch.cat(split.over_batches(of_batch)).cpu()


def numbered(ids: list[str], texts: list[str]) -> list[str]:
    """Names of captions that no two share: of its image and its text, and a number where both are those of another."""
    seen: dict[str, int] = {}
    found = []
    for id, text in zip(ids, texts, strict=True):
        name = f"{id}: {text}"
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _is_cut(split: EncodedSplit, row: int, length: int) -> bool:
    """Whether a caption of ``length`` tokens has lost its tail; only one as long as can be is split again."""
    # Of one that answers something, earlier turns go first, and as a whole: a row may be cut and yet not full.
    caption = split.captions[row]
    if caption.source is None and length < split.max_tokens:
        return False
    return whole_length(split.tokenizer, caption) > length


def _written(caption: Caption) -> list[str]:
    """The texts whose tokens are predicted."""
    return [*(turn.written for turn in caption.turns), caption.text]


def _with_ends(name: str, value: float, ends: Tensor, power: bool = False) -> Iterator[tuple[str, float]]:
    """Yields a value and the ends of its interval, or, with ``power``, e to the power of each."""
    for key, one in zip((name, f"{name}/low", f"{name}/high"), (value, *ends.tolist()), strict=True):
        yield key, math.exp(one) if power else one
