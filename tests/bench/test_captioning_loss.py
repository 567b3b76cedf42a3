"""All ways of computing captioning's loss agree, and the table says what was measured."""

import pytest
import torch

from mmlm.bench import captioning_loss
from mmlm.bench.captioning_loss import LOSSES, Inputs, available, rows, table, work
from mmlm.bench.process import Measured


def test_every_loss_that_runs_here_is_the_same():
    inputs = Inputs.random(captions=4, vocabulary=50, width=8, longest=9, mean_length=3)
    assert inputs.real.sum(dim=1).tolist() == [1, 2, 4, 5]
    values, gradients = {}, {}
    for name in available():
        values[name] = LOSSES[name](inputs)
        gradients[name] = torch.autograd.grad(values[name], [inputs.hidden, inputs.head_weight])
    assert {"padded", "plain", "chunked"} <= values.keys()
    for name, value in values.items():
        torch.testing.assert_close(value, values["plain"], msg=name)
        for one, other in zip(gradients[name], gradients["plain"], strict=True):
            torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_work_is_forward_and_backward(monkeypatch, precision):
    made = []
    random = Inputs.random
    monkeypatch.setattr(Inputs, "random", lambda *sizes: made.append(random(*sizes)) or made[-1])
    work("chunked", precision, "3", "40", "8")()
    assert made[0].hidden.shape == (3, captioning_loss.LONGEST, 8)
    assert made[0].head_weight.shape == (40, 8)
    assert made[0].hidden.grad.count_nonzero() > 0
    assert made[0].head_weight.grad.count_nonzero() > 0


def test_the_table_has_ratios_to_plain_logits(monkeypatch):
    measured = {"padded": None, "plain": Measured(2.0, 2_000_000_000), "chunked": Measured(1.5, 250_000_000)}
    assert rows(measured)[2:] == [
        "| all logits of padded captions (open_clip) | does not fit | | | |",
        "| all logits of real tokens | 2 | 2,000 | 1.00x | 1.00x |",
        "| ours, chunked | 1.5 | 250 | 0.75x | 0.12x |",
    ]
    asked = []

    def measure(function: str, arguments: list[str]) -> Measured:
        asked.append((function, arguments))
        if arguments[0] == "padded":
            raise MemoryError
        return measured.get(arguments[0], Measured(1.0, 1))

    monkeypatch.setattr(captioning_loss, "measure", measure)
    assert "| all logits of padded captions (open_clip) | does not fit |" in table("bf16", ("2",))
    assert ("mmlm.bench.captioning_loss:work", ["chunked", "bf16", "2"]) in asked
