"""Which kernel computes the cross-entropy, and how those of other packages are called: with stand-ins, on a CPU."""

import sys
from dataclasses import dataclass
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.kernels import installed as kernels
from mmlm.objectives.kernels import linear_cross_entropy as module
from mmlm.objectives.kernels.gradients_in_forward import with_known_gradients
from mmlm.objectives.kernels.installed import CUT, IGNORED, LIGER, check_kernel, choose_kernel
from mmlm.objectives.kernels.linear_cross_entropy import token_cross_entropy

LIGER_FUNCTIONAL = "liger_kernel.transformers.functional"


@dataclass(frozen=True)
class OnCuda:
    """What the choice looks at, of hidden states on a GPU that is not here."""

    dtype: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


@pytest.fixture
def having(monkeypatch):
    """``having(package=version)``: what is installed."""

    def install(**versions: tuple[int, ...]) -> None:
        found = {LIGER: versions.get("liger"), CUT: versions.get("cut")}
        monkeypatch.setattr(kernels, "installed", found.__getitem__)

    return install


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, head = (torch.randn(size, 4, generator=generator).requires_grad_() for size in (9, 6))
    targets = torch.randint(0, 6, (9,), generator=generator)
    targets[2] = IGNORED
    return hidden, head, targets


class InPlace(torch.autograd.Function):
    """Stored gradients that backward scales in place, and only those the hidden states ask for, as Liger's are."""

    @staticmethod
    def forward(ctx, hidden, head, targets, smoothing):
        with torch.enable_grad():
            inputs = [hidden.detach().requires_grad_(), head.detach().requires_grad_()]
            logits = inputs[0] @ inputs[1].T
            loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing)
        gradients = torch.autograd.grad(loss, inputs)
        ctx.gradients = [gradients[0], gradients[1] if hidden.requires_grad and head.requires_grad else None]
        return loss.detach()

    @staticmethod
    def backward(ctx, gradient):
        return *(stored if stored is None else stored.mul_(gradient) for stored in ctx.gradients), None, None


@pytest.fixture
def stand_in_liger(monkeypatch):
    """A module of Liger's name and interface; the calls it got."""
    calls = []

    def liger_fused_linear_cross_entropy(
        input,
        weight,
        target,
        bias=None,
        ce_weight=None,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="mean",
        softcap=None,
        return_z_loss=False,
        accum_dtype=None,
        use_token_scaling=False,
        return_token_accuracy=False,
        return_predicted_tokens=False,
    ):
        calls.append((ignore_index, reduction, accum_dtype, return_predicted_tokens))
        predicted = (input @ weight.T).detach().argmax(dim=1).masked_fill(target == ignore_index, -1)
        return SimpleNamespace(loss=InPlace.apply(input, weight, target, label_smoothing), predicted_tokens=predicted)

    names = LIGER_FUNCTIONAL.split(".")
    for i in range(len(names)):
        monkeypatch.setitem(sys.modules, ".".join(names[: i + 1]), ModuleType(names[i]))
    sys.modules[LIGER_FUNCTIONAL].liger_fused_linear_cross_entropy = liger_fused_linear_cross_entropy
    return calls


@pytest.fixture
def stand_in_cut(monkeypatch):
    """Likewise of Cut Cross-Entropy."""
    calls = []

    def linear_cross_entropy(e, c, targets, bias=None, ignore_index=-100, reduction="mean", impl="cce"):
        calls.append((ignore_index, reduction, impl))
        return F.cross_entropy(e @ c.T, targets, ignore_index=ignore_index, reduction=reduction)

    stand_in = ModuleType("cut_cross_entropy")
    stand_in.linear_cross_entropy = linear_cross_entropy
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", stand_in)
    return calls


@pytest.mark.parametrize(
    ("versions", "smoothing", "dtype", "chosen"),
    [
        ({}, 0.0, torch.bfloat16, "chunked"),
        ({"liger": (0, 8)}, 0.1, torch.bfloat16, "liger"),
        ({"liger": (1, 0), "cut": (25, 6)}, 0.0, torch.bfloat16, "liger"),
        ({"liger": (0, 8)}, 0.0, torch.float32, "liger"),
        ({"liger": (0, 8)}, 0.0, torch.float64, "chunked"),
        ({"liger": (0, 7), "cut": (25, 6)}, 0.0, torch.bfloat16, "cut"),
        ({"cut": (25, 6)}, 0.1, torch.bfloat16, "chunked"),
        ({"cut": (25, 6)}, 0.0, torch.float32, "chunked"),
    ],
)
def test_auto_takes_the_first_installed_kernel_that_is_exact(having, versions, smoothing, dtype, chosen):
    having(**versions)
    assert choose_kernel("auto", OnCuda(dtype), smoothing) == chosen
    assert choose_kernel("auto", torch.zeros(1, dtype=dtype), smoothing) == "chunked"
    assert choose_kernel("chunked", OnCuda(dtype), smoothing) == "chunked"


@pytest.mark.parametrize("kernel", ["liger", "cut"])
def test_a_named_kernel_is_taken_or_refused(having, kernel):
    having(liger=(0, 8), cut=(25, 6))
    assert choose_kernel(kernel, OnCuda(torch.bfloat16), 0.0) == kernel
    with pytest.raises(UserError, match=rf"^kernel: {kernel} runs on CUDA devices only, and the model is on cpu; use"):
        choose_kernel(kernel, torch.zeros(1), 0.0)
    with pytest.raises(UserError, match=rf"^kernel: {kernel} does not compute in float64; use kernel=chunked$"):
        choose_kernel(kernel, OnCuda(torch.float64), 0.0)


def test_cut_cross_entropy_wants_half_precision(having):
    having(cut=(25, 6))
    with pytest.raises(UserError, match=r"^kernel: cut does not compute in float32; use train.precision=bf16 or"):
        choose_kernel("cut", OnCuda(torch.float32), 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("liger", 0.0, None), "kernel: liger needs a package that is not installed; pip install liger-kernel"),
        (("cut", 0.0, None), "kernel: cut needs a package that is not installed; pip install cut-cross-entropy"),
        (("chunked", 0.0, 0), "chunk_rows: 0 must be at least 1 row"),
        (("liger", 0.0, 8), "chunk_rows: 8 has no effect on kernel=liger; use kernel=chunked, or null here"),
    ],
)
def test_settings_that_nothing_could_follow_are_refused(having, arguments, message):
    having()
    with pytest.raises(UserError) as refusal:
        check_kernel(*arguments)
    assert str(refusal.value) == message
    with pytest.raises(UserError):
        Captioning(arguments[1], arguments[0], arguments[2])


def test_old_versions_and_label_smoothing_by_cut_are_refused(having):
    having(liger=(0, 7), cut=(25, 6))
    with pytest.raises(UserError, match=r"^kernel: liger-kernel 0.7 is older than 0.8; pip install -U liger-kernel$"):
        check_kernel("liger", 0.0, None)
    with pytest.raises(UserError, match=r"^kernel: cut has no label smoothing, and label_smoothing is 0.1; use "):
        check_kernel("cut", 0.1, None)
    check_kernel("cut", 0.0, None)


def test_versions_are_read_from_the_installed_packages():
    assert kernels.installed("torch") == tuple(map(int, torch.__version__.split(".")[:2]))
    assert kernels.installed("a-package-that-nobody-has") is None


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_ligers_loss_and_gradients(stand_in_liger, needs):
    hidden, head, targets = problem()
    hidden.requires_grad_(needs[0])
    head.requires_grad_(needs[1])
    inputs = [tensor for tensor in (hidden, head) if tensor.requires_grad]
    compute = partial(kernels.liger, targets=targets, label_smoothing=0.1)
    loss, correct = with_known_gradients(compute, hidden, head)
    logits = hidden @ head.T
    expected = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    assert correct == (logits.argmax(dim=1) == targets).sum()
    theirs = torch.autograd.grad(expected / 7, inputs)
    for _ in range(2):  # Liger alone would scale what it has scaled already
        for one, other in zip(torch.autograd.grad(loss / 7, inputs, retain_graph=True), theirs, strict=True):
            torch.testing.assert_close(one, other)
    assert stand_in_liger == [(IGNORED, "sum", torch.float32, True)]


def test_liger_without_gradients(stand_in_liger):
    hidden, head, targets = problem()
    with torch.no_grad():
        loss, _ = with_known_gradients(partial(kernels.liger, targets=targets, label_smoothing=0.0), hidden, head)
    assert not loss.requires_grad


@pytest.mark.parametrize("kernel", ["liger", "cut"])
def test_the_choice_is_what_computes(monkeypatch, stand_in_liger, stand_in_cut, kernel):
    monkeypatch.setattr(module, "choose_kernel", lambda *_: kernel)
    hidden, head, targets = problem()
    loss, correct = token_cross_entropy(hidden, head, targets)
    expected, right = module.linear_cross_entropy(hidden, head, targets)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(correct, right)
    for one, other in zip(*(torch.autograd.grad(value, [hidden, head]) for value in (loss, expected)), strict=True):
        torch.testing.assert_close(one, other)
    assert (len(stand_in_liger), stand_in_cut) == (
        (1, []) if kernel == "liger" else (0, [(IGNORED, "sum", "cce_exact")])
    )


@pytest.mark.parametrize("kernel", ["liger", "cut"])
def test_no_kernel_is_asked_for_an_empty_batch_or_for_chunks(monkeypatch, stand_in_liger, stand_in_cut, kernel):
    monkeypatch.setattr(module, "choose_kernel", lambda *_: kernel)
    hidden, head, targets = problem()
    loss, _ = token_cross_entropy(hidden[:0], head, targets[:0])
    assert torch.autograd.grad(loss, head)[0].count_nonzero() == 0
    token_cross_entropy(hidden, head, targets, chunk_rows=4)
    assert stand_in_liger == stand_in_cut == []
