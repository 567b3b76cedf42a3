"""Distillation: the student learns the embeddings, similarities or token distributions of a teacher."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlm.core.batch import Batch
from mmlm.core.computing import at_least_float32
from mmlm.core.distributed import gather
from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, loss_term, share_of_training
from mmlm.core.loss import Loss, Term
from mmlm.core.model_output import ModelOutput, ModelSizes
from mmlm.core.ranges import check_positive
from mmlm.core.views import CAPTION, EMBED, StepKey
from mmlm.objectives.objective import Comparison, Objective, required
from mmlm.objectives.shared.keys import Keys


class EmbeddingDistillation(Objective):
    """Aligns embeddings with the teacher's by their cosine (feature distillation of CLIP-KD, arXiv:2307.12732)::

        loss = mean_b (1 - cos(A image[b], teacher_image[b])) + mean_c (1 - cos(A' text[c], teacher_text[c]))

    The means are over all images and all captions, text-only captions included. A and A' are the identity if both
    models' embeddings have the same width, and otherwise learned linear maps into the teacher's width. For vectors of
    unit length 1 - cos is half the squared distance, which CLIP-KD minimises.

    Terms ``image`` and ``text``, each over its own count.
    """

    views = frozenset({EMBED})
    needs_teacher = True
    figures: Mapping[str, Figure] = {
        "image": loss_term("1 - cosine of the teacher's and the student's embedding, mean over images"),
        "text": loss_term("1 - cosine of the teacher's and the student's embedding, mean over captions"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.image_map: nn.Module = nn.Identity()
        self.text_map: nn.Module = nn.Identity()

    def connect(self, sizes: ModelSizes) -> None:
        """Makes the maps A and A'. Raises UserError without a teacher."""
        width, wanted = sizes.embedding_width, _of_teacher(sizes).embedding_width
        self.image_map, self.text_map = _map(width, wanted), _map(width, wanted)

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """The numbers of images and of captions."""
        numbers = {"image": len(batch.images), "text": len(batch.lengths)}
        return {key: torch.tensor(number, device=batch.tokens.device) for key, number in numbers.items()}

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """Embeddings float32[B, E] and [C, E], and the teacher's [B, E'] and [C, E'] -> two terms."""
        (image, text), (teacher_image, teacher_text) = _embeddings(output), _embeddings(_teacher(output))
        image = self._distances(self.image_map(image), teacher_image)
        text = self._distances(self.text_map(text), teacher_text)
        return Loss({"image": _term(image.sum(), counts["image"]), "text": _term(text.sum(), counts["text"])})

    @staticmethod
    def _distances(embedding: Tensor, teacher: Tensor) -> Tensor:
        """float[R]: 1 - cosine of each row of two float[R, E'], at least float32."""
        with torch.autocast(embedding.device.type, enabled=False):
            return 1 - F.cosine_similarity(at_least_float32(embedding), at_least_float32(teacher), dim=-1)


class AffinityDistillation(Comparison):
    """Learns the teacher's similarities within the batch (TinyCLIP, arXiv:2309.12314; CLIP-KD, arXiv:2307.12732)::

        s[b, c] = image[b] . text[c] / temperature, t[b, c] the same of the teacher
        image_to_text = mean_b KL(softmax(t[b, :]) || softmax(s[b, :]))
        text_to_image = mean_c KL(softmax(t[:, c]) || softmax(s[:, c]))
        loss          = (image_to_text + text_to_image) / 2

    The means are over all images and captions of every rank and micro-batch. No positives are needed, so text-only
    captions and images without a caption take part.

    Where we differ: one fixed temperature serves both models, where those papers take each model's own; and KL is the
    papers' cross-entropy less the teacher's entropy, which no parameter changes. At most ``chunk_size`` rows of
    similarities are held at once; the backward pass computes them again.

    Terms ``image_to_text`` and ``text_to_image``; figure ``agreement``: share of images whose closest caption is the
    same for student and teacher.
    """

    views = frozenset({EMBED})
    needs_teacher = True
    figures: Mapping[str, Figure] = {
        "image_to_text": loss_term("divergence from the teacher's similarities of an image, nats"),
        "text_to_image": loss_term("divergence from the teacher's similarities of a caption, nats"),
        "agreement": share_of_training("agreement", "share of images whose nearest caption is also the teacher's"),
    }

    def __init__(self, temperature: float = 0.05, chunk_size: int = 1024) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_positive("chunk_size", chunk_size)
        self.temperature, self.chunk_size = temperature, chunk_size

    def compare_with_teacher(self, embedded: ModelOutput, keys: Keys) -> Loss:
        """See ``Comparison``; the embeddings of student and teacher may have different widths."""
        (image, text), (teacher_image, teacher_text) = _embeddings(embedded), _embeddings(_teacher(embedded))
        all_image, all_text = gather(image), gather(text)
        by_image = self._rows(image, all_text, teacher_image, gather(teacher_text))
        by_text = self._rows(text, all_image, teacher_text, gather(teacher_image))
        images, texts = (image.new_tensor(max(1, len(each))) for each in (all_image, all_text))
        terms = {
            "image_to_text": Term(by_image[0], images, 0.5),
            "text_to_image": Term(by_text[0], texts, 0.5),
        }
        return Loss(terms, {"agreement": Term(by_image[1], images)})

    def _rows(
        self, rows: Tensor, columns: Tensor, teacher_rows: Tensor, teacher_columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One direction: the sum of the divergences of R rows, and the number of rows whose likeliest columns agree.

        ``rows`` float[R, E] are compared with ``columns`` float[K, E], the teacher's rows with the teacher's columns.
        """
        with torch.autocast(rows.device.type, enabled=False):
            return _chunked(
                rows / self.temperature, columns, teacher_rows / self.temperature, teacher_columns, 1.0, self.chunk_size
            )


class CaptionDistillation(Objective):
    """Learns the teacher's next-token distributions (Hinton et al., arXiv:1503.02531)::

        p[c, t] = softmax(logits[c, t] / T), q[c, t] the same of the teacher
        loss    = T^2 * sum_{c, t} KL(q[c, t] || p[c, t]) / number of real targets of all ranks

    Every position with a real target has the same weight. The factor T^2 keeps the size of the gradient alike for every
    ``temperature`` T. Hinton et al. add the cross-entropy of the real targets: take a ``WeightedSum`` with
    ``Captioning`` for that. At most ``chunk_size`` rows of logits of each model are held at once; the backward pass
    computes them again.

    One term; figure ``agreement``: share of positions where the likeliest token of both models is the same.
    """

    views = frozenset({CAPTION})
    needs_teacher = True
    figures: Mapping[str, Figure] = {
        "caption": loss_term("divergence from the teacher's distribution of the next token, nats a token"),
        "agreement": share_of_training("agreement", "share of tokens that student and teacher hold likeliest alike"),
    }

    def __init__(self, temperature: float = 2.0, chunk_size: int = 1024) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_positive("chunk_size", chunk_size)
        self.temperature, self.chunk_size = temperature, chunk_size

    def connect(self, sizes: ModelSizes) -> None:
        """Makes no parts. Raises UserError without a teacher that predicts the student's vocabulary."""
        theirs = _of_teacher(sizes).vocab_size
        if theirs is None:
            raise UserError("teacher.run: its model has no decoder whose captions could be learned; take another run")
        if theirs != sizes.vocab_size:
            raise UserError(
                f"teacher.run: its model predicts {theirs} tokens and this one {sizes.vocab_size}; take a teacher of "
                "the same vocabulary"
            )

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """The number of real targets."""
        return {"tokens": batch.num_targets}

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """Hidden states float[P, D] and head float[V, D], and the teacher's [P, D'] and [V, D'] -> one term."""
        student, taught = (
            (one.hidden[CAPTION], required(one.head_weight, "head_weight")) for one in (output, _teacher(output))
        )
        divergence, agreed = _chunked(*student, *taught, self.temperature, self.chunk_size)
        squared = self.temperature**2
        return Loss(
            {"caption": _term(squared * divergence, counts["tokens"])}, {"agreement": _term(agreed, counts["tokens"])}
        )


def _chunked(
    rows: Tensor, columns: Tensor, teacher_rows: Tensor, teacher_columns: Tensor, temperature: float, size: int
) -> tuple[Tensor, Tensor]:
    """float[]: the sum over R rows of KL(teacher || student); float[]: the number of rows whose likeliest columns
    agree.

    Logits are ``rows @ columns.T``, of float[R, D] and float[K, D]; no more than ``size`` rows of them exist at once:
    each chunk is checkpointed, so that its logits are dropped after the forward pass and computed again in backward.
    """
    sums = []
    # Without rows there is one empty chunk, so that the loss depends on ``rows`` and ``columns`` in the graph all the
    # same.
    for first in range(0, max(1, len(rows)), size):
        part = slice(first, first + size)
        inputs = (rows[part], columns, teacher_rows[part], teacher_columns)
        sums.append(checkpoint(_divergence, *inputs, temperature, use_reentrant=False, preserve_rng_state=False))
    divergences, agreements = zip(*sums, strict=True)
    return torch.stack(divergences).sum(), torch.stack(agreements).sum()


def _divergence(
    rows: Tensor, columns: Tensor, teacher_rows: Tensor, teacher_columns: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The two sums of ``_chunked`` for all rows at once."""
    # At least float32: half precision is too coarse for a softmax over thousands of columns.
    own = at_least_float32(F.linear(rows, columns)) / temperature
    wanted = at_least_float32(F.linear(teacher_rows, teacher_columns)) / temperature
    own_log, wanted_log = own.log_softmax(dim=-1), wanted.log_softmax(dim=-1)
    divergence = (wanted_log.exp() * (wanted_log - own_log)).sum()
    if own.numel() == 0:
        return divergence, torch.zeros_like(divergence.detach())
    agreed = own.detach().argmax(dim=-1) == wanted.argmax(dim=-1)
    return divergence, agreed.sum().to(divergence.dtype)


def _teacher(output: ModelOutput) -> ModelOutput:
    return required(output.teacher, "teacher")


def _embeddings(output: ModelOutput) -> tuple[Tensor, Tensor]:
    """The image embeddings float32[B, E] and the text embeddings float32[C, E]."""
    return required(output.image_embedding, "image_embedding"), required(output.text_embedding, "text_embedding")


def _term(local_sum: Tensor, count: Tensor) -> Term:
    return Term(local_sum, count.to(local_sum.dtype))


def _map(width: int, wanted: int) -> nn.Module:
    """float[R, width] -> float[R, wanted]: nothing to learn if the widths are equal."""
    return nn.Identity() if width == wanted else nn.Linear(width, wanted, bias=False)


def _of_teacher(sizes: ModelSizes) -> ModelSizes:
    """The teacher's widths. Raises UserError without a teacher."""
    if sizes.teacher is None:
        raise UserError("teacher.run: there is no teacher to learn from; give teacher.run=DIR or teacher.ema=true")
    return sizes.teacher
