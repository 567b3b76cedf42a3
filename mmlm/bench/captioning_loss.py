"""Time and memory of the captioning loss, forward and backward, against implementations that hold all logits.

``python -m mmlm.bench losses`` prints the table beside that of the contrastive losses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.bench.process import Measured, Work, measure
from mmlm.objectives.kernels.installed import CUT, IGNORED, LIGER, Kernel, installed
from mmlm.objectives.kernels.linear_cross_entropy import token_cross_entropy

VOCABULARY, WIDTH, CAPTIONS, LONGEST = 49_408, 512, 256, 77
"""Sizes: CLIP's vocabulary and context, and the width of CoCa's text decoder in open_clip's ViT-B/32."""
MEAN_LENGTH = 13
"""Mean number of supervised tokens of a caption; lengths are spread evenly from 1 to twice the mean, less 1."""
SIZES = f"{CAPTIONS} captions of {MEAN_LENGTH} tokens on average, {VOCABULARY:,} words, states of {WIDTH}"
REFERENCE = "plain"


@dataclass(frozen=True)
class Inputs:
    """Hidden states of padded captions, and their targets. All tensors are on one device."""

    hidden: Tensor
    """float32[C, T, D], a leaf with gradient."""
    head_weight: Tensor
    """float32[V, D], a leaf with gradient."""
    targets: Tensor
    """int64[C, T]; padding is ``IGNORED``."""
    real: Tensor
    """bool[C, T]: False at padding."""

    @classmethod
    def random(cls, captions: int, vocabulary: int, width: int, longest: int, mean_length: int) -> "Inputs":
        """Random inputs, equal for equal arguments; on the CUDA device if there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = torch.Generator().manual_seed(0)
        lengths = torch.linspace(1, 2 * mean_length - 1, captions).round().long()
        real = torch.arange(longest)[None, :] < lengths[:, None]
        targets = torch.randint(0, vocabulary, (captions, longest), generator=generator)
        hidden = torch.randn(captions, longest, width, generator=generator)
        head_weight = torch.randn(vocabulary, width, generator=generator) / width**0.5
        return cls(
            hidden.to(device).requires_grad_(),
            head_weight.to(device).requires_grad_(),
            targets.masked_fill(~real, IGNORED).to(device),
            real.to(device),
        )


Loss = Callable[[Inputs], Tensor]
"""Inputs -> the sum of the cross-entropies of the real tokens, float32[]."""


def padded(inputs: Inputs) -> Tensor:
    """The loss from all logits float32[C, T, V], those of padding included, as open_clip's CoCa computes it."""
    logits = F.linear(inputs.hidden, inputs.head_weight)
    return F.cross_entropy(logits.permute(0, 2, 1), inputs.targets, ignore_index=IGNORED, reduction="sum")


def plain(inputs: Inputs) -> Tensor:
    """The loss from the logits float32[P, V] of the real tokens."""
    logits = F.linear(inputs.hidden[inputs.real], inputs.head_weight)
    return F.cross_entropy(logits, inputs.targets[inputs.real], reduction="sum")


def torch_chunked(inputs: Inputs) -> Tensor:
    """The loss of the real tokens by PyTorch's own fused function, in chunks (2.13 and later)."""
    return F.linear_cross_entropy(
        inputs.hidden[inputs.real],
        inputs.head_weight,
        inputs.targets[inputs.real],
        reduction="sum",
        options=nn.LinearCrossEntropyOptions(),
    )


def ours(kernel: Kernel) -> Loss:
    """The loss of the real tokens by mmlm's ``token_cross_entropy``, which also counts the tokens predicted right."""

    def loss(inputs: Inputs) -> Tensor:
        targets = inputs.targets[inputs.real]
        return token_cross_entropy(inputs.hidden[inputs.real], inputs.head_weight, targets, kernel=kernel)[0]

    return loss


LOSSES: Mapping[str, Loss] = {
    "padded": padded,
    REFERENCE: plain,
    "torch": torch_chunked,
    "chunked": ours("chunked"),
    "liger": ours("liger"),
    "cut": ours("cut"),
}
LABELS: Mapping[str, str] = {
    "padded": "all logits of padded captions (open_clip)",
    REFERENCE: "all logits of real tokens",
    "torch": "`F.linear_cross_entropy`, chunked",
    "chunked": "ours, chunked",
    "liger": "ours, by Liger",
    "cut": "ours, by Cut Cross-Entropy",
}


def work(
    name: str,
    precision: str = "fp32",
    captions: str = str(CAPTIONS),
    vocabulary: str = str(VOCABULARY),
    width: str = str(WIDTH),
) -> Work:
    """The work to measure: forward and backward of one of ``LOSSES``, in ``precision`` fp32 or bf16 (by autocast)."""
    inputs = Inputs.random(int(captions), int(vocabulary), int(width), LONGEST, MEAN_LENGTH)

    def forward_backward() -> None:
        inputs.hidden.grad = inputs.head_weight.grad = None
        with torch.autocast(inputs.hidden.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = LOSSES[name](inputs)
        (loss / inputs.real.sum()).backward()

    return forward_backward


def available() -> list[str]:
    """The names of the ``LOSSES`` that run on this machine with the packages that are installed."""
    names = ["padded", REFERENCE, "chunked"]
    if hasattr(F, "linear_cross_entropy"):  # later than the oldest PyTorch that we support
        names.insert(2, "torch")
    if torch.cuda.is_available():
        names += [kernel for kernel, package in (("liger", LIGER), ("cut", CUT)) if installed(package)]
    return names


def table(precision: str = "fp32", sizes: Sequence[str] = ()) -> str:
    """A Markdown table of time and memory. ``sizes`` are the arguments of ``work`` after ``precision``."""
    found: dict[str, Measured | None] = {}
    for name in available():
        try:
            found[name] = measure("mmlm.bench.captioning_loss:work", [name, precision, *sizes])
        except MemoryError:
            found[name] = None
    return "\n".join(rows(found))


def rows(found: Mapping[str, Measured | None]) -> list[str]:
    """The lines of the table. None is a loss that did not fit; ratios are to ``REFERENCE``."""
    lines = [
        "| captioning loss, forward + backward | seconds | peak memory, MB | time | memory |",
        "|---|--:|--:|--:|--:|",
    ]
    reference = found[REFERENCE]
    for name, measured in found.items():
        if measured is None:
            lines.append(f"| {LABELS[name]} | does not fit | | | |")
            continue
        cells = [f"{measured.seconds:.3g}", f"{measured.peak_bytes / 1e6:,.0f}"]
        if reference is None:
            cells += ["", ""]
        else:
            cells.append(f"{measured.seconds / reference.seconds:.2f}x")
            cells.append(f"{measured.peak_bytes / reference.peak_bytes:.2f}x")
        lines.append(f"| {LABELS[name]} | {' | '.join(cells)} |")
    return lines
