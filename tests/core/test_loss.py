"""Loss: totals and shares, and the sum of micro-batches."""

import pytest
import torch

from mmlm.core.loss import Loss, Term


def test_loss_is_the_weighted_sum_of_sums_over_counts():
    first = torch.tensor(6.0, requires_grad=True)
    second = torch.tensor(5.0, requires_grad=True)
    loss = Loss({"a": Term(first, torch.tensor(4.0), 2.0), "b": Term(second, torch.tensor(10.0), 0.5)})
    assert loss.terms["a"].value.item() == 1.5
    assert loss.total.item() == pytest.approx(2 * 6 / 4 + 0.5 * 5 / 10)
    loss.total.backward()
    assert first.grad.item() == pytest.approx(2 / 4)
    assert second.grad.item() == pytest.approx(0.5 / 10)


def test_losses_of_micro_batches_join_to_that_of_the_whole():
    count = torch.tensor(4.0)
    parts = [Loss({"a": Term(torch.tensor(x), count, 2.0)}, {"f": Term(torch.tensor(1.0), count)}) for x in (1.0, 3.0)]
    joined = Loss.joined(parts)
    assert joined.total.item() == sum(part.total.item() for part in parts) == 2.0
    assert joined.figures["f"].value.item() == 0.5
