"""Image-text matching: does this text belong to this image, asked of pairs that are hard to tell apart."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.distributed import gather, rank, sum_over_ranks
from mmlm.core.errors import UserError
from mmlm.core.flow import EMBED, TEXT_ONLY, Batch, Loss, ModelOutput, ModelSizes, Pairs, StepKey, Term
from mmlm.core.precision import at_least_float32
from mmlm.objectives.objective import FusionObjective
from mmlm.objectives.shared.negatives import NONE, Embedded, HardNegatives, NegativeRule


class Matching(FusionObjective):
    """Image-text matching with hard negatives (ALBEF, arXiv:2107.07651, section 3.2; BLIP, arXiv:2201.12086)::

        logit[q] = w . state[q] + b
        loss     = mean_q  log(1 + exp(-logit[q]))  if text q belongs to image q
                           log(1 + exp(logit[q]))   if it does not

    ``state`` is the decoder's at the end of the text while it reads the image. The pairs q of the whole batch are: each
    caption with its image; for each captioned image one text that is not its own; for each caption that has an image
    one other image. The last two are chosen by the similarities of the embeddings among all that the ranks and
    micro-batches hold, never a positive by ``mmlm.objectives.shared.keys``; see ``HardNegatives``. No gradient goes
    through the choice, so another objective (contrastive) has to train the embeddings, or they have to be trained
    already. What has no negative in the batch gets none.

    **Where a pair is made.** Where its image is: images never travel, texts do. An image that many texts choose is
    fused with all of them on the rank, and in the micro-batch, that owns it: its rank may have more pairs than the
    others (in the worst case all C), and they wait. On average it is 3 pairs an image with one caption, and a pair
    costs a pass of the decoder only, since the memory of the image is there. That is exact: gradients reach the encoder
    through the one pass that made the memory, as in one process with everything. To move pixels to the text instead
    would encode an image once more for each pair, and memories would need a gradient to travel back in each
    micro-batch; a text is a row of some tens of integers.

    Differs from the papers: a causal decoder's end token stands in for the bidirectional encoder's class token; one
    logit instead of two, whose difference it is; every caption of an image is a positive pair of its own, and the loss
    is a mean over all pairs of all ranks; negatives come from all ranks rather than from the own one, and none of equal
    concept or text is taken; a temperature of its own instead of the contrastive loss's.

    Args:
        negatives: ``sampled`` in proportion to ``exp(similarity / temperature)``, or the ``hardest``: the most similar
            one, which may be a right answer that nobody wrote down.
        temperature: of the sampling, above 0; null with ``hardest``.

    Raises:
        UserError: a temperature that is not positive, or does nothing.
    """

    views = frozenset({EMBED})
    pairs_per_image = 3

    def __init__(self, negatives: NegativeRule = "sampled", temperature: float | None = 0.07) -> None:
        super().__init__()
        self.negatives = HardNegatives(negatives, temperature)
        self.head: nn.Linear | None = None

    def connect(self, sizes: ModelSizes) -> None:
        """Makes the head, float[D] -> float[1]. Raises UserError for a model without a decoder."""
        if sizes.decoder_width is None:
            raise UserError(
                "objective: matching needs a decoder that reads text and image; choose one, or leave it out"
            )
        self.head = nn.Linear(sizes.decoder_width, 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """The pairs that match; how many negatives there are is only known once they have been chosen."""
        return {"matched": (batch.image_index != TEXT_ONLY).sum()}

    @torch.no_grad()
    def pairs(self, image: Tensor, text: Tensor, batches: Sequence[Batch], step_key: StepKey) -> tuple[Pairs, ...]:
        """See ``FusionObjective``. Texts and choices are gathered: every rank has to call it at the same point."""
        own = Embedded.of(image, text, batches)
        everyone = own.gathered()
        texts = self.negatives.texts(own, everyone, step_key)
        images = gather(self.negatives.images(own, everyone, step_key))
        first = int(gather(torch.tensor([len(image)], device=image.device))[: rank()].sum())
        # Of all images (rows) and captions (columns) of all ranks: positives, then negatives of images and of texts.
        every_caption = torch.arange(len(images), device=image.device)
        rows = torch.cat([everyone.keys.image_index, first + torch.arange(len(texts), device=image.device), images])
        columns = torch.cat([every_caption, texts, every_caption])
        matched = torch.arange(len(rows), device=image.device) < len(every_caption)
        here = (rows >= first) & (rows < first + len(image)) & (columns != NONE)
        rows, columns, matched = rows[here] - first, columns[here], matched[here]
        tokens, lengths = _gathered_texts(batches)
        pairs = Pairs(rows, tokens[columns], lengths[columns], matched, sum_over_ranks(here.sum()))
        return _by_batch(pairs, batches)

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """One term, and the figures ``accuracy_matched`` and ``accuracy_unmatched``: the share of each judged right."""
        logits, matched = at_least_float32(self.head(output.fused).squeeze(-1)), output.pairs.matched
        loss = F.binary_cross_entropy_with_logits(logits, matched.to(logits.dtype), reduction="sum")
        right = (logits.detach() > 0) == matched
        count = output.pairs.global_count.to(logits.dtype)
        num_matched = counts["matched"].to(logits.dtype)
        return Loss(
            {"matching": Term(loss, count.clamp(min=1))},
            {
                "accuracy_matched": Term((right & matched).sum(), num_matched),
                "accuracy_unmatched": Term((right & ~matched).sum(), (count - num_matched).clamp(min=1)),
            },
        )


def _gathered_texts(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Tokens int64[C, T] and lengths int64[C] of the captions of all ranks, padded to the longest."""
    width = torch.tensor([max(batch.tokens.shape[1] for batch in batches)], device=batches[0].tokens.device)
    longest = int(gather(width).max())
    tokens = torch.cat([F.pad(batch.tokens, (0, longest - batch.tokens.shape[1])) for batch in batches])
    return gather(tokens), gather(torch.cat([batch.lengths for batch in batches]))


def _by_batch(pairs: Pairs, batches: Sequence[Batch]) -> tuple[Pairs, ...]:
    """The pairs of a rank's images, in the micro-batches that own them; padding that none needs is cut off."""
    parts, first = [], 0
    for batch in batches:
        last = first + len(batch.images)
        own = (pairs.image_index >= first) & (pairs.image_index < last)
        tokens, lengths = pairs.tokens[own], pairs.lengths[own]
        tokens = tokens[:, : int(lengths.max())] if len(lengths) else tokens
        index, matched = pairs.image_index[own] - first, pairs.matched[own]
        parts.append(Pairs(index, tokens, lengths, matched, pairs.global_count))
        first = last
    return tuple(parts)
