"""Tiled cross-entropies against the whole matrix, with all gradients."""

import pytest
import torch
from torch import Tensor

from mmlm.objectives.kernels.tiled import cross_entropies, tiles


def inputs(n: int, m: int, dtype: torch.dtype = torch.float64, scale: float = 5.0) -> list[Tensor]:
    """Image [n, 3], text [m, 3] and scale, with gradient."""
    generator = torch.Generator().manual_seed(n * 100 + m)
    both = torch.randn(n + m, 3, generator=generator, dtype=torch.float64).to(dtype).split([n, m])
    return [one.clone().requires_grad_() for one in (*both, torch.tensor(scale, dtype=dtype))]


def some_positives(n: int, m: int) -> Tensor:
    """bool[n, m]: at least one in every row and column, several in most, far apart."""
    return (torch.arange(n)[:, None] - torch.arange(m)[None, :]) % min(n, m, 4) == 0


def whole(image: Tensor, text: Tensor, scale: Tensor, positive: Tensor, a: float) -> tuple[Tensor, Tensor]:
    """The formula of the docstring."""
    similarity = scale * image @ text.T

    def rows(s: Tensor, p: Tensor) -> Tensor:
        hits = (s * p).sum(dim=1) / p.sum(dim=1)
        return s.logsumexp(dim=1) - (1 - a) * hits - a * s.mean(dim=1)

    return rows(similarity, positive), rows(similarity.T, positive.T)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("tile", [1, 3, 4, 100])
@pytest.mark.parametrize(("n", "m"), [(8, 8), (5, 11), (9, 4), (1, 1)])
def test_tiles_of_any_size_are_the_whole(n, m, tile, smoothing):
    positive = some_positives(n, m)
    given = inputs(n, m)
    rows, columns, correct = cross_entropies(*given, lambda i, j: positive[i, j], smoothing, tile)
    expected = whole(*given, positive, smoothing)
    for ours, theirs in zip((rows, columns), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    similarity = given[0] @ given[1].T
    assert correct.tolist() == positive[torch.arange(n), similarity.argmax(dim=1)].tolist()
    weights = torch.linspace(0.5, 2, n, dtype=torch.float64), torch.linspace(-1, 1, m, dtype=torch.float64)

    def gradients(r: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((r * weights[0]).sum() + (c * weights[1]).sum(), given)

    for ours, theirs in zip(gradients(rows, columns), gradients(*expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tile", [2, 8])
def test_gradcheck(tile):
    positive = some_positives(5, 4)

    def losses(*given: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropies(*given, lambda i, j: positive[i, j], 0.1, tile)[:2]

    assert torch.autograd.gradcheck(losses, inputs(5, 4, scale=1.5))


def test_no_tile_is_larger_than_asked_for_and_together_they_are_the_matrix():
    asked = []
    positive = some_positives(7, 10)

    def watched(i: slice, j: slice) -> Tensor:
        asked.append((i, j))
        return positive[i, j]

    rows, columns, _ = cross_entropies(*inputs(7, 10), watched, 0.0, 4)
    (rows.sum() + columns.sum()).backward()
    assert asked == 2 * list(tiles(7, 10, 4)), "once forward, once backward"
    covered = torch.zeros(7, 10)
    for i, j in tiles(7, 10, 4):
        assert max(covered[i, j].shape) <= 4
        covered[i, j] += 1
    assert torch.equal(covered, torch.ones(7, 10))


def test_a_matrix_of_one_tile_is_computed_once():
    asked = []
    rows, columns, _ = cross_entropies(*inputs(3, 3), lambda i, j: asked.append(i) or torch.eye(3).bool(), 0.0, 3)
    (rows.sum() + columns.sum()).backward()
    assert len(asked) == 1


@pytest.mark.parametrize("tile", [1, 2, 4])
def test_far_apart_similarities_neither_overflow_nor_vanish(tile):
    """A column whose entries are all e^-180 of their rows' largest still has its own log-sum-exp."""
    image = torch.tensor([[1.0, 0], [0.9, 0.1], [0.8, 0.2]])
    text = torch.tensor([[1.0, 0], [0.9, 0], [-0.8, 0.1]])
    given = [image.requires_grad_(), text.requires_grad_(), torch.tensor(100.0, requires_grad=True)]
    exact = [one.detach().double().requires_grad_() for one in given]
    positive = torch.eye(3, dtype=torch.bool)
    found = cross_entropies(*given, lambda i, j: positive[i, j], 0.0, tile)[:2]
    expected = whole(*exact, positive, 0.0)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)
    ours = torch.autograd.grad(sum(one.sum() for one in found), given)
    theirs = torch.autograd.grad(sum(one.sum() for one in expected), exact)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-3)


def test_autocast_rounds_neither_values_nor_gradients():
    """The backward pass runs under autocast too."""
    positive = some_positives(6, 6)
    found = []
    for enabled in (True, False):
        given = inputs(6, 6, torch.float32, scale=50.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            rows, columns, _ = cross_entropies(*given, lambda i, j: positive[i, j], 0.0, 4)
            found.append([rows, columns, *torch.autograd.grad(rows.sum() + columns.sum(), given)])
    for rough, exact in zip(*found, strict=True):
        assert torch.equal(rough, exact)


def test_half_precision_is_raised():
    given = inputs(4, 4, torch.bfloat16)
    rows, columns, _ = cross_entropies(*given, lambda i, j: torch.eye(4).bool()[i, j])
    assert rows.dtype == columns.dtype == torch.float32
    (rows.sum() + columns.sum()).backward()
    assert all(one.grad.dtype == torch.bfloat16 for one in given)


def test_a_best_that_is_shared_with_another_is_not_correct():
    """Embeddings that have collapsed are never right."""
    image, text = torch.ones(3, 2), torch.ones(3, 2)
    eye = torch.eye(3, dtype=torch.bool)
    for tile in (1, 3):
        correct = cross_entropies(image, text, torch.tensor(1.0), lambda i, j: eye[i, j], 0.0, tile)[2]
        assert correct.tolist() == [False] * 3
    alone = cross_entropies(image[:1], text[:1], torch.tensor(1.0), lambda i, j: eye[i, j])[2]
    assert alone.tolist() == [True]
