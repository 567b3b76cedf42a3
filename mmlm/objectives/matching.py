"""Image-text matching: a binary classification of pairs, with negatives that are hard to tell from positives."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.computing import at_least_float32
from mmlm.core.distributed import gather, rank, sum_over_ranks
from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, loss_term, share_of_training
from mmlm.core.loss import Loss, Term
from mmlm.core.model_output import ModelOutput, ModelSizes, Pairs
from mmlm.core.views import EMBED, StepKey
from mmlm.objectives.objective import FusionObjective, required
from mmlm.objectives.shared.candidates import NONE
from mmlm.objectives.shared.negatives import Embedded, HardNegatives, NegativeRule


class Matching(FusionObjective):
    """Image-text matching with hard negatives (ALBEF, arXiv:2107.07651, section 3.2; BLIP, arXiv:2201.12086)::

        logit[q] = w . state[q] + b
        loss     = mean_q  log(1 + exp(-logit[q]))  if text q belongs to image q
                           log(1 + exp(logit[q]))   if it does not

    ``state[q]`` is the decoder's state at the end of text q while it reads the image. The pairs q of the whole batch
    are: each caption with its image; each captioned image with one text that is not its own; each caption that has an
    image with one other image. The negatives are chosen by the similarities of the embeddings from all ranks and
    micro-batches (see ``HardNegatives``), and never are positives by ``mmlm.objectives.shared.keys``. No gradient goes
    through the choice, so another objective (contrastive) has to train the embeddings, or they have to be trained
    already. An image or caption without a negative in the batch gets none.

    **Where a pair is made.** On the rank and in the micro-batch of its image: texts travel between ranks, images do
    not. An image that many texts choose is paired with all of them there, so one rank may have more pairs than the
    others (in the worst case all C) and they wait for it. On average there are 3 pairs for an image with one caption. A
    pair costs a pass of the decoder only, since the memory of its image is on the rank already. The result is exact:
    gradients reach the encoder through the one pass that made the memory, as in a single process. Sending pixels to the
    texts instead would encode an image again for each pair; sending memories would need their gradients to travel back
    in each micro-batch; a text is a row of some tens of integers.

    Where we differ: the end token of a causal decoder stands in for the class token of the papers' bidirectional
    encoder; there is one logit, the difference of the papers' two; every caption of an image is a positive pair of its
    own, and the loss is a mean over all pairs of all ranks; negatives come from all ranks instead of the own rank, and
    none has an equal concept or text; the sampling has its own temperature instead of the contrastive loss's.

    Args:
        negatives: ``sampled`` in proportion to ``exp(similarity / temperature)``, or the ``hardest``: the most similar
            one, which may be a right answer that the data does not list.
        temperature: of the sampling, above 0; null with ``hardest``.

    Raises:
        UserError: ``sampled`` without a positive temperature, or ``hardest`` with a temperature.
    """

    views = frozenset({EMBED})
    pairs_per_image = 3
    figures: Mapping[str, Figure] = {
        "matching": loss_term("binary cross-entropy, nats a pair"),
        "accuracy_matched": share_of_training("accuracy on pairs that match", "share of them that is judged right"),
        "accuracy_unmatched": share_of_training("accuracy on hard negatives", "share of them that is judged right"),
    }

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
        """The number of pairs that match. That of negatives is known only once they are chosen: see ``Pairs``."""
        return {"matched": (batch.compared_index != TEXT_ONLY).sum()}

    @torch.no_grad()
    def pairs(self, image: Tensor, text: Tensor, batches: Sequence[Batch], step_key: StepKey) -> tuple[Pairs, ...]:
        """See ``FusionObjective``. It gathers texts and choices, so every rank has to call it at the same point."""
        own = Embedded.of(image, text, batches)
        everyone = own.gathered()
        texts = self.negatives.texts(own, everyone, step_key)
        # A caption's negative may be an image of any rank, so its owner has to hear of every rank's choices.
        images = gather(self.negatives.images(own, everyone, step_key))
        first = int(gather(torch.tensor([len(image)], device=image.device))[: rank()].sum())
        # The pairs as numbers of images (rows) and captions (columns) among those of all ranks: the positives of all
        # captions, the negatives of this rank's images, the negatives of all captions.
        every_caption = torch.arange(len(images), device=image.device)
        rows = torch.cat([everyone.keys.image_index, first + torch.arange(len(texts), device=image.device), images])
        columns = torch.cat([every_caption, texts, every_caption])
        matched = torch.arange(len(rows), device=image.device) < len(every_caption)
        # Keep the pairs of this rank's images: without text-only captions and queries that have no negative.
        here = (rows >= first) & (rows < first + len(image)) & (columns != NONE)
        rows, columns, matched = rows[here] - first, columns[here], matched[here]
        tokens, lengths = _gathered_texts(batches)
        pairs = Pairs(rows, tokens[columns], lengths[columns], matched, sum_over_ranks(here.sum()))
        return _by_batch(pairs, batches)

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """One term; figures ``accuracy_matched`` and ``accuracy_unmatched``: the share of pairs judged right."""
        if self.head is None:
            raise RuntimeError("connect() makes the head of image-text matching and has to be called first")
        pairs, fused = required(output.pairs, "pairs"), required(output.fused, "fused")
        logits, matched = at_least_float32(self.head(fused).squeeze(-1)), pairs.matched
        loss = F.binary_cross_entropy_with_logits(logits, matched.to(logits.dtype), reduction="sum")
        right = (logits.detach() > 0) == matched
        count = pairs.global_count.to(logits.dtype)
        num_matched = counts["matched"].to(logits.dtype)
        return Loss(
            {"matching": Term(loss, count.clamp(min=1))},
            {
                "accuracy_matched": Term((right & matched).sum(), num_matched),
                "accuracy_unmatched": Term((right & ~matched).sum(), (count - num_matched).clamp(min=1)),
            },
        )


def _gathered_texts(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """The captions of all ranks: tokens int64[C, T], padded to the widest, and lengths int64[C]."""
    width = torch.tensor([max(batch.tokens.shape[1] for batch in batches)], device=batches[0].tokens.device)
    longest = int(gather(width).max())
    tokens = torch.cat([F.pad(batch.tokens, (0, longest - batch.tokens.shape[1])) for batch in batches])
    return gather(tokens), gather(torch.cat([batch.lengths for batch in batches]))


def _by_batch(pairs: Pairs, batches: Sequence[Batch]) -> tuple[Pairs, ...]:
    """Splits the pairs of a rank by the micro-batch of their image; cuts off padding that no text needs."""
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
