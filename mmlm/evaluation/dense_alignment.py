"""Dense alignment: do the patches that a text names lie nearest to it? Pointing and zero-shot segmentation."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, FigureGroup
from mmlm.core.intervals import share_interval
from mmlm.core.keyed_random import keyed_integer, stable_hash
from mmlm.core.ranges import check_counts
from mmlm.data.regions import HasRegions
from mmlm.evaluation.items import spaced
from mmlm.evaluation.patch_similarity import patch_embeddings, resized
from mmlm.evaluation.requires import Requires
from mmlm.evaluation.split import EncodedBatch, EncodedSplit

GROUP = FigureGroup(
    "Dense alignment",
    "Do the patches of an image that a text names lie nearest to the text? The model has never been told where.",
)
THRESHOLDS = 40
"""Similarities that a threshold is chosen from."""
TIE = 1e-6
"""Similarities that differ by less are equal."""


class DenseAlignment:
    """Pointing accuracy and mean intersection over union of the regions that a source knows (``HasRegions``).

    - ``pointing``: the patch most similar to a region's text is one that the region covers more of than any other
      region of the image does (Zhang et al., arXiv:1608.00507, with patches in place of pixels). Equal patches share.
    - ``iou``: a pixel is given to the text of the image that it is most similar to, if that similarity is above a
      threshold, else to none. The threshold is chosen on the images of one half, drawn by their ids, for the other
      half. Similarities of pixels are those of patches, bilinearly between.

    Masks are scaled to the size of the run's images, so that the transform may not cut (``transform.trim: null``) and
    images have to be square.

    Args:
        most: images that are scored, evenly spaced over the split.
        seed: which half an image belongs to.
        language: of the texts.

    Raises:
        ArgumentError: ``most`` below 1.
    """

    needs_decoder = False
    figures: Mapping[str, Figure] = {
        "pointing": Figure(
            "Pointing",
            "the patch nearest to a text is one of those that it names",
            GROUP,
            title="Dense alignment, pointing",
            share=True,
            higher_is_better=True,
            chance="pointing/chance",
            low="pointing/low",
            high="pointing/high",
            shown=("table", "chart", "compare"),
        ),
        "iou": Figure(
            "Mean IoU",
            "intersection over union of the pixels that a text names and those that are nearest to it",
            GROUP,
            title="Dense alignment, mean IoU",
            share=True,
            higher_is_better=True,
            chance="iou/chance",
            low="iou/low",
            high="iou/high",
            shown=("table", "chart", "compare"),
        ),
        "regions": Figure("Regions", "how many were looked for", GROUP, shown=("table",)),
    }

    def __init__(self, most: int = 500, seed: int = 0, language: str | None = None) -> None:
        check_counts({"most": most})
        self.most, self.seed, self.language = most, seed, language
        self.requires = Requires(own_texts=True)

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields ``pointing`` and ``iou``, shares in [0, 1], with intervals over images, and what chance gives.

        For pointing, chance is a patch at random; for the IoU, it is that of marking every pixel. Raises UserError for
        a source that knows no regions.
        """
        if not isinstance(split.source, HasRegions):
            raise UserError(f"the data of the split '{split.name}' do not tell where things are; use data=scenes")
        rows = spaced(self.most, len(split.image_ids))
        of_image = [(row, split.source.regions(split.image_ids[row])) for row in rows]
        known = [(row, region) for row, regions in of_image for region in regions]
        if not known:
            raise UserError(f"no image of the split '{split.name}' has a region that a text names")
        number = {text: place for place, text in enumerate(dict.fromkeys(region.text for _, region in known))}
        texts = split.embed_texts(tuple(number), self.language)
        image = torch.tensor([row for row, _ in known])
        text = torch.tensor([number[region.text] for _, region in known])
        maps = _maps(split, texts, image, text)
        # A rank has the pixels of its own batches only, and may have none.
        size = max(split.over_batches(lambda item: item.batch.images.shape[-1]))
        masks = torch.stack([_scaled(region.mask, size) for _, region in known])
        cluster = image.tolist()
        right, by_chance = pointing(maps, masks, image)
        yield "regions", float(len(known))
        yield from _with_ends("pointing", right, cluster)
        yield "pointing/chance", by_chance.mean().item()
        yield from _with_ends("iou", self._ious(split, resized(maps, size), masks >= 0.5, image), cluster)
        yield "iou/chance", (masks >= 0.5).double().mean(dim=(1, 2)).mean().item()

    def _ious(self, split: EncodedSplit, maps: Tensor, masks: Tensor, image: Tensor) -> Tensor:
        """float64[P]: the IoU of each region, with the threshold that is best on the other half of the images."""
        ids = [split.image_ids[row] for row in image.tolist()]
        half = torch.tensor([keyed_integer(self.seed, stable_hash(id)) % 2 for id in ids]).bool()
        winning = maps >= _highest(maps, image) - TIE
        found = torch.zeros(len(maps), dtype=torch.float64)
        for own in (half, ~half):
            # Without any image in the other half, nothing can be chosen there.
            chosen = ~own if (~own).any() else own
            marks = maps[chosen].flatten().sort().values
            levels = marks[torch.linspace(0, len(marks) - 1, THRESHOLDS).long()].tolist()
            best = max(levels, key=lambda level: ious((winning & (maps >= level))[chosen], masks[chosen]).mean().item())
            found[own] = ious((winning & (maps >= best))[own], masks[own])
        return found


def _maps(split: EncodedSplit, texts: Tensor, image: Tensor, text: Tensor) -> Tensor:
    """float64[P, rows, columns]: the similarity of the patches of ``image[p]`` (a row) with ``texts[text[p]]``."""

    def of_batch(item: EncodedBatch) -> Tensor:
        own = (image >= item.first) & (image < item.rows.stop)
        rows = (image[own] - item.first).to(item.batch.images.device)
        patches = patch_embeddings(split.model, item.batch.images).double()[rows]
        return torch.einsum("pijd,pd->pij", patches, texts[text[own].to(texts.device)].double())

    # The regions stand in the order of their images, and so do the batches.
    return torch.cat(split.over_batches(of_batch)).cpu()


def pointing(maps: Tensor, masks: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """float64[P] twice: whether the highest patch of each map is the region's own, and the share of patches that are.

    ``maps`` float[P, rows, columns]; ``masks`` float[P, S, S]; ``image`` int64[P], the image of each region.
    """
    covered = F.adaptive_avg_pool2d(masks[:, None].double(), (maps.shape[1], maps.shape[2]))[:, 0].flatten(1)
    own = (covered >= _highest(covered, image) - TIE) & (covered > 0)
    flat = maps.flatten(1)
    highest = flat >= flat.amax(dim=1, keepdim=True) - TIE
    return (highest & own).sum(dim=1) / highest.sum(dim=1).double(), own.double().mean(dim=1)


def ious(marked: Tensor, masks: Tensor) -> Tensor:
    """float64[P]: the intersection over the union of bool[P, S, S] twice; 1 where both are empty."""
    both, either = ((marked & masks).sum(dim=(1, 2)), (marked | masks).sum(dim=(1, 2)))
    return torch.where(either > 0, both.double() / either.clamp(min=1), 1.0)


def _highest(values: Tensor, image: Tensor) -> Tensor:
    """For each of float[P, ...] the highest value among all regions of the same image, place by place."""
    _, number = image.unique(return_inverse=True)
    flat = values.flatten(1)
    best = flat.new_full((int(number.max()) + 1, flat.shape[1]), -torch.inf)
    best.scatter_reduce_(0, number[:, None].expand_as(flat), flat, "amax")
    return best[number].view_as(values)


def _scaled(mask: Tensor, size: int) -> Tensor:
    """float32[H, W] -> float32[size, size], by means over pixels."""
    return F.interpolate(mask[None, None], size=(size, size), mode="area")[0, 0]


def _with_ends(name: str, values: Tensor, cluster: list[int]) -> Iterator[tuple[str, float]]:
    low, high = share_interval(values.tolist(), cluster)
    yield from zip((name, f"{name}/low", f"{name}/high"), (values.mean().item(), low, high), strict=True)
