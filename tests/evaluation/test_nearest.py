"""The nearest vectors: as sorting all similarities has them, for any number at a time."""

import pytest
import torch
import torch.nn.functional as F

from mmlm.evaluation.nearest import nearest


@pytest.mark.parametrize("at_once", [1, 7, 100])
@pytest.mark.parametrize("top", [1, 5, 50])
def test_it_is_the_order_of_all_similarities(at_once, top):
    vectors = F.normalize(torch.randn(40, 8), dim=1)
    vectors[[3, 20, 39]] = vectors[11].clone()  # equal ones come in the order of their rows
    query = F.normalize(torch.randn(8), dim=0)
    similar = [sum(a * b for a, b in zip(v, query.tolist(), strict=True)) for v in vectors.tolist()]
    expected = sorted(range(40), key=lambda row: (-round(similar[row], 10), row))[:top]
    values, rows = nearest(query, vectors, top, at_once)
    assert rows.tolist() == expected
    assert values.tolist() == pytest.approx([similar[row] for row in expected], abs=1e-9)


def test_nothing_to_search():
    values, rows = nearest(torch.ones(4), torch.zeros(0, 4), 3)
    assert (len(values), len(rows)) == (0, 0)
