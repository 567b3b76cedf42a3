"""Self-distillation: the embedding of a crop predicts what an averaged teacher sees in the whole image."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.batch import Batch
from mmlm.core.distributed import sum_over_ranks
from mmlm.core.errors import ArgumentError
from mmlm.core.figure import Figure, loss_term
from mmlm.core.keyed_random import stream
from mmlm.core.loss import Loss, Term
from mmlm.core.model_output import ModelOutput, ModelSizes
from mmlm.core.ranges import check_counts
from mmlm.core.views import WHOLE_IMAGE, ImageView, StepKey, View, ViewInputs
from mmlm.objectives.objective import Objective, required

_STREAM = stream("mmlm.objectives.self_distillation")

DRAWS = 4
"""Random numbers for one crop: its area, its shape, its horizontal and its vertical position."""
_MOST_OBLONG = math.log(4 / 3)
"""The largest log of a crop's ratio of width to height, either way."""


def crops(images: Tensor, draws: Tensor, min_area: float, max_area: float) -> Tensor:
    """uint8[B, 3, S, S] -> the same shape: one crop of each image, resized to S pixels (bilinear).

    ``draws`` float64[B, 4] in [0, 1) decide the crops. A crop has between ``min_area`` and ``max_area`` of the image's
    area and a width-to-height ratio between 3/4 and 4/3 (as in Inception's random crops, arXiv:1409.4842); its sides
    are at most the image's.
    """
    if len(images) == 0:
        return images
    area = min_area + (max_area - min_area) * draws[:, 0]
    ratio = ((2 * draws[:, 1] - 1) * _MOST_OBLONG).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    # The crop's centre, in the coordinates of grid_sample: an image reaches from -1 to 1.
    left, top = (1 - width) * (2 * draws[:, 2] - 1), (1 - height) * (2 * draws[:, 3] - 1)
    zero = torch.zeros_like(width)
    theta = torch.stack([width, zero, left, zero, height, top], dim=1).unflatten(1, (2, 3)).float()
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    found = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.round().to(torch.uint8)


LOCAL_CROPS = ImageView("local crops")


class PrototypeHead(nn.Module):
    """DINO's projection head: an MLP into a bottleneck, whose cosine with each of K learned prototypes is the score."""

    def __init__(self, width: int, hidden_width: int, bottleneck_width: int, num_prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden_width),
            nn.GELU(),
            nn.Linear(hidden_width, hidden_width),
            nn.GELU(),
            nn.Linear(hidden_width, bottleneck_width),
        )
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, bottleneck_width))

    def forward(self, embedding: Tensor) -> Tensor:
        """float[R, E] -> float32[R, K] in [-1, 1]."""
        bottleneck = self.mlp(embedding)
        # Not under autocast: divided by a temperature of 0.04, the rounding of bfloat16 cosines would be a tenth.
        with torch.autocast(embedding.device.type, enabled=False):
            bottleneck = bottleneck.to(self.prototypes.dtype)
            return F.normalize(bottleneck, dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class SelfDistillation(Objective):
    """Local-to-global consistency (DINO, arXiv:2104.14294; SILC, arXiv:2310.13355; SigLIP 2, arXiv:2502.14786)::

        p[b]    = softmax((teacher_head(teacher(image[b])) - center) / teacher_temperature)
        q[b, l] = softmax(head(student(crop_l(image[b]))) / student_temperature)
        loss    = - mean_{b, l} sum_k p[b, k] log q[b, l, k]

    The teacher is the moving average of the model and of the head. It sees the whole image, as the student's other
    objectives do; the student sees ``num_local`` crops, drawn by (seed, step, image). A head scores the image embedding
    against K prototypes. ``center`` is a running mean of the teacher's scores over *whole* batches::

        center <- center_momentum * center + (1 - center_momentum) * mean_b teacher_head(teacher(image[b]))

    It is updated once a step, after the last micro-batch, from sums over all ranks, so it does not depend on the number
    of ranks or micro-batches. Without a centre one prototype would win for every image. In the first steps the centre
    is the plain mean of all steps so far, so that it does not start from 0.

    Where we differ: crops have the model's image size (in the papers they are smaller); the head reads the embedding
    that texts are compared with, not the vector before its projection; there is one whole view. The other half of
    SigLIP 2's last phase is ``MaskedPrediction``. To begin late, as SigLIP 2 does at 80% of training, use a weight of
    ``mmlm.objectives.weights.Ramp``.

    Figure ``entropy``: that of the teacher's distribution, in nats. At ln K the teacher tells no image from another.

    Args:
        num_local: number of crops of an image. min_area, max_area: share of the image's area that a crop has.
        num_prototypes, hidden_width, bottleneck_width: K and the widths inside the head. teacher_temperature,
        student_temperature: the lower, the sharper the distribution; the teacher's has to be lower. center_momentum:
        share of the old centre in the new one, in [0, 1).

    Raises:
        UserError: a setting out of its range.
    """

    views = frozenset({LOCAL_CROPS})
    needs_teacher = True
    needs_average = True
    figures: Mapping[str, Figure] = {
        "self_distillation": loss_term("cross-entropy of crops with the teacher's view of the whole image, nats"),
        "entropy": Figure("entropy", "of the teacher's distribution, nats", shown=("chart", "console")),
    }

    center: Tensor
    """float32[K]: the running mean of the teacher's scores."""
    steps: Tensor
    """int64[]: number of steps that have moved the centre."""

    def __init__(
        self,
        num_local: int = 2,
        min_area: float = 0.1,
        max_area: float = 0.4,
        num_prototypes: int = 1024,
        hidden_width: int = 512,
        bottleneck_width: int = 128,
        teacher_temperature: float = 0.04,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        sizes = {
            "num_local": num_local,
            "num_prototypes": num_prototypes,
            "hidden_width": hidden_width,
            "bottleneck_width": bottleneck_width,
        }
        check_counts(sizes)
        if not 0 < min_area <= max_area <= 1:
            raise ArgumentError(
                f"min_area: {min_area} and max_area={max_area} must be shares in order, above 0, at most 1"
            )
        if not 0 < teacher_temperature < student_temperature < math.inf:
            raise ArgumentError(
                f"teacher_temperature: {teacher_temperature} must be above 0 and below student_temperature="
                f"{student_temperature}, which is finite, or there is nothing to learn from it"
            )
        if not 0 <= center_momentum < 1:
            raise ArgumentError(f"center_momentum: {center_momentum} must lie in [0, 1)")
        self.num_local, self.min_area, self.max_area = num_local, min_area, max_area
        self.num_prototypes, self.hidden_width, self.bottleneck_width = num_prototypes, hidden_width, bottleneck_width
        self.teacher_temperature, self.student_temperature = teacher_temperature, student_temperature
        self.center_momentum = center_momentum
        self._sums: list[Tensor] = []
        """float32[K + 1] of each micro-batch of this step: the sum of the teacher's scores, the number of images."""

    @property
    def teacher_views(self) -> frozenset[View]:
        """The whole image, from which the targets are made."""
        return frozenset({WHOLE_IMAGE})

    def connect(self, sizes: ModelSizes) -> None:
        """Makes the head and the centre."""
        widths = (sizes.embedding_width, self.hidden_width, self.bottleneck_width)
        self.head = PrototypeHead(*widths, self.num_prototypes)
        self.register_buffer("center", torch.zeros(self.num_prototypes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def draw(self, batch: Batch, step_key: StepKey) -> ViewInputs:
        """uint8[num_local * B, 3, S, S]: the first crop of every image, then the second, and so on."""
        draws = step_key.uniform(batch.image_key, DRAWS * self.num_local, _STREAM).split(DRAWS, dim=1)
        return {LOCAL_CROPS: torch.cat([crops(batch.images, one, self.min_area, self.max_area) for one in draws])}

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """The number of images."""
        return {"images": torch.tensor(len(batch.images), device=batch.tokens.device)}

    def project(self, output: ModelOutput) -> ModelOutput:
        """Adds float32[R, K] for each view that was run: the scores of the student's crops or the teacher's images."""
        views = [view for view in (LOCAL_CROPS, WHOLE_IMAGE) if view in output.view_embedding]
        scores: dict[View, Tensor] = {view: self.head(output.view_embedding[view]) for view in views}
        return replace(output, projected={**output.projected, **scores})

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """The student's scores of crops float32[num_local * B, K] and the teacher's of images [B, K] -> one term."""
        teacher = required(output.teacher, "teacher").projected[WHOLE_IMAGE]
        own = output.projected[LOCAL_CROPS].reshape(self.num_local, *teacher.shape)
        # An evaluation, or a first pass of two, does not move the centre.
        if self.training and torch.is_grad_enabled():
            self._sums.append(torch.cat([teacher.sum(dim=0), teacher.new_tensor([len(teacher)])]))
        wanted_log = ((teacher - self.center) / self.teacher_temperature).log_softmax(dim=-1)
        wanted = wanted_log.exp()
        cross = -(wanted * (own / self.student_temperature).log_softmax(dim=-1)).sum()
        images = counts["images"].to(cross.dtype)
        entropy = -(wanted * wanted_log).sum()
        return Loss({"self_distillation": Term(cross, images * self.num_local)}, {"entropy": Term(entropy, images)})

    @torch.no_grad()
    def finish(self) -> None:
        """Moves the centre by the mean score over all micro-batches and ranks of the step."""
        if not self._sums:
            return
        total, count = sum_over_ranks(torch.stack(self._sums).sum(dim=0)).split([self.num_prototypes, 1])
        self._sums.clear()
        # 1 / (steps + 1) makes a plain mean, until it falls below the rate of the running mean.
        rate = (1 / (self.steps + 1)).clamp(min=1 - self.center_momentum).to(self.center.dtype)
        moved = self.center.lerp(total / count, rate)
        # NaN if no rank has an image, or if the step fails: such a step leaves the centre, which is saved, as it is.
        seen = moved.isfinite().all()
        self.center.copy_(torch.where(seen, moved, self.center))
        self.steps += seen
