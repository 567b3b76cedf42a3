"""Figures beyond the loss on hand-made tensors; those of whole models are in ``tests/exactness/test_diagnosis.py``."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mmlm.training.diagnosis import Diagnosis, Spread, WeightsBefore, modality_gap, part_of


def random_rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Spread


@pytest.mark.parametrize(("count", "width"), [(50, 6), (6, 50), (1, 3)])
def test_effective_rank_against_numpy(count, width):
    rows = random_rows(count, width) * torch.linspace(0.1, 3, width)
    values = np.linalg.svd(rows.numpy(), compute_uv=False)
    shares = values / values.sum()
    expected = math.exp(-(shares * np.log(shares)).sum())
    assert Spread.of(rows).effective_rank() == pytest.approx(expected, rel=1e-5 if count < width else 1e-10)


def test_effective_rank_of_embeddings_that_collapsed_and_that_did_not():
    assert Spread.of(torch.ones(64, 256) / 16).effective_rank() == pytest.approx(1, abs=1e-6)
    assert Spread.of(torch.eye(5)).effective_rank() == pytest.approx(5)
    line = torch.cat([torch.eye(3)[:1], -torch.eye(3)[:1]])
    assert Spread.of(line).effective_rank() == pytest.approx(1), "opposite directions lie on one line"


def test_effective_rank_of_what_is_not_finite_is_not_a_number():
    assert math.isnan(Spread.of(torch.full((2, 3), math.nan)).effective_rank())


def test_modality_gap():
    image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0]])
    assert modality_gap(Spread.of(image), Spread.of(text)) == pytest.approx(math.hypot(1.5, 0.5))


# Gradients


def of_losses(*losses: torch.Tensor, seen: torch.Tensor) -> Diagnosis:
    return Diagnosis.of({f"loss{i}": loss for i, loss in enumerate(losses)}, [seen], None, None)


def test_gradients_that_agree_oppose_and_do_not_meet():
    seen = random_rows(3, 4).requires_grad_()
    weights = random_rows(3, 4, seed=1)
    first, elsewhere = (seen * weights).sum(), seen.detach().sum() + torch.ones((), requires_grad=True)
    found = of_losses(first, -2 * first, elsewhere, torch.ones(()), seen=seen).values()
    norm = weights.norm().item()
    norms = {f"gradient_at_bridge/loss{i}": pytest.approx(share * norm) for i, share in enumerate((1, 2, 0, 0))}
    assert found == norms | {"gradient_cosine/loss0-loss1": pytest.approx(-1)}
    assert seen.grad is None


def test_gradients_in_half_precision_are_summed_in_float32():
    seen = torch.zeros(1, 5000, dtype=torch.bfloat16, requires_grad=True)
    found = of_losses((seen * 0.01).sum(), seen=seen).values()
    assert found["gradient_at_bridge/loss0"] == pytest.approx(math.sqrt(5000) * 0.01, rel=2e-3)


def test_a_batch_without_images_or_without_texts_is_diagnosed():
    seen = torch.zeros(0, 4, requires_grad=True)
    diagnosis = Diagnosis.of({"a": seen.sum(), "b": seen.sum()}, [seen], seen.detach(), random_rows(5, 4))
    found = diagnosis.values()
    assert list(found) == ["gradient_at_bridge/a", "gradient_at_bridge/b", "effective_rank/text"]
    assert found["gradient_at_bridge/a"] == 0


def test_parts_add_up():
    rows = random_rows(7, 3)
    seen = rows.clone().requires_grad_()
    whole = Diagnosis.of({"a": seen.square().sum()}, [seen], rows, rows[:4])
    parts = []
    for part, texts in ((slice(0, 2), slice(0, 0)), (slice(2, 7), slice(0, 4))):
        some = rows[part].clone().requires_grad_()
        parts.append(Diagnosis.of({"a": some.square().sum()}, [some], rows[part], rows[texts]))
    assert Diagnosis.joined(parts).values() == pytest.approx(whole.values(), rel=1e-12)
    assert whole.over_ranks().values() == whole.values()


# Weights


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.encoder.patches.weight", "encoder"),
        ("module._orig_mod.model.decoder.head.weight", "decoder"),
        ("model.text_norm.bias", "projections"),
        ("model.image_projection.weight", "projections"),
        ("objective.objectives.contrastive.logit_scale", "objective"),
        ("weight", "weight"),
    ],
)
def test_part_of_a_parameter(name, part):
    assert part_of(name) == part


class Parts(nn.Module):
    """Weights of two parts, one of them frozen in half, and one that is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ParameterList([torch.tensor([3.0]), torch.tensor([0.0, 4.0])])
        self.second = nn.ParameterList([torch.tensor([2.0]), torch.tensor([100.0])])
        self.second[1].requires_grad_(False)
        self.gate = nn.Parameter(torch.zeros(1))


def test_update_ratios_are_those_of_all_trainable_weights_of_a_part():
    module = Parts()
    before = WeightsBefore(module)
    with torch.no_grad():
        module.first[0] += 0.3
        module.first[1] -= torch.tensor([0.0, 0.4])
        module.second[0] *= 1.5
        module.gate += 1
    assert before.update_ratios() == pytest.approx({"update_ratio/first": 0.1, "update_ratio/second": 0.5})
