"""Distillation: the student is drawn to what a teacher makes of the same batch."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlm.core.distributed import gather
from mmlm.core.errors import UserError
from mmlm.core.flow import CAPTION, EMBED, Batch, Loss, ModelOutput, ModelSizes, StepKey, Term
from mmlm.core.precision import at_least_float32
from mmlm.objectives.objective import Comparison, Objective
from mmlm.objectives.shared.keys import Keys


class EmbeddingDistillation(Objective):
    """Embeddings that point where the teacher's do (feature distillation of CLIP-KD, arXiv:2307.12732)::

        loss = mean_b (1 - cos(A image[b], teacher_image[b])) + mean_c (1 - cos(A' text[c], teacher_text[c]))

    Over all images and all captions, text-only ones too. Where the teacher's embeddings have the student's width, A and
    A' are the identity and its very embeddings are learned; otherwise both are learned linear maps into the teacher's
    width. For vectors of unit length 1 - cos is half the squared distance, which is what CLIP-KD minimises.

    Terms ``image`` and ``text``, each over its own count.
    """

    views = frozenset({EMBED})
    needs_teacher = True

    def __init__(self) -> None:
        super().__init__()
        self.image_map, self.text_map = nn.Identity(), nn.Identity()

    def connect(self, sizes: ModelSizes) -> None:
        """Makes the maps. Raises UserError without a teacher."""
        width, wanted = sizes.embedding_width, _of_teacher(sizes).embedding_width
        self.image_map, self.text_map = _map(width, wanted), _map(width, wanted)

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """The images and the captions."""
        return {key: torch.tensor(n, device=batch.tokens.device) for key, n in _items(batch).items()}

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """Embeddings float32[B, E] and [C, E], and the teacher's [B, E'] and [C, E'] -> two terms."""
        teacher = output.teacher
        image = self._distances(self.image_map(output.image_embedding), teacher.image_embedding)
        text = self._distances(self.text_map(output.text_embedding), teacher.text_embedding)
        return Loss({"image": _term(image.sum(), counts["image"]), "text": _term(text.sum(), counts["text"])})

    @staticmethod
    def _distances(embedding: Tensor, teacher: Tensor) -> Tensor:
        """float[R]: 1 - cosine of each row."""
        with torch.autocast(embedding.device.type, enabled=False):
            return 1 - F.cosine_similarity(at_least_float32(embedding), at_least_float32(teacher), dim=-1)


class AffinityDistillation(Comparison):
    """Similarities within the batch that are the teacher's (TinyCLIP, arXiv:2309.12314; CLIP-KD, arXiv:2307.12732)::

        s[b, c] = image[b] . text[c] / temperature, t[b, c] the same of the teacher
        image_to_text = mean_b KL(softmax(t[b, :]) || softmax(s[b, :]))
        text_to_image = mean_c KL(softmax(t[:, c]) || softmax(s[:, c]))
        loss          = (image_to_text + text_to_image) / 2

    Over all images and captions of the batch, of every rank and micro-batch: no positives are needed, so captions
    without an image and images without a caption take part. One fixed temperature serves both, where those papers take
    each model's own; and KL is the papers' cross-entropy but for the teacher's entropy, which no parameter changes. At
    most ``chunk_size`` rows of similarities are held at once; backward makes them again.

    Terms ``image_to_text`` and ``text_to_image``; figure ``agreement``: share of images whose closest caption is the
    teacher's.
    """

    views = frozenset({EMBED})
    needs_teacher = True

    def __init__(self, temperature: float = 0.05, chunk_size: int = 1024) -> None:
        super().__init__()
        _check_positive("temperature", temperature)
        _check_positive("chunk_size", chunk_size)
        self.temperature, self.chunk_size = temperature, chunk_size

    def compare_with_teacher(self, embedded: ModelOutput, keys: Keys) -> Loss:
        """See ``Comparison``; the embeddings of student and teacher may have different widths."""
        image, text, teacher = embedded.image_embedding, embedded.text_embedding, embedded.teacher
        all_image, all_text = gather(image), gather(text)
        teacher_image, teacher_text = teacher.image_embedding, teacher.text_embedding
        by_image = self._rows(image, all_text, teacher_image, gather(teacher_text))
        by_text = self._rows(text, all_image, teacher_text, gather(teacher_image))
        images, texts = (image.new_tensor(max(1, len(each))) for each in (all_image, all_text))
        terms = {
            "image_to_text": Term(by_image[0], images, 0.5),
            "text_to_image": Term(by_text[0], texts, 0.5),
        }
        return Loss(terms, {"agreement": Term(by_image[1], images)})

    def _rows(self, rows: Tensor, columns: Tensor, teacher_rows: Tensor, teacher_columns: Tensor) -> tuple[Tensor, ...]:
        """float[R, E], float[K, E] and the teacher's -> sum of the divergences of R rows, and how many agree."""
        with torch.autocast(rows.device.type, enabled=False):
            return _chunked(
                rows / self.temperature, columns, teacher_rows / self.temperature, teacher_columns, 1.0, self.chunk_size
            )


class CaptionDistillation(Objective):
    """Next-token distributions that are the teacher's (Hinton et al., arXiv:1503.02531)::

        p[c, t] = softmax(logits[c, t] / T), q[c, t] the same of the teacher
        loss    = T^2 * sum_{c, t} KL(q[c, t] || p[c, t]) / number of real targets of all ranks

    At every position with a real target, each of the same weight; T^2 keeps the gradient's size whatever the
    ``temperature`` T. Their sum with the cross-entropy of the real targets is a ``WeightedSum`` with ``Captioning``.
    At most ``chunk_size`` rows of logits of each model are held at once; backward makes them again.

    One term; figure ``agreement``: share of positions where both models would write the same token.
    """

    views = frozenset({CAPTION})
    needs_teacher = True

    def __init__(self, temperature: float = 2.0, chunk_size: int = 1024) -> None:
        super().__init__()
        _check_positive("temperature", temperature)
        _check_positive("chunk_size", chunk_size)
        self.temperature, self.chunk_size = temperature, chunk_size

    def connect(self, sizes: ModelSizes) -> None:
        """Makes nothing. Raises UserError without a teacher that predicts the student's vocabulary."""
        theirs = _of_teacher(sizes).vocab_size
        if theirs is None:
            raise UserError("teacher.run: its model has no decoder whose captions could be learned; take another run")
        if theirs != sizes.vocab_size:
            raise UserError(
                f"teacher.run: its model predicts {theirs} tokens and this one {sizes.vocab_size}; take a teacher of "
                "the same vocabulary"
            )

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """The supervised tokens."""
        return {"tokens": batch.num_targets}

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """Hidden states float[P, D] and head float[V, D], and the teacher's [P, D'] and [V, D'] -> one term."""
        teacher = output.teacher
        student = (output.hidden[CAPTION], output.head_weight)
        taught = (teacher.hidden[CAPTION], teacher.head_weight)
        divergence, agreed = _chunked(*student, *taught, self.temperature, self.chunk_size)
        squared = self.temperature**2
        return Loss(
            {"caption": _term(squared * divergence, counts["tokens"])}, {"agreement": _term(agreed, counts["tokens"])}
        )


def _chunked(
    rows: Tensor, columns: Tensor, teacher_rows: Tensor, teacher_columns: Tensor, temperature: float, size: int
) -> tuple[Tensor, Tensor]:
    """Sums over R rows of the KL of teacher and student, and of whether their likeliest columns agree: two float[].

    Logits are ``rows @ columns.T``, of float[R, D] and float[K, D]; no more than ``size`` rows of them exist at once.
    """
    sums = []
    # One empty chunk if there are no rows: whatever made them keeps its place in the graph.
    for first in range(0, max(1, len(rows)), size):
        part = slice(first, first + size)
        inputs = (rows[part], columns, teacher_rows[part], teacher_columns)
        sums.append(checkpoint(_divergence, *inputs, temperature, use_reentrant=False, preserve_rng_state=False))
    divergences, agreements = zip(*sums, strict=True)
    return torch.stack(divergences).sum(), torch.stack(agreements).sum()


def _divergence(
    rows: Tensor, columns: Tensor, teacher_rows: Tensor, teacher_columns: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """As ``_chunked``, all rows at once."""
    # At least float32: a softmax over thousands of columns is too much for half precision.
    own = at_least_float32(F.linear(rows, columns)) / temperature
    wanted = at_least_float32(F.linear(teacher_rows, teacher_columns)) / temperature
    own_log, wanted_log = own.log_softmax(dim=-1), wanted.log_softmax(dim=-1)
    divergence = (wanted_log.exp() * (wanted_log - own_log)).sum()
    if own.numel() == 0:
        return divergence, torch.zeros_like(divergence.detach())
    agreed = own.detach().argmax(dim=-1) == wanted.argmax(dim=-1)
    return divergence, agreed.sum().to(divergence.dtype)


def _term(local_sum: Tensor, count: Tensor) -> Term:
    return Term(local_sum, count.to(local_sum.dtype))


def _items(batch: Batch) -> Mapping[str, int]:
    return {"image": len(batch.images), "text": len(batch.lengths)}


def _map(width: int, wanted: int) -> nn.Module:
    return nn.Identity() if width == wanted else nn.Linear(width, wanted, bias=False)


def _of_teacher(sizes: ModelSizes) -> ModelSizes:
    if sizes.teacher is None:
        raise UserError("teacher.run: there is no teacher to learn from; give teacher.run=DIR or teacher.ema=true")
    return sizes.teacher


def _check_positive(key: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{key}: {value} must be above 0")
