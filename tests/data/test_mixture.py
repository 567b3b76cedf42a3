"""Several sources as one: proportions, ids and positives, and a run that goes on in the middle of an epoch."""

from collections import Counter
from itertools import islice

import pytest
import torch

from mmlm import train
from mmlm.core.errors import STOPPED, CorruptImage, UserError
from mmlm.data.mixture import Mixture
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


@pytest.mark.parametrize("layout", [Layout(1, 2), Layout(2, 1), Layout(4, 0)], ids=str)
def test_workers_and_ranks_go_on_from_anywhere(tokenizer, tmp_path, layout):
    folders = {name: tmp_path / name for name in ("few", "many")}
    for folder in folders.values():
        folder.mkdir()
    few, many = write_folder(folders["few"], Pictures(5)), write_folder(folders["many"], Pictures(12))
    mixture = Mixture({"few": few, "many": many}, {"few": 2})
    straight = make_loader(tokenizer, mixture, batch_size=1, seed=SEED, captions_per_image=2)
    stream = [sample for batch in islice(straight, 3 * len(mixture)) for sample in samples_of(batch)]
    loaders = layout.loaders(mixture, tokenizer, 0)
    for position in (8, 0, 19, 22, 37):
        for loader in loaders:
            loader.position = position
        assert_continues(loaders, 3, stream, position)


def test_a_run_on_a_mixture_that_is_stopped_goes_on_exactly(tiny, command, compose, monkeypatch, tmp_path):
    write_shapes(tmp_path / "own")
    kept = [token for token in tiny if not token.startswith(("data=", "data.train", "data.validation"))]
    other = f"{{_target_: mmlm.data.sources.ImageFolder, folder: {tmp_path / 'own'}}}"
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
