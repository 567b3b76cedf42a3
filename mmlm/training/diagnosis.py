"""What a training step tells beyond its loss: do objectives pull together, do embeddings collapse, what moves.

Everything is kept as sums that add up over micro-batches and ranks (norms do not, squares and dot products do), so the
figures made of them are those of the whole batch, exactly.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmlm.core.distributed import full_tensor, sum_over_ranks
from mmlm.core.figure import Figure, FigureGroup
from mmlm.core.loss import Loss
from mmlm.core.model_output import ModelOutput

DIAGNOSES = FigureGroup(
    "Diagnoses",
    "At some steps only. Gradients are those of the weighted objectives at the image tokens that the bridge reads; "
    "a cosine below 0 says that two objectives pull against each other there. Embeddings that collapse have an "
    "effective rank near 1.",
)


def _lines(name: str, meaning: str, log_scale: bool = False) -> Figure:
    """A figure with a line for each objective, pair of objectives, modality or part of the model."""
    return Figure(name, meaning, DIAGNOSES, shown=("chart",), family=True, log_scale=log_scale, noiseless=True)


FIGURES = {
    "gradient_at_bridge": _lines("gradient at the bridge", "norm of each objective's gradient", log_scale=True),
    "gradient_cosine": _lines("cosine of gradients", "between the gradients of two objectives"),
    "effective_rank": _lines("effective rank of embeddings", "number of directions that they use"),
    "modality_gap": Figure(
        "modality gap", "between the means of image and text embeddings", DIAGNOSES, shown=("chart",), noiseless=True
    ),
    "update_ratio": _lines("update to weight ratio", "how far a step moves the weights of a part", log_scale=True),
}
"""What the names of ``Diagnosis.values`` and ``WeightsBefore.update_ratios`` are."""

NEGLIGIBLE = 1e-7
"""Singular values below this share of the largest are taken as 0: the square roots of what rounding leaves."""


@dataclass(frozen=True)
class Spread:
    """Sums over embeddings, from which their mean and singular values follow."""

    count: Tensor
    """float64[]."""
    sum: Tensor
    """float64[E]."""
    products: Tensor
    """float64[E, E]: the sum of the outer products of each embedding with itself."""

    @classmethod
    def of(cls, embeddings: Tensor) -> "Spread":
        """Of float[N, E], without gradient."""
        rows = embeddings.detach().double()
        return cls(rows.new_tensor(float(len(rows))), rows.sum(dim=0), rows.T @ rows)

    def mean(self) -> Tensor:
        """float64[E]."""
        return self.sum / self.count

    def effective_rank(self) -> float:
        """``exp(- sum_k p_k log p_k)`` with ``p_k = s_k / sum_j s_j`` (RankMe, arXiv:2210.02885), in [1, min(N, E)].

        The singular values ``s_k`` of the N embeddings (not centred) are the square roots of the eigenvalues of
        ``products``. 1 means that all lie on one line. The paper adds a small constant to each ``p_k``; we do not.
        """
        if not self.products.isfinite().all():
            return math.nan
        # On the CPU: the matrix is small, and accelerators are slow at this in float64.
        values = torch.linalg.eigvalsh(self.products.cpu()).clamp(min=0).sqrt()
        values = values[values > NEGLIGIBLE * values[-1]]
        shares = values / values.sum()
        return math.exp(-(shares * shares.log()).sum().item())


def modality_gap(image: Spread, text: Spread) -> float:
    """``|| mean image embedding - mean text embedding ||`` (arXiv:2203.02053), here of all images and all texts."""
    return torch.linalg.vector_norm(image.mean() - text.mean()).item()


@dataclass(frozen=True)
class Diagnosis:
    """Sums over a micro-batch, or (``joined``, ``over_ranks``) over more of the batch."""

    names: tuple[str, ...]
    """The n objectives."""
    gram: Tensor
    """float64[n, n]: dot products of the gradients that the (weighted) objectives have where they read the image."""
    image: Spread | None = None
    """None: nothing was embedded."""
    text: Spread | None = None

    @classmethod
    def of(
        cls,
        totals: Mapping[str, Tensor],
        seen: Sequence[Tensor],
        image: Tensor | None,
        text: Tensor | None,
        scale: Tensor | None = None,
    ) -> "Diagnosis":
        """Of one micro-batch, before its backward pass.

        Args:
            totals: each objective's share of the loss, weighted, with its graph.
            seen: what the objectives know of the images: float[B, N, D] tokens that the bridge reads and, if the
                encoder pools, float[B, Dp]. Gradients there are taken by ``autograd.grad``: no gradient of a parameter
                is made, and no hook of data parallelism runs. An objective that does not depend on them has gradient 0.
            image, text: embeddings float[B, E] and float[C, E], if there are any.
            scale: float32[], the loss scale that gradients need not to vanish in float16; the figures are without it.
        """
        gradients = [_gradients(total if scale is None else total * scale, seen) for total in totals.values()]
        gram = torch.zeros(len(gradients), len(gradients), dtype=torch.float64, device=seen[0].device)
        for i, first in enumerate(gradients):
            for j, second in enumerate(gradients[: i + 1]):
                gram[i, j] = gram[j, i] = _dot(first, second)
        if scale is not None:
            gram = gram / scale.double() ** 2
        spreads = [None if one is None else Spread.of(one) for one in (image, text)]
        return cls(tuple(totals), gram, *spreads)

    @classmethod
    def joined(cls, parts: Sequence["Diagnosis"]) -> "Diagnosis":
        """Of several micro-batches."""
        return parts[0]._with(torch.stack([part._flat() for part in parts]).sum(dim=0))

    def over_ranks(self) -> "Diagnosis":
        """Of all ranks, in one reduction."""
        return self._with(sum_over_ranks(self._flat()))

    def values(self) -> dict[str, float]:
        """The figures by name; one that is not defined (no texts, an objective without gradient) is left out."""
        norms = self.gram.diagonal().sqrt().tolist()
        found = {f"gradient_at_bridge/{name}": norm for name, norm in zip(self.names, norms, strict=True)}
        for i, first in enumerate(self.names):
            for j, second in enumerate(self.names[:i]):
                if norms[i] > 0 and norms[j] > 0:
                    found[f"gradient_cosine/{second}-{first}"] = self.gram[i, j].item() / (norms[i] * norms[j])
        known = {"image": self.image, "text": self.text}
        spreads = {name: spread for name, spread in known.items() if spread is not None and spread.count > 0}
        if len(spreads) == len(known):
            found["modality_gap"] = modality_gap(**spreads)
        return found | {f"effective_rank/{name}": spread.effective_rank() for name, spread in spreads.items()}

    def _tensors(self) -> list[Tensor]:
        spreads = [spread for spread in (self.image, self.text) if spread is not None]
        return [self.gram, *(tensor for spread in spreads for tensor in (spread.count, spread.sum, spread.products))]

    def _flat(self) -> Tensor:
        """float64[K]: all sums in one vector."""
        return torch.cat([tensor.flatten() for tensor in self._tensors()])

    def _with(self, flat: Tensor) -> "Diagnosis":
        """The same of other sums, given as ``_flat`` gives them."""
        own = self._tensors()
        parts = flat.split([tensor.numel() for tensor in own])
        gram, *rest = [part.view_as(tensor) for part, tensor in zip(parts, own, strict=True)]
        spreads = iter([Spread(*rest[i : i + 3]) for i in range(0, len(rest), 3)])
        image, text = (None if one is None else next(spreads) for one in (self.image, self.text))
        return replace(self, gram=gram, image=image, text=text)


def _gradients(total: Tensor, seen: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of float[] ``total`` with respect to each of ``seen``."""
    if not total.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in seen)
    return torch.autograd.grad(total, list(seen), retain_graph=True, allow_unused=True, materialize_grads=True)


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """float64[]: the sum over all elements of all tensors; one image's in at least float32, their sum in float64."""
    total = first[0].new_zeros((), dtype=torch.float64)
    for a, b in zip(first, second, strict=True):
        wide = torch.promote_types(a.dtype, torch.float32)
        total = total + (a.to(wide) * b.to(wide)).flatten(1).sum(dim=1).double().sum()
    return total


@dataclass(frozen=True)
class Undiagnosed:
    """The loss of a micro-batch, with its graph, and what a diagnosis of it looks at."""

    loss: Loss
    seen: tuple[Tensor, ...]
    """See ``Diagnosis.of``; none if no image was looked at as a whole."""
    image: Tensor | None
    """float[B, E]: embeddings, without gradient."""
    text: Tensor | None
    """float[C, E]: likewise."""

    @classmethod
    def of(cls, loss: Loss, output: ModelOutput) -> "Undiagnosed":
        """The loss, and what the model made that it is a loss of."""
        seen = tuple(tensor for tensor in (output.image_tokens, output.image_pooled) if tensor is not None)
        embeddings = (output.image_embedding, output.text_embedding)
        return cls(loss, seen, *(None if one is None else one.detach() for one in embeddings))

    def diagnosed(self, scale: Tensor | None = None) -> Loss:
        """The loss with its diagnosis, which costs a part of a backward pass for each objective. See ``Diagnosis.of``.

        Patch views alone leave nothing to look at, and the loss has no diagnosis then.
        """
        if not self.seen:
            return self.loss
        found = Diagnosis.of(self.loss.by_objective(), self.seen, self.image, self.text, scale)
        return replace(self.loss, diagnosis=found)


PROJECTIONS = ("image_projection", "text_projection", "text_norm")
"""Parts of a model that are shown as one, ``projections``."""


def part_of(name: str) -> str:
    """The part that a parameter of a training step belongs to: ``encoder`` of ``model.encoder.patches.weight``.

    Names that wrappers put in front do not count. What is not the model's is named by its first word: ``objective``.
    """
    words = [word for word in name.split(".") if word not in ("module", "_orig_mod")]
    part = words[1] if words[0] == "model" and len(words) > 1 else words[0]
    return "projections" if part in PROJECTIONS else part


class WeightsBefore:
    """A copy of the trainable weights of a module from before an optimizer step, to see how far it moves them."""

    def __init__(self, module: nn.Module) -> None:
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._pairs = [(part_of(name), p, p.detach().clone()) for name, p in trainable.items()]

    def update_ratios(self) -> dict[str, float]:
        """``|| w_after - w_before || / || w_before ||`` over the trainable weights of each part, by its name.

        A part whose weights were all 0 is left out.
        """
        moved: defaultdict[str, list[Tensor]] = defaultdict(list)
        before: defaultdict[str, list[Tensor]] = defaultdict(list)
        for part, parameter, copy in self._pairs:
            moved[part].append(full_tensor(torch.linalg.vector_norm(parameter.detach() - copy)))
            before[part].append(full_tensor(torch.linalg.vector_norm(copy)))
        sizes = {part: torch.linalg.vector_norm(torch.stack(norms)).item() for part, norms in before.items()}
        steps = {part: torch.linalg.vector_norm(torch.stack(norms)).item() for part, norms in moved.items()}
        return {f"update_ratio/{part}": steps[part] / size for part, size in sizes.items() if size > 0}
