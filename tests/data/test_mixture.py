"""Several sources as one: proportions, ids and positives, and a run that goes on in the middle of an epoch."""

from collections import Counter
from itertools import islice

import pytest
import torch

from mmlm import train
from mmlm.core.errors import STOPPED, ArgumentError, CorruptImage, UserError
from mmlm.data.mixture import Mixture
from mmlm.data.order import EpochOrder
from mmlm.experiment.config_checks import check_config
from mmlm.experiment.run_identity import run_folder
from tests.conftest import IMAGE_SIZE, write_shapes
from tests.data.pictures import Pictures, write_folder
from tests.data.test_loader import make_loader
from tests.data.test_resume_positions import SEED, Layout, assert_continues, samples_of
from tests.data.test_resume_positions import tokenizer as tokenizer
from tests.run.test_resume import RANDOM, assert_same_runs, interrupt_at


def test_an_epoch_has_every_example_as_often_as_its_source_passes():
    mixture = Mixture({"few": Pictures(3), "many": Pictures(5), "once": Pictures(2)}, {"few": 4, "many": 2})
    ids = [mixture[index].id for index in range(len(mixture))]
    assert len(mixture) == len(ids) == 4 * 3 + 2 * 5 + 2
    assert Counter(Counter(ids).values()) == {4: 3, 2: 5, 1: 2}
    assert Counter(name.split("/")[0] for name in ids) == {"few": 12, "many": 10, "once": 2}


def epochs_of(mixture: Mixture, count: int, seed: int = 0) -> list[list[str]]:
    """The ids of some epochs, in order."""
    order = EpochOrder(mixture, seed)
    size = order.examples_per_epoch
    return [
        [mixture[index].id for index in order.at(torch.arange(size) + epoch * size).indices.tolist()]
        for epoch in range(count)
    ]


def by_source(ids: list[str]) -> dict[str, int]:
    return dict(Counter(name.split("/")[0] for name in ids))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"weights": {"few": 1, "many": 1}}, {"few": 7, "many": 6}),  # of two equal remainders, that of the first
        ({"weights": {"few": 3, "many": 1}, "examples": 20}, {"few": 15, "many": 5}),
        ({"weights": {"few": 1, "many": 99}, "examples": 10}, {"few": 1, "many": 9}),  # never none at all
        ({"weights": {"few": 3, "many": 1}, "examples": 20, "most_passes": 2}, {"few": 6, "many": 14}),
        ({"weights": {"few": 1, "many": 1}, "examples": 90, "most_passes": 1.5}, {"few": 4, "many": 15}),
        ({"temperature": 1.0}, {"few": 3, "many": 10}),
        ({"temperature": 1e9, "examples": 12}, {"few": 6, "many": 6}),
        ({"temperature": 2.0, "examples": 100}, {"few": 35, "many": 65}),  # 3**.5 : 10**.5
        ({"passes": {"few": 2}}, {"few": 6, "many": 10}),
    ],
)
def test_every_epoch_has_the_shares_that_were_asked_for(arguments, expected):
    mixture = Mixture({"few": Pictures(3), "many": Pictures(10)}, **arguments)
    assert mixture.examples_per_epoch == sum(expected.values())
    shares = [by_source(ids) for ids in epochs_of(mixture, 4)]
    assert shares == [expected] * 4


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_batch_says_how_many_examples_came_from_where(ranks, tokenizer):
    mixture = Mixture({"few": Pictures(3), "many": Pictures(10)}, weights={"few": 1, "many": 2}, examples=12)
    loaders = [make_loader(tokenizer, mixture, 6, rank=rank, world_size=ranks) for rank in range(ranks)]
    for batches in islice(zip(*loaders, strict=True), 4):
        told = sum((Counter(batch.tally.by_source) for batch in batches), Counter())
        assert told == by_source([name for batch in batches for name in batch.ids])


def test_no_example_comes_again_before_all_others_of_its_source_have_come():
    mixture = Mixture({"few": Pictures(3), "many": Pictures(10)}, weights={"few": 4, "many": 3}, examples=14)
    counts: Counter[str] = Counter()
    for ids in epochs_of(mixture, 15):  # 8 of few and 6 of many: neither is a number of whole passes
        counts.update(ids)
        for source in ("few", "many"):
            of_source = [counts[f"{source}/picture/{i}"] for i in range(3 if source == "few" else 10)]
            assert max(of_source) - min(of_source) <= 1
    assert by_source(list(counts.elements())) == {"few": 120, "many": 90}


def test_places_of_an_epoch_have_indices_of_their_own_and_seeds_another_choice():
    mixture = Mixture({"few": Pictures(3), "many": Pictures(10)}, weights={"few": 1, "many": 1}, examples=11)
    for epoch in range(12):
        indices = mixture.drawn(0, epoch, torch.arange(11))
        assert len(indices.unique()) == 11
        assert 0 <= int(indices.min()) <= int(indices.max()) < len(mixture)
    assert sorted(epochs_of(mixture, 1, seed=0)[0]) != sorted(epochs_of(mixture, 1, seed=1)[0])


def test_texts_are_listed_by_index():
    mixture = Mixture({"few": Pictures(3), "many": Pictures(4)}, weights={"few": 5, "many": 2}, examples=7)
    assert [texts.id for texts in mixture.texts()] == [mixture[index].id for index in range(len(mixture))]


def test_what_an_epoch_has_is_told():
    mixture = Mixture({"few": Pictures(3), "many": Pictures(10)}, weights={"few": 3, "many": 1}, examples=20)
    assert list(mixture.remarks()) == [
        "few: 15 of 20 examples of an epoch, 5 passes of its 3",
        "many: 5 of 20 examples of an epoch, 0.5 passes of its 10",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {"one": 1}}, "^weights: other has none; give every source a weight"),
        ({"weights": {"one": 1, "othr": 1}}, "^weights.othr: the mixture has no such source; did you mean 'other'"),
        ({"weights": {"one": 0, "other": 1}}, "^weights.one: 0 must be above 0"),
        ({"weights": {"one": 1, "other": 1}, "passes": {"one": 2}}, "^weights: excludes passes; set passes=null"),
        ({"temperature": 0.0}, "^temperature: 0.0 must be above 0"),
        ({"temperature": 1.0, "examples": 1}, "^examples: 1 must be at least the number of sources, 2"),
        ({"temperature": 1.0, "most_passes": 0}, "^most_passes: 0 must be above 0"),
        ({"examples": 9}, "^examples: goes with weights or a temperature"),
    ],
)
def test_impossible_shares_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Mixture({"one": Pictures(2), "other": Pictures(2)}, **arguments)


def test_an_example_is_that_of_its_source_but_for_its_id():
    pictures = Pictures(5, text_only=(1,), corrupt=(4,))
    mixture = Mixture({"first": Pictures(3), "second": pictures})
    for index in range(4):
        found, expected = mixture[3 + index], pictures[index]
        assert found.id == f"second/picture/{index}"
        assert (found.captions, found.concept) == (expected.captions, expected.concept)
        assert found.image is expected.image is None or torch.equal(found.image, expected.image)
    with pytest.raises(CorruptImage, match="picture/4"):
        mixture[7]
    for index in (-1, 8):
        with pytest.raises(IndexError, match=f"{index} is none of the mixture's 8 examples"):
            mixture[index]


def test_captions_are_those_of_the_examples_in_order():
    mixture = Mixture({"first": Pictures(2), "second": Pictures(3)}, {"second": 2})
    of_examples = [caption for index in range(len(mixture)) for caption in mixture[index].captions]
    assert list(mixture.captions()) == of_examples


def test_a_repeated_image_is_a_positive_of_itself_and_augmented_anew(tokenizer):
    mixture = Mixture({"one": Pictures(2), "other": Pictures(2)}, {"one": 2})
    batch = next(iter(make_loader(tokenizer, mixture, batch_size=6, captions_per_image=None)))
    by_id = {name: [row for row, other in enumerate(batch.ids) if other == name] for name in batch.ids}
    first, again = by_id["one/picture/1"]
    assert batch.image_concept[first] == batch.image_concept[again]
    assert not torch.equal(batch.images[first], batch.images[again])
    (elsewhere,) = by_id["other/picture/1"]
    assert batch.image_concept[elsewhere] != batch.image_concept[first], "of its own, without a concept"
    (shared,) = by_id["other/picture/0"]
    assert batch.image_concept[shared] == batch.image_concept[by_id["one/picture/0"][0]], "one concept"


@pytest.mark.parametrize(
    ("sources", "passes", "message"),
    [
        ({}, None, "^sources: a mixture needs one at least"),
        ({"one": Pictures(1)}, {"oen": 2}, r"^passes\.oen: the mixture has no such source; did you mean 'one'\?"),
        ({"one": Pictures(1)}, {"one": 0}, r"^passes\.one: 0 must be at least 1; leave the source out instead"),
    ],
)
def test_what_is_no_mixture_is_refused(sources, passes, message):
    with pytest.raises(UserError, match=message):
        Mixture(sources, passes)


@pytest.mark.parametrize("shares", [{"passes": {"few": 2}}, {"weights": {"few": 3, "many": 2}, "examples": 22}])
@pytest.mark.parametrize("layout", [Layout(1, 2), Layout(2, 1), Layout(4, 0)], ids=str)
def test_workers_and_ranks_go_on_from_anywhere(tokenizer, tmp_path, layout, shares):
    folders = {name: tmp_path / name for name in ("few", "many")}
    for folder in folders.values():
        folder.mkdir()
    few, many = write_folder(folders["few"], Pictures(5)), write_folder(folders["many"], Pictures(12))
    mixture = Mixture({"few": few, "many": many}, **shares)
    straight = make_loader(tokenizer, mixture, batch_size=1, seed=SEED, captions_per_image=2)
    stream = [sample for batch in islice(straight, 3 * mixture.examples_per_epoch) for sample in samples_of(batch)]
    loaders = layout.loaders(mixture, tokenizer, 0)
    for position in (8, 0, 19, 22, 37):
        for loader in loaders:
            loader.position = position
        assert_continues(loaders, 3, stream, position)


def test_a_run_on_a_mixture_that_is_stopped_goes_on_exactly(tiny, command, compose, monkeypatch, tmp_path):
    write_shapes(tmp_path / "own")
    kept = [token for token in tiny if not token.startswith(("data=", "data.train", "data.validation"))]
    other = f"{{_target_: mmlm.data.image_folder.ImageFolder, folder: {tmp_path / 'own'}}}"
    settings = (
        *kept,
        *RANDOM,
        "data=mixture",
        "~data.train.sources.emoji",
        "~data.train.passes.emoji",
        "~data.validation.val_style",
        "~data.validation.val_concepts",
        f"+data.train.sources.other={other}",
        f"data.train.sources.own.folder={tmp_path / 'own'}",
        f"data.validation.own.folder={tmp_path / 'own'}",
        "data.train.passes.own=2",
        f"data.image_size={IMAGE_SIZE}",
        "data.language=null",
    )
    folders = {name: run_folder(check_config(compose(*settings, f"name={name}"))) for name in ("straight", "stopped")}
    assert command(train, *settings, "name=straight").status == 0
    with monkeypatch.context() as context:
        interrupt_at(context, 3)
        assert command(train, *settings, "name=stopped").status == STOPPED
    resumed = command(train, *settings, "name=stopped")
    assert "resumed at step 3" in resumed.out
    assert "24 images to train on" in resumed.out
    assert_same_runs(folders["straight"], folders["stopped"])
