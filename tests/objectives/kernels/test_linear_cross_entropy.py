"""Chunked cross-entropy against PyTorch's over all logits: values, gradients, and what is never computed or held."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmlm.objectives.kernels import linear_cross_entropy as module
from mmlm.objectives.kernels.gradients_in_forward import NeededGradients
from mmlm.objectives.kernels.installed import IGNORED
from mmlm.objectives.kernels.linear_cross_entropy import linear_cross_entropy, token_cross_entropy, token_losses

P, V, D = 150, 23, 6
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def make(rows: int = P, dtype: torch.dtype = torch.float64, vocabulary: int = V) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and targets; every fifth row is ignored, and about half of the others are right."""
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, D, generator=generator, dtype=torch.float64).to(dtype)
    head = torch.randn(vocabulary, D, generator=generator, dtype=torch.float64).to(dtype)
    best = (hidden.double() @ head.double().T).argmax(dim=1)
    targets = torch.where(torch.arange(rows) % 2 == 0, best, (best + 1) % vocabulary)
    targets[::5] = IGNORED
    return hidden.requires_grad_(), head.requires_grad_(), targets


def reference(hidden: Tensor, head: Tensor, targets: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    logits = hidden @ head.T
    loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing)
    return loss, (logits.argmax(dim=1) == targets).sum()


def assert_close(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], *inputs: Tensor) -> None:
    """Loss, its gradients (those of a share of it, as a term's are) and the number of right targets."""
    torch.testing.assert_close(ours[0], theirs[0], **EXACT)
    assert torch.equal(ours[1], theirs[1])
    found = torch.autograd.grad(ours[0] / 7, inputs)
    for one, other in zip(found, torch.autograd.grad(theirs[0] / 7, inputs), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 100, 192, 1000, None])
def test_equals_cross_entropy_over_all_logits_with_gradients(chunk_rows, smoothing):
    hidden, head, targets = make()
    ours = linear_cross_entropy(hidden, head, targets, smoothing, chunk_rows)
    assert_close(ours, reference(hidden, head, targets, smoothing), hidden, head)
    assert 0 < ours[1] < (targets != IGNORED).sum()


def test_gradcheck():
    hidden, head, targets = make(10, vocabulary=7)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets, 0.1, 30)[0], (hidden, head))


@pytest.mark.parametrize("rows", [0, 1, 64, 65])
@pytest.mark.parametrize("chunk_rows", [3, None])
def test_any_number_of_rows(rows, chunk_rows):
    hidden, head, targets = make(rows)
    assert_close(
        linear_cross_entropy(hidden, head, targets, 0.1, chunk_rows),
        reference(hidden, head, targets, 0.1),
        hidden,
        head,
    )


@pytest.mark.parametrize("chunk_rows", [3, None])
def test_only_ignored_rows(chunk_rows):
    hidden, head, targets = make()
    targets.fill_(IGNORED)
    loss, correct = linear_cross_entropy(hidden, head, targets, 0.1, chunk_rows)
    gradients = torch.autograd.grad(loss, [hidden, head])
    assert (loss.item(), correct.item()) == (0, 0)
    assert [gradient.count_nonzero().item() for gradient in gradients] == [0, 0]


def test_large_logits_do_not_overflow():
    hidden, head, targets = make(dtype=torch.float32)
    hidden = (hidden.detach() * 1000).requires_grad_()
    ours, theirs = linear_cross_entropy(hidden, head, targets, 0.1, 7), reference(hidden, head, targets, 0.1)
    torch.testing.assert_close(ours[0], theirs[0])
    for one, other in zip(*(torch.autograd.grad(loss, [hidden, head]) for loss in (ours[0], theirs[0])), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_fits_one_chunk_is_the_plain_computation_to_the_bit(smoothing, autocast):
    hidden, head, targets = make(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = token_cross_entropy(hidden, head, targets, smoothing)
        filler = -P % module.ROW_MULTIPLE
        logits = F.linear(F.pad(hidden, (0, 0, 0, filler)), head).float()
        padded = F.pad(targets, (0, filler), value=IGNORED)
        plain = F.cross_entropy(logits, padded, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing)
    assert torch.equal(ours[0], plain)
    assert ours[1] == (logits.argmax(dim=1) == padded).sum()
    for one, other in zip(*(torch.autograd.grad(loss, [hidden, head]) for loss in (ours[0], plain)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bfloat16_products_are_near_float32(smoothing):
    hidden, head, targets = make(dtype=torch.float32)
    expected = reference(hidden, head, targets, smoothing)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden, head, targets, smoothing, 32)
        plain, _ = linear_cross_entropy(hidden, head, targets, smoothing)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0)
    torch.testing.assert_close(loss, plain)  # the same bfloat16 logits
    for one, other in zip(*(torch.autograd.grad(value, [hidden, head]) for value in (loss, expected)), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()


def test_half_precision_inputs_get_gradients_of_their_own_type():
    hidden, head, targets = make(dtype=torch.bfloat16)
    loss, _ = linear_cross_entropy(hidden, head, targets, chunk_rows=32)
    found = torch.autograd.grad(loss, [hidden, head])
    assert [loss.dtype, *(gradient.dtype for gradient in found)] == [torch.float32, torch.bfloat16, torch.bfloat16]
    wide = [tensor.detach().float().requires_grad_() for tensor in (hidden, head)]
    for one, other in zip(found, torch.autograd.grad(reference(*wide, targets)[0], wide), strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize(("hidden_needs", "head_needs"), [(True, False), (False, True)])
def test_only_gradients_that_are_needed_are_made(hidden_needs, head_needs):
    hidden, head, targets = make()
    hidden.requires_grad_(hidden_needs)
    head.requires_grad_(head_needs)
    needed = hidden if hidden_needs else head
    ours = linear_cross_entropy(hidden, head, targets, 0.1, 7)
    assert_close(ours, reference(hidden, head, targets, 0.1), needed)
    stored = linear_cross_entropy(hidden, head, targets, 0.1, 7)[0].grad_fn.saved_tensors
    assert [gradient is not None for gradient in stored] == [hidden_needs, head_needs]


class Sizes(TorchDispatchMode):
    """Elements of the largest tensor that any operation made, and how many matrix products there were."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        tensors = result if isinstance(result, tuple | list) else (result,)
        self.largest = max([self.largest, *(t.numel() for t in tensors if isinstance(t, Tensor))])
        return result


def test_no_tensor_is_larger_than_a_chunk_of_logits_or_the_inputs():
    hidden, head, targets = make(640, vocabulary=200)
    with Sizes() as sizes:
        linear_cross_entropy(hidden, head, targets, 0.1, 64)[0].backward()
    assert sizes.largest == 64 * 200
    assert sizes.products == 3 * 10
    with Sizes() as sizes:
        linear_cross_entropy(hidden, head, targets, 0.1)[0].backward()
    assert sizes.largest == 640 * 200


def test_without_gradients_there_is_one_product_a_chunk_and_nothing_to_keep():
    hidden, head, targets = make(640)
    with torch.no_grad(), Sizes() as sizes:
        loss, correct = linear_cross_entropy(hidden, head, targets, 0.1, 64)
    assert sizes.products == 10
    assert not loss.requires_grad
    expected = reference(hidden, head, targets, 0.1)
    torch.testing.assert_close(loss, expected[0].detach(), **EXACT)
    assert torch.equal(correct, expected[1])
    frozen, _ = linear_cross_entropy(hidden.detach(), head.detach(), targets, 0.1, 64)
    assert not frozen.requires_grad


def test_two_losses_share_the_head_and_a_graph_may_be_gone_through_twice():
    first, head, targets = make()
    second = (first.detach() * 0.5).requires_grad_()
    ours = [linear_cross_entropy(h, head, targets, 0.0, 7)[0] for h in (first, second)]
    theirs = [reference(h, head, targets)[0] for h in (first, second)]
    inputs = [first, second, head]
    expected = torch.autograd.grad(theirs[0] / 3 + theirs[1] * 2, inputs)
    total = ours[0] / 3 + ours[1] * 2
    for _ in range(2):
        for one, other in zip(torch.autograd.grad(total, inputs, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(one, other, **EXACT)


def test_gradients_of_gradients_are_refused():
    hidden, head, targets = make()
    loss, _ = linear_cross_entropy(hidden, head, targets, 0.0, 7)
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_the_size_of_a_chunk_follows_from_the_vocabulary(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for device in (cpu, gpu):
        assert module.default_rows(49_408, device) == 320
        assert module.default_rows(10**9, device) == module.ROW_MULTIPLE
        assert all(module.default_rows(v, device) % module.ROW_MULTIPLE == 0 for v in (1, 300, 50_000))
    assert module.default_rows(1_000, gpu) * 1_000 <= module.CHUNK_ELEMENTS
    assert module.default_rows(1_000, cpu) == 1_024
    assert module.default_rows(8_192, cpu) == module.CPU_ROWS
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 64 * V)
    monkeypatch.setattr(module, "PLAIN_ELEMENTS", 64 * V)
    hidden, head, targets = make()
    ours = token_cross_entropy(hidden, head, targets, 0.1)
    assert "GradientsInForward" in ours[0].grad_fn.name()
    assert_close(ours, reference(hidden, head, targets, 0.1), hidden, head)


def test_small_batches_are_plain_and_larger_ones_one_chunk(monkeypatch):
    hidden, head, targets = make(64)
    monkeypatch.setattr(module, "PLAIN_ELEMENTS", 64 * V)
    assert "GradientsInForward" not in token_cross_entropy(hidden, head, targets)[0].grad_fn.name()
    monkeypatch.setattr(module, "PLAIN_ELEMENTS", 64 * V - 1)
    with Sizes() as sizes:
        ours = token_cross_entropy(hidden, head, targets)
    assert sizes.products == 3
    assert sizes.largest == 64 * V
    assert_close(ours, reference(hidden, head, targets), hidden, head)


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000, None])
def test_losses_of_each_token(chunk_rows):
    hidden, head, targets = make()
    losses = token_losses(hidden, head, targets, chunk_rows)
    expected = F.cross_entropy(hidden @ head.T, targets, reduction="none", ignore_index=IGNORED)
    torch.testing.assert_close(losses, expected.detach(), **EXACT)
    assert not losses.requires_grad
    with Sizes() as sizes:
        token_losses(hidden, head, targets, 10)
    assert sizes.largest == 10 * V


def test_losses_of_each_token_in_bfloat16_and_of_none():
    hidden, head, targets = make(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = token_losses(hidden, head, targets, 7)
        logits = F.linear(hidden, head).float()
    assert losses.dtype == torch.float32
    expected = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)
    torch.testing.assert_close(losses, expected.detach())
    assert token_losses(hidden[:0], head, targets[:0]).shape == (0,)


def test_what_is_wanted_follows_autograd():
    hidden, head, _ = make()
    assert NeededGradients.by(hidden, head.detach()) == NeededGradients(hidden=True, head=False)
    with torch.no_grad():
        assert not NeededGradients.by(hidden, head).any
