"""Distillation in float64 against plain, slow versions of its formulas, values and gradients."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.errors import UserError
from mmlm.core.model_output import ModelOutput, ModelSizes
from mmlm.core.views import CAPTION, EMBED
from mmlm.objectives.distillation import AffinityDistillation, CaptionDistillation, EmbeddingDistillation
from mmlm.objectives.objective import Objective
from mmlm.objectives.shared.keys import Keys
from mmlm.objectives.weighted_sum import WeightedSum

SIZES = ModelSizes(embedding_width=5, patch_width=4, grid=(2, 2), decoder_width=5, vocab_size=11)
INDEX = (0, 1, TEXT_ONLY, 0, 3)
"""Captions of four images; image 2 has none."""
CHUNKS = (1, 2, 1000)


def taught(make_output: Callable[..., ModelOutput], batch: Batch, teacher_width: int = 5) -> ModelOutput:
    """Leaves of the student, and a teacher of other numbers; hidden states of the teacher are of another width."""
    teacher = make_output(batch, seed=7, width=6)
    wide = torch.randn(teacher_width, teacher_width, dtype=torch.float64)[:5]
    image, text = (each.detach() @ wide for each in (teacher.image_embedding, teacher.text_embedding))
    if teacher_width != 5:
        teacher = replace(teacher, image_embedding=image, text_embedding=text)
    return replace(make_output(batch, seed=3), teacher=teacher)


def assert_same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Value and gradients."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    theirs = torch.autograd.grad(expected, inputs)
    for one, other in zip(torch.autograd.grad(found, inputs), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum() / one.norm() / other.norm()


def divergence(own: Tensor, wanted: Tensor) -> Tensor:
    """KL(softmax(wanted) || softmax(own)) of two vectors."""
    p, q = wanted.exp() / wanted.exp().sum(), own.exp() / own.exp().sum()
    return sum(p[k] * (p[k] / q[k]).log() for k in range(len(p)))


@pytest.mark.parametrize("teacher_width", [5, 8], ids=["same width", "a learned map"])
def test_embeddings_equal_a_plain_version(make_batch, make_output, alone, teacher_width):
    torch.manual_seed(0)
    batch = make_batch(INDEX, 4)
    output = taught(make_output, batch, teacher_width)
    objective = EmbeddingDistillation()
    objective.connect(replace(SIZES, teacher=replace(SIZES, embedding_width=teacher_width)))
    objective.double()
    assert len(list(objective.parameters())) == (0 if teacher_width == 5 else 2)
    maps = (objective.image_map, objective.text_map)
    image, text = maps[0](output.image_embedding), maps[1](output.text_embedding)
    to_image = sum(1 - cosine(image[b], output.teacher.image_embedding[b]) for b in range(4)) / 4
    to_text = sum(1 - cosine(text[c], output.teacher.text_embedding[c]) for c in range(5)) / 5
    loss = alone(objective, output, batch)
    assert_same(
        loss.total, to_image + to_text, [output.image_embedding, output.text_embedding, *objective.parameters()]
    )
    assert {name: term.value.item() for name, term in loss.terms.items()} == {
        "image": pytest.approx(to_image.item()),
        "text": pytest.approx(to_text.item()),
    }


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_affinities_equal_a_plain_version(make_batch, make_output, alone, chunk_size):
    batch = make_batch(INDEX, 4)
    output = taught(make_output, batch, teacher_width=8)
    own = output.image_embedding @ output.text_embedding.T / 0.2
    wanted = output.teacher.image_embedding @ output.teacher.text_embedding.T / 0.2
    by_image = sum(divergence(own[b], wanted[b]) for b in range(4)) / 4
    by_text = sum(divergence(own[:, c], wanted[:, c]) for c in range(5)) / 5
    loss = alone(AffinityDistillation(0.2, chunk_size), output, batch)
    assert_same(loss.total, (by_image + by_text) / 2, [output.image_embedding, output.text_embedding])
    agreement = (own.argmax(1) == wanted.argmax(1)).double().mean()
    torch.testing.assert_close(loss.figures["agreement"].value, agreement)


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_captions_equal_a_plain_version(make_batch, make_output, alone, chunk_size):
    batch = make_batch(INDEX, 4)
    output = taught(make_output, batch)
    hidden, teacher = output.hidden[CAPTION], output.teacher
    own, wanted = hidden @ output.head_weight.T / 3, teacher.hidden[CAPTION] @ teacher.head_weight.T / 3
    expected = 9 * sum(divergence(own[p], wanted[p]) for p in range(len(own))) / batch.num_targets
    loss = alone(CaptionDistillation(3.0, chunk_size), output, batch)
    assert_same(loss.total, expected, [hidden, output.head_weight])
    torch.testing.assert_close(
        loss.figures["agreement"].value, (own.argmax(1) == wanted.argmax(1)).double().mean(), rtol=1e-10, atol=1e-10
    )


def every_objective() -> dict[str, Objective]:
    parts = {
        "embedding": EmbeddingDistillation(),
        "affinity": AffinityDistillation(),
        "caption": CaptionDistillation(),
    }
    for part in parts.values():
        part.connect(replace(SIZES, teacher=SIZES))
    return parts


@pytest.mark.parametrize("name", every_objective())
def test_a_student_that_is_its_teacher_has_nothing_to_learn(make_batch, make_output, alone, name):
    batch = make_batch(INDEX, 4)
    output = make_output(batch)
    output = replace(output, teacher=make_output(batch))
    loss = alone(every_objective()[name], output, batch)
    assert loss.total.item() == pytest.approx(0, abs=1e-12)
    leaves = [output.image_embedding, output.text_embedding, output.hidden[CAPTION], output.head_weight]
    for gradient in torch.autograd.grad(loss.total, leaves, allow_unused=True):
        # That of a cosine is orthogonal to the embedding, and 0 at its maximum.
        assert gradient is None or gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", every_objective())
@pytest.mark.parametrize(
    ("index", "images"),
    [((), 3), ((TEXT_ONLY, TEXT_ONLY), 0), ((), 0)],
    ids=["no captions", "no images", "nothing"],
)
def test_batches_that_lack_something_are_finite_and_differentiable(make_batch, make_output, alone, name, index, images):
    batch = make_batch(index, images)
    output = replace(make_output(batch), teacher=make_output(batch, seed=5))
    loss = alone(every_objective()[name], output, batch)
    assert loss.total.isfinite()
    leaves = [output.image_embedding, output.text_embedding, output.hidden[CAPTION], output.head_weight]
    reached = {
        "embedding": leaves[:2],
        "affinity": leaves[:2],
        "caption": leaves[2:],
    }[name]
    for gradient in torch.autograd.grad(loss.total, reached):
        assert gradient.isfinite().all()


def test_micro_batches_of_a_comparison_are_compared_with_the_teacher_of_all(make_batch, make_output):
    """``WeightedSum.compare`` hands on the teacher's embeddings."""
    batch = make_batch(INDEX, 4)
    output = taught(make_output, batch)
    both = WeightedSum({"affinity": AffinityDistillation(0.2)}, {"affinity": 1.0})
    halves = batch.split(2)
    order = torch.tensor([0, 1, 3, 2, 4])  # the text-only caption stands in the first half, after image 1's
    text = output.text_embedding.detach()[order]
    teacher = ModelOutput(output.teacher.image_embedding, output.teacher.text_embedding[order])
    assert [len(half.lengths) for half in halves] == [4, 1]
    totals_of_each = both.compare(output.image_embedding.detach(), text, halves, 0, teacher)
    expected = AffinityDistillation(0.2).compare_with_teacher(output, Keys.of(batch))
    theirs = torch.autograd.grad(expected.terms["image_to_text"].local_sum, output.image_embedding)[0]
    found = torch.cat(
        [totals.cached_gradients["affinity"]["image_to_text"].image_gradient for totals in totals_of_each]
    )
    torch.testing.assert_close(found, theirs)


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("name", ["caption", "affinity"])
def test_no_more_logits_than_a_chunk_exist_forward_or_backward(make_batch, make_output, alone, name):
    batch = make_batch(range(40), 40, num_tokens=9)
    output = taught(make_output, batch)
    largest = {}
    for chunk_size in (5, 10**6):
        part = {"caption": CaptionDistillation, "affinity": AffinityDistillation}[name](chunk_size=chunk_size)
        with LargestTensor() as seen:
            alone(part, output, batch).total.backward()
        largest[chunk_size] = seen.elements
    rows, columns = {"caption": (int(batch.num_targets), 11), "affinity": (40, 40)}[name]
    states = max(rows * 6, 40 * 6)
    assert largest[10**6] == rows * columns
    assert largest[5] <= max(5 * columns, states) < rows * columns


def test_what_is_asked_of_the_teacher():
    parts = every_objective()
    assert {name: part.teacher_views for name, part in parts.items()} == {
        "embedding": {EMBED},
        "affinity": {EMBED},
        "caption": {CAPTION},
    }
    assert not any(part.needs_average for part in parts.values())
    both = WeightedSum(parts, dict.fromkeys(parts, 1.0))
    assert both.needs_teacher
    assert both.teacher_views_at(0) == {EMBED, CAPTION}
    assert both.teacher_views_at(0, known={"embedding", "affinity"}) == {CAPTION}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CaptionDistillation(temperature=0), r"^temperature: 0 must be above 0$"),
        (lambda: AffinityDistillation(temperature=-1.0), r"^temperature: -1\.0 must be above 0$"),
        (lambda: CaptionDistillation(chunk_size=0), r"^chunk_size: 0 must be above 0$"),
        (lambda: EmbeddingDistillation().connect(SIZES), r"^teacher\.run: there is no teacher to learn from; give "),
        (lambda: CaptionDistillation().connect(SIZES), r"^teacher\.run: there is no teacher to learn from; give "),
        (
            lambda: CaptionDistillation().connect(replace(SIZES, teacher=replace(SIZES, vocab_size=None))),
            r"^teacher\.run: its model has no decoder whose captions could be learned; take another run$",
        ),
        (
            lambda: CaptionDistillation().connect(replace(SIZES, teacher=replace(SIZES, vocab_size=12))),
            r"^teacher\.run: its model predicts 12 tokens and this one 11; take a teacher of the same vocabulary$",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
