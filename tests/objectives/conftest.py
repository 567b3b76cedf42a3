"""Batches and model outputs for objectives, made to order: no model runs here."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.core.batch import Batch, Caption
from mmlm.core.loss import Loss
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import CAPTION, StepKey
from mmlm.objectives.objective import Objective
from mmlm.objectives.weighted_sum import WeightedSum


def build_batch(
    image_index: Sequence[int],
    num_images: int,
    image_concept: Sequence[int] | None = None,
    caption_concept: Sequence[int] | None = None,
    caption_key: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    num_tokens: int = 7,
    vocab_size: int = 11,
) -> Batch:
    """By default every image and every text-only caption is a concept of its own and every text differs."""
    count = len(image_index)
    lengths = [3 + i % (num_tokens - 2) for i in range(count)] if lengths is None else lengths
    own_concept = [100 + i for i in range(num_images)] if image_concept is None else list(image_concept)
    concepts = [own_concept[i] if i >= 0 else 900 + c for c, i in enumerate(image_index)]
    tokens = torch.randint(1, vocab_size, (count, num_tokens), generator=torch.Generator().manual_seed(0))
    return Batch(
        images=torch.zeros(num_images, 3, 2, 2, dtype=torch.uint8),
        tokens=tokens.masked_fill(torch.arange(num_tokens) >= torch.tensor(lengths, dtype=torch.int64)[:, None], 0),
        lengths=torch.tensor(lengths, dtype=torch.int64),
        image_index=torch.tensor(image_index, dtype=torch.int64),
        image_concept=torch.tensor(own_concept, dtype=torch.int64),
        caption_concept=torch.tensor(concepts if caption_concept is None else caption_concept, dtype=torch.int64),
        caption_key=torch.arange(count) if caption_key is None else torch.tensor(caption_key),
        ids=tuple(str(i) for i in range(num_images)),
        captions=tuple(Caption(str(i)) for i in range(count)),
    )


def build_embeddings(num_images: int, num_captions: int, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Leaves float64[B, E] and [C, E] of unit length, with gradient."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(num_images + num_captions, width, generator=generator, dtype=torch.float64)
    image, text = F.normalize(both, dim=-1).split([num_images, num_captions])
    return image.clone().requires_grad_(), text.clone().requires_grad_()


def build_output(batch: Batch, seed: int = 0, width: int = 5, vocab_size: int = 11) -> ModelOutput:
    """Every field, leaves float64 with gradient."""
    image, text = build_embeddings(len(batch.images), len(batch.tokens), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    hidden = torch.randn(int(batch.num_targets), width, generator=generator, dtype=torch.float64).requires_grad_()
    head = torch.randn(vocab_size, width, generator=generator, dtype=torch.float64).requires_grad_()
    return ModelOutput(image, text, {CAPTION: hidden}, head)


START = StepKey()


def loss_of(objective: Objective | WeightedSum, output: ModelOutput, batch: Batch, step_key: StepKey = START) -> Loss:
    """The loss of a batch that is all there is."""
    if isinstance(objective, WeightedSum):
        return objective(output, batch, step_key, objective.count((batch,), step_key))
    counts = {name: count.double().clamp(min=1) for name, count in objective.counts(batch, step_key).items()}
    return objective(output, batch, step_key, counts)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """``build_batch``."""
    return build_batch


@pytest.fixture
def make_output() -> Callable[..., ModelOutput]:
    """``build_output``."""
    return build_output


@pytest.fixture
def alone() -> Callable[..., Loss]:
    """``loss_of``."""
    return loss_of
