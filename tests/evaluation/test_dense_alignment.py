"""Pointing and IoU against plain loops, and on maps and splits whose right values are known."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.figure import declared
from mmlm.data.scenes import Scenes
from mmlm.evaluation.dense_alignment import DenseAlignment, ious, pointing
from mmlm.evaluation.patch_similarity import patch_embeddings, resized
from mmlm.evaluation.split import EncodedSplit
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.model import ImageTextModel

COUNT = 10


@pytest.fixture
def source() -> Scenes:
    return Scenes("seen", COUNT, size=16, wordings=1)


@pytest.fixture
def split(make_split, source) -> EncodedSplit:
    encoded = make_split([source[index] for index in range(COUNT)], 4, languages=("en",))
    return replace(encoded, source=source)


def test_pointing_against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    maps, masks = torch.rand(6, 2, 2, generator=generator), (torch.rand(6, 8, 8, generator=generator) > 0.7).float()
    image = torch.tensor([0, 0, 0, 4, 4, 9])
    right, chance = pointing(maps, masks, image)
    for p in range(6):
        cells = [(i, j) for i in range(2) for j in range(2)]
        covered = {
            (q, cell): masks[q, 4 * cell[0] : 4 * cell[0] + 4, 4 * cell[1] : 4 * cell[1] + 4].mean().item()
            for q in range(6)
            for cell in cells
        }
        rivals = [q for q in range(6) if image[q] == image[p]]
        own = [c for c in cells if covered[p, c] == max(covered[q, c] for q in rivals) > 0]
        assert right[p].item() == (max(cells, key=lambda c, p=p: maps[p][c].item()) in own)
        assert chance[p].item() == len(own) / 4


def test_equal_patches_share():
    masks = torch.zeros(1, 4, 4)
    masks[0, :2, :2] = 1
    right, chance = pointing(torch.ones(1, 2, 2), masks, torch.tensor([3]))
    assert right.tolist() == chance.tolist() == [0.25]


def test_the_intersection_over_the_union():
    one = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]]).bool()
    other = torch.tensor([[[1, 0], [1, 0]], [[0, 0], [0, 0]], [[0, 1], [1, 1]]]).bool()
    assert ious(one, other).tolist() == [pytest.approx(1 / 3), 1, 0]


def test_maps_grow_between_the_middles_of_patches():
    grown = resized(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), 4)
    assert grown[0, 0].tolist() == [0, 0.25, 0.75, 1]


def test_a_patch_is_embedded_as_if_it_were_alone(split):
    images = split.batches[0].batch.images
    found = patch_embeddings(split.model, images)
    rows, columns = split.model.encoder.grid
    assert found.shape == (len(images), rows, columns, 16)
    tokens = split.model.encoder(images).tokens
    alone = split.model.bridge(tokens[1:2, 5:6]).pooled
    assert torch.allclose(
        found[1].flatten(0, 1)[5], F.normalize(split.model.image_projection(alone)[0], dim=0), atol=1e-6
    )
    assert patch_embeddings(split.model, images[:0]).shape == (0, rows, columns, 16)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_an_encoder_that_pools_has_to_pool_by_the_mean(split, pool):
    encoder = TimmVit(16, width=32, depth=1, num_heads=2, patch_size=4, pool=pool)
    own = split.model
    model = ImageTextModel(encoder, None, None, 16, text_encoder=_Tower()).eval()
    images = split.batches[0].batch.images
    if pool == "cls":
        with pytest.raises(UserError, match=r"use encoder\.pool=mean"):
            patch_embeddings(model, images)
        return
    patches = patch_embeddings(model, images).flatten(1, 2)
    unscaled = model.image_projection(encoder(images).pooled)
    mean = model.image_projection(encoder(images).tokens[:, encoder.num_prefix_tokens :]).mean(dim=1)
    assert torch.allclose(unscaled, mean, atol=1e-5)
    assert patches.shape[1] == own.encoder.grid[0] * own.encoder.grid[1]


class _Tower(torch.nn.Module):
    """A text tower that is never called."""

    width, vocabulary = 8, None


def test_a_model_that_knows_points_right(split, source, monkeypatch):
    """Patches that are the mean of their texts, weighed by how much of them a text's region covers."""
    monkeypatch.setattr(
        "mmlm.evaluation.dense_alignment.patch_embeddings", lambda model, images: _knowing(split, source, images)
    )
    found = dict(DenseAlignment(language="en")(split))
    assert found["regions"] == 2 * COUNT
    assert found["pointing"] == 1
    assert found["pointing/chance"] < 0.6
    assert found["iou"] > 2 * found["iou/chance"]
    assert found["iou/low"] < found["iou"] < found["iou/high"]


def _knowing(split: EncodedSplit, source: Scenes, images: torch.Tensor) -> torch.Tensor:
    number = next(n for n, item in enumerate(split.batches) if torch.equal(item.batch.images, images))
    made = []
    for id in split.batches[number].batch.ids:
        regions = source.regions(id)
        texts = F.normalize(split.embed_texts([region.text for region in regions], "en"), dim=1)
        # Directions that no other text has: random texts lie close together.
        apart = torch.linalg.pinv(texts.double())
        cover = torch.stack([F.adaptive_avg_pool2d(region.mask[None], (4, 4))[0] for region in regions]).double()
        made.append(torch.einsum("dk,kij->ijd", apart, cover))
    return torch.stack(made)


def test_random_weights_yield_declared_shares(split):
    evaluator = DenseAlignment(language="en")
    found = dict(evaluator(split))
    assert all(0 <= value <= 1 for name, value in found.items() if name != "regions")
    assert declared(evaluator.figures, "pointing").chance == "pointing/chance"
    again = dict(evaluator(replace(split)))
    assert found == again


def test_batches_change_nothing(make_split, source, split):
    whole = replace(make_split([source[n] for n in range(COUNT)], COUNT, languages=("en",)), source=source)
    one, other = (dict(DenseAlignment(language="en")(each)) for each in (whole, split))
    assert one == pytest.approx(other, abs=1e-4)


def test_data_that_do_not_tell_where_things_are_are_refused(split):
    with pytest.raises(UserError, match="do not tell where things are; use data=scenes"):
        list(DenseAlignment()(replace(split, source=None)))
    with pytest.raises(ArgumentError, match="most: 0 must be at least 1"):
        DenseAlignment(most=0)
