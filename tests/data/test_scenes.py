"""Drawn scenes: what is said is what is drawn, nothing held out is trained on, and false captions are false."""

import hashlib
import re
from collections import Counter
from itertools import islice

import pytest
import torch

from mmlm.core.errors import ArgumentError
from mmlm.data.contrasts import HasContrasts
from mmlm.data.scene_drawing import COLOURS, EXTENTS, SHAPES, SIZES, Drawn, coverage
from mmlm.data.scenes import COUNTS, SEEN, UNSEEN, WORDINGS, Group, Scene, Scenes

MANY = 400


def combinations(scene: Scene) -> set[tuple[str, str]]:
    return {(group.colour, group.shape) for group in (scene.first, scene.second)}


def scenes(split: str, **settings: object) -> Scenes:
    return Scenes(split, **{"examples": MANY, **settings})


def test_the_scenes_are_these_on_every_machine():
    """Pixels and words of the first twenty of each split, as they were when the source was written."""
    digest = hashlib.sha256()
    for split in ("train", "seen", "unseen"):
        source = scenes(split)
        for index in range(20):
            example = source[index]
            said = repr([(caption.text, caption.language) for caption in example.captions])
            digest.update(example.image.numpy().tobytes() + said.encode() + example.id.encode())
    assert digest.hexdigest()[:16] == "4ebfc6adf89d2407"


def test_no_training_scene_has_a_combination_that_is_held_out():
    assert len(UNSEEN) == len(COLOURS)
    assert {colour for colour, _ in UNSEEN} == set(COLOURS)
    assert {shape for _, shape in UNSEEN} == set(SHAPES)
    assert len(SEEN) + len(UNSEEN) == len(COLOURS) * len(SHAPES)
    for split in ("train", "seen"):
        found = set().union(*(combinations(scenes(split).scene(index)) for index in range(MANY)))
        assert found == set(SEEN)
    for index in range(MANY):
        assert len(combinations(scenes("unseen").scene(index)) & set(UNSEEN)) == 1


def test_every_attribute_comes_about_equally_often():
    source = scenes("train", examples=3000)
    for name, values in source.attributes().items():
        counts = Counter(values.values())
        kinds = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "count": COUNTS, "relation": WORDINGS}[name]
        assert len(counts) == len(kinds)
        # Shapes lack one or two of six colours, so their shares are not quite equal.
        assert all(0.75 < count * len(kinds) / 3000 < 1.25 for count in counts.values()), (name, counts)


def test_the_groups_differ_in_colour_and_in_shape():
    for split in ("train", "unseen"):
        for index in range(MANY):
            scene = scenes(split).scene(index)
            assert scene.first.colour != scene.second.colour
            assert scene.first.shape != scene.second.shape


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_what_is_said_is_what_is_drawn(split):
    """Where a group's mask covers a pixel whole, the pixel has the colour that is said; the boxes hold the masks."""
    source = scenes(split)
    for index in range(60):
        scene, drawing = source.scene(index), source.drawing(index)
        assert torch.equal(drawing.image, source[index].image)
        middles = []
        for group, mask, boxes in zip((scene.first, scene.second), drawing.masks, drawing.boxes, strict=True):
            whole = mask == 1
            shown = drawing.image[:, whole].double().mean(dim=1)
            distance = {name: (shown - torch.tensor(colour).double()).abs().max() for name, colour in COLOURS.items()}
            assert min(distance, key=distance.get) == group.colour
            assert len(boxes) == group.count
            rows, columns = (mask >= 0.5).nonzero().double().add(0.5).unbind(dim=1)
            left, upper, right, lower = torch.tensor(boxes).unbind(dim=1)
            inside = (columns[:, None] >= left - 0.5) & (columns[:, None] <= right + 0.5)
            inside &= (rows[:, None] >= upper - 0.5) & (rows[:, None] <= lower + 0.5)
            assert (inside.sum(dim=1) == 1).all(), "every pixel belongs to one shape"
            assert inside.any(dim=0).all()
            assert min(left.min(), upper.min()) >= 0
            assert max(right.max(), lower.max()) <= 32
            middles.append(torch.stack([columns, rows], dim=1).mean(dim=0))
        along = 0 if scene.relation == "left of" else 1
        assert middles[0][along] < 16 < middles[1][along]


def test_the_boxes_are_those_of_the_shapes():
    for shape in SHAPES:
        drawn = Drawn(shape, (0, 0, 0), 50.0, 51.0, 30.0)
        rows, columns = (coverage(drawn, 100) > 0.5).nonzero()
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == pytest.approx(drawn.box, abs=1)
        assert set(EXTENTS) == set(SHAPES)


def test_a_larger_picture_is_the_same_scene():
    small, large = scenes("train").drawing(3), scenes("train", size=64).drawing(3)
    halved = torch.nn.functional.avg_pool2d(large.image.double(), 2)
    assert (halved - small.image).abs().max() < 40
    assert (halved - small.image).abs().mean() < 1


def test_captions_are_said_in_several_ways_drawn_for_each_scene():
    source = scenes("train", wordings=2)
    frames = Counter()
    for texts in source.texts():
        one, other = (caption.text for caption in texts.captions)
        assert one != other
        frames[re.sub(r"(a|two|three) (small|large) \w+ \w+", "_", one)] += 1
    assert len(frames) == 10
    assert min(frames.values()) > MANY / 10 / 2
    scene = Scene(Group("red", "cross", "small", 2), Group("blue", "ring", "large", 1), "above")
    assert scene.caption(0) == "two small red crosses above a large blue ring"
    assert scene.caption(2) == "a large blue ring below two small red crosses"


def test_false_captions_are_false_and_differ_in_what_they_say():
    source = scenes("unseen")
    assert isinstance(source, HasContrasts)
    contrasts = source.contrasts()
    kinds = Counter()
    for index, texts in enumerate(source.texts()):
        scene = source.scene(index)
        true_here = {scene.caption(wording) for wording in range(5)}
        for contrast in contrasts[texts.id]:
            kinds[contrast.kind] += 1
            assert contrast.true == texts.captions[0].text
            assert contrast.false not in true_here
        false = scene.false()
        assert false["swap_place"] == Scene(scene.second, scene.first, scene.relation)
    assert kinds["swap_colour"] == kinds["swap_shape"] == kinds["swap_place"] == kinds["replace_count"] == MANY
    assert MANY / 3 < kinds["swap_size"] < kinds["swap_count"] < MANY


def test_a_swap_of_colours_leaves_the_bag_of_words_as_it_is():
    for contrast in (one for of_image in scenes("seen").contrasts().values() for one in of_image):
        one, other = (sorted(re.findall(r"\w+", text)) for text in (contrast.true, contrast.false))
        same = one == other
        assert same or contrast.kind not in ("swap_colour", "swap_size", "swap_place")
        assert not same or contrast.kind != "replace_count"


def test_false_captions_of_seen_scenes_have_no_combination_that_gives_them_away():
    unseen = [f"{colour} {shape}" for colour, shape in UNSEEN]
    found = [one for of_image in scenes("seen").contrasts().values() for one in of_image]
    assert len(found) > 4 * MANY
    assert not [one for one in found for pair in unseen if pair in one.false]


def test_equal_scenes_are_positives_and_splits_and_seeds_differ():
    source = scenes("train")
    names = [texts.concept for texts in source.texts()]
    assert names == [source.scene(index).name for index in range(MANY)]
    first = {(split, seed): scenes(split, seed=seed)[0] for split in ("train", "seen") for seed in (0, 1)}
    assert len({example.id for example in first.values()}) == 4
    assert len({example.image.numpy().tobytes() for example in first.values()}) == 4


def test_listing_and_reading_agree():
    source = scenes("train", wordings=3)
    for index, texts in enumerate(islice(source.texts(), 50)):
        example = source[index]
        assert (texts.id, texts.captions, texts.concept) == (example.id, example.captions, example.concept)
        assert source.index_of(texts.id) == index
    with pytest.raises(IndexError):
        source[MANY]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"split": "test"}, "split: 'test' is no split of the scenes; choose one of train, seen, unseen"),
        ({"examples": 0}, "examples: 0 must be at least 1"),
        ({"size": 8}, "size: 8 must be at least 16"),
        ({"wordings": 6}, "wordings: 6 must be at most 5, the ways to say a relation"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ArgumentError) as error:
        Scenes(**settings)
    assert str(error.value) == told
