"""loader: the same batches whatever the workers, ranks and interruptions, and batches that say what they hold."""

from dataclasses import fields, replace
from itertools import islice

import pytest
import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch, Caption, Example
from mmlm.core.errors import UserError
from mmlm.core.keyed_random import stable_hash
from mmlm.data.augment_settings import AugmentSettings
from mmlm.data.caption_choice import CaptionSettings
from mmlm.data.loader import TrainLoader
from mmlm.data.sources import Source
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.data.transforms import Transform
from tests.data.pictures import Pictures, write_folder

AUGMENT = AugmentSettings(scale=(0.7, 1.3), rotate=20, translate=0.1, contrast=0.4, hue=0.1, erase=0.3)


def make_loader(
    tokenizer: BytePair,
    source: Source | None = None,
    batch_size: int = 6,
    seed: int = 0,
    captions_per_image: int | None = 1,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    augment: AugmentSettings | None = AUGMENT,
    max_tokens: int = 16,
    bucket: int = 4,
    shuffle_window: int | None = None,
    choice: CaptionSettings | None = None,
) -> TrainLoader:
    return TrainLoader(
        source or Pictures(20),
        tokenizer,
        Transform(16, augment),
        batch_size=batch_size,
        seed=seed,
        captions_per_image=captions_per_image,
        max_tokens=max_tokens,
        workers=workers,
        rank=rank,
        world_size=world_size,
        bucket=bucket,
        shuffle_window=shuffle_window,
        choice=choice,
    )


def assert_same(first: Batch, second: Batch) -> None:
    for field in fields(Batch):
        one, other = getattr(first, field.name), getattr(second, field.name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, field.name


def take(loader: TrainLoader, count: int) -> list[Batch]:
    return list(islice(loader, count))


def test_each_epoch_is_a_permutation_and_batches_run_on_across_its_end(tokenizer):
    ids = [id for batch in take(make_loader(tokenizer), 10) for id in batch.ids]
    epochs = [ids[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(epoch) == sorted(f"picture/{i}" for i in range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_position_and_epoch_count_what_was_yielded(tokenizer):
    loader = make_loader(tokenizer)
    assert (loader.position, loader.epoch, loader.examples_per_epoch) == (0, 0, 20)
    seen = []
    for _ in islice(loader, 7):
        seen.append((loader.position, loader.epoch))
    assert seen == [(6, 0), (12, 0), (18, 0), (24, 1), (30, 1), (36, 1), (42, 2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_carries_its_own_position_and_epoch(tokenizer, tmp_path, workers):
    """The epoch is that of the batch's first example: batch 4 holds positions 18 to 23 and begins in epoch 0."""
    loader = make_loader(tokenizer, write_folder(tmp_path, Pictures(20, corrupt=(3,))), workers=workers)
    placed = [(batch.position, batch.epoch) for batch in take(loader, 8)]
    assert placed == [(6, 0), (12, 0), (18, 0), (24, 0), (30, 1), (36, 1), (42, 1), (48, 2)]
    loader.position = 20
    peeked = loader.peek()
    assert (peeked.position, peeked.epoch) == (26, 1)
    assert [(batch.position, batch.epoch) for batch in take(loader, 4)] == [(26, 1), (32, 1), (38, 1), (44, 1)]
    assert loader.position == 44


def test_every_rank_names_the_same_position_and_epoch(tokenizer):
    ranks = [take(make_loader(tokenizer, rank=rank, world_size=2), 4) for rank in range(2)]
    for shares in zip(*ranks, strict=True):
        assert len({(batch.position, batch.epoch) for batch in shares}) == 1
    # The second rank's share of batch 4 begins at position 21, in epoch 1; the batch begins in epoch 0.
    assert (ranks[1][3].position, ranks[1][3].epoch) == (24, 0)


@pytest.mark.parametrize("stop", [1, 3, 4, 9])
def test_resume_goes_on_exactly(tokenizer, stop):
    uninterrupted = take(make_loader(tokenizer), stop + 4)
    first = make_loader(tokenizer)
    take(first, stop)
    second = make_loader(tokenizer)
    second.position = first.position
    for batch, expected in zip(take(second, 4), uninterrupted[stop:], strict=True):
        assert_same(batch, expected)
    for batch, expected in zip(take(first, 4), uninterrupted[stop:], strict=True):
        assert_same(batch, expected)


def test_a_look_at_the_next_batch_moves_nothing(tokenizer):
    loader = make_loader(tokenizer, Pictures(20))
    loader.position = 10
    seen = loader.peek()
    assert loader.position == 10
    assert_same(seen, take(loader, 1)[0])
    assert_same(loader.peek(), take(loader, 1)[0])
    corrupt = make_loader(tokenizer, Pictures(20, corrupt=tuple(range(20))))
    with pytest.raises(UserError, match="images of a batch are corrupt"):
        corrupt.peek()


def test_seed_changes_order_and_augmentation(tokenizer):
    one, two = take(make_loader(tokenizer), 1)[0], take(make_loader(tokenizer, seed=1), 1)[0]
    assert one.ids != two.ids
    whole = [take(make_loader(tokenizer, batch_size=20, seed=seed), 1)[0] for seed in (0, 1)]
    pictures = [dict(zip(batch.ids, batch.images, strict=True)) for batch in whole]
    assert not any(torch.equal(pictures[0][id], pictures[1][id]) for id in pictures[0])


@pytest.mark.slow
def test_workers_give_the_same_batches_and_resume(tokenizer, tmp_path):
    source = write_folder(tmp_path, Pictures(20, corrupt=(3, 11), text_only=(5,)))
    expected = take(make_loader(tokenizer, source), 9)
    state = torch.get_rng_state()
    loader = make_loader(tokenizer, source, workers=2)
    batches = []
    for batch in islice(loader, 5):
        batches.append(batch)
        assert loader.position == 6 * len(batches)
    # Prefetched batches were never yielded: a new iteration, or an earlier position, starts where it says.
    batches += take(loader, 4)
    for batch, plain in zip(batches, expected, strict=True):
        assert_same(batch, plain)
    loader.position = 12
    assert_same(take(loader, 1)[0], expected[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_an_error_in_a_worker_stays_one_line(tokenizer, tmp_path):
    source = write_folder(tmp_path, Pictures(6, corrupt=tuple(range(6))))
    loader = make_loader(tokenizer, source, workers=1)
    message = ""
    try:  # not pytest.raises: the error it keeps would keep the workers
        take(loader, 1)
    except UserError as error:
        message = str(error)
    assert message.startswith("all 6 images of a batch are corrupt (the first is ")
    assert ".png: is not an image" in message
    assert "\n" not in message


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_batch_of_one_process(tokenizer, world_size):
    alone = take(make_loader(tokenizer), 5)
    ranks = [take(make_loader(tokenizer, rank=rank, world_size=world_size), 5) for rank in range(world_size)]
    for step, expected in enumerate(alone):
        shares = [batches[step] for batches in ranks]
        assert torch.equal(torch.cat([share.images for share in shares]), expected.images)
        assert tuple(id for share in shares for id in share.ids) == expected.ids
        assert tuple(caption for share in shares for caption in share.captions) == expected.captions
    loader = make_loader(tokenizer, rank=1, world_size=2)
    take(loader, 2)
    assert loader.position == 12


def test_augmentation_differs_between_epochs_and_is_off_when_it_is_none(tokenizer):
    augmented = [dict(zip(b.ids, b.images, strict=True)) for b in take(make_loader(tokenizer, batch_size=20), 2)]
    assert not any(torch.equal(augmented[0][id], augmented[1][id]) for id in augmented[0])
    plain = take(make_loader(tokenizer, augment=None), 1)[0]
    source = Pictures(20)
    originals = [source[int(id.split("/")[1])].image for id in plain.ids]
    assert torch.equal(plain.images, Transform(16, None)(originals, None))


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 2), (3, 3), (9, 3), (None, 3)])
def test_captions_are_drawn_without_replacement(tokenizer, asked, given):
    source = Pictures(20)
    for batch in take(make_loader(tokenizer, source, captions_per_image=asked), 4):
        for row, id in enumerate(batch.ids):
            index = int(id.split("/")[1])
            mine = [c for c, i in zip(batch.captions, batch.image_index.tolist(), strict=True) if i == row]
            assert len(set(mine)) == len(mine) == given
            assert set(mine) <= set(source.captions_of(index))
            assert mine == sorted(mine, key=source.captions_of(index).index)


def test_the_drawn_caption_varies_over_epochs_and_is_fair(tokenizer):
    counts = [0, 0, 0]
    source = Pictures(20)
    loader = make_loader(tokenizer, source, batch_size=20, augment=None)
    for batch in take(loader, 15):
        for id, caption in zip(batch.ids, batch.captions, strict=True):
            counts[source.captions_of(int(id.split("/")[1])).index(caption)] += 1
    # 300 draws: the standard deviation of a count is 8.
    assert all(abs(count - 100) < 30 for count in counts)


def test_tokens_lengths_and_buckets(tokenizer):
    for bucket, most in ((4, 16), (1, 16), (8, 16), (4, 6), (100, 7)):
        loader = make_loader(tokenizer, captions_per_image=None, bucket=bucket, max_tokens=most)
        for batch in take(loader, 3):
            longest = int(batch.lengths.max())
            assert batch.tokens.shape == (18, min(most, math_ceil(longest, bucket)))
            for row, caption in enumerate(batch.captions):
                ids = tokenizer.encode(caption.text, caption.language, most)
                padding = [tokenizer.pad_id] * (batch.tokens.shape[1] - len(ids))
                assert batch.tokens[row].tolist() == ids + padding
                assert batch.lengths[row] == len(ids)
            assert batch.target_mask.sum() == batch.num_targets
            assert (batch.targets[batch.target_mask] != tokenizer.pad_id).all()


def math_ceil(value: int, multiple: int) -> int:
    return (value + multiple - 1) // multiple * multiple


def test_positives_keys(tokenizer):
    batch = take(make_loader(tokenizer, batch_size=20, captions_per_image=None), 1)[0]
    numbers = [int(id.split("/")[1]) for id in batch.ids]
    for row, number in enumerate(numbers):
        if number % 2 == 0:
            assert batch.image_concept[row] == stable_hash(f"c{number // 4}")
        else:
            assert (batch.image_concept == batch.image_concept[row]).sum() == 1
    assert torch.equal(batch.caption_concept, batch.image_concept[batch.image_index])
    for one, key in zip(batch.captions, batch.caption_key.tolist(), strict=True):
        for other, other_key in zip(batch.captions, batch.caption_key.tolist(), strict=True):
            assert (key == other_key) == (one == other)


def test_an_id_never_equals_a_concept_of_the_same_name(tokenizer):
    class Twins(Pictures):
        def __getitem__(self, index: int) -> Example:
            return replace(super().__getitem__(index), id="same", concept="same" if index else None)

    batch = take(make_loader(tokenizer, Twins(2), batch_size=2), 1)[0]
    assert batch.image_concept.unique().numel() == 2


def test_text_without_an_image(tokenizer):
    source = Pictures(8, text_only=(1, 4), corrupt=(6,))
    batch = take(make_loader(tokenizer, source, batch_size=8, captions_per_image=2), 1)[0]
    assert batch.images.shape == (5, 3, 16, 16)
    assert len(batch.ids) == len(batch.image_concept) == 5
    assert len(batch.captions) == 14
    texts = [c for c, i in zip(batch.captions, batch.image_index.tolist(), strict=True) if i == TEXT_ONLY]
    assert len(texts) == 4
    assert set(texts) <= {*source.captions_of(1), *source.captions_of(4)}
    # Each picture is still the one that its own draws make.
    without = take(make_loader(tokenizer, Pictures(8), batch_size=8, captions_per_image=2), 1)[0]
    pictures = dict(zip(without.ids, without.images, strict=True))
    assert all(torch.equal(image, pictures[id]) for id, image in zip(batch.ids, batch.images, strict=True))


def test_a_batch_of_text_alone(tokenizer):
    batch = take(make_loader(tokenizer, Pictures(4, text_only=(0, 1, 2, 3)), batch_size=4), 1)[0]
    assert batch.images.shape == (0, 3, 16, 16)
    assert batch.image_index.tolist() == [TEXT_ONLY] * 4


def test_images_without_captions(tokenizer):
    class Mute(Pictures):
        def captions_of(self, index: int) -> tuple[Caption, ...]:
            return ()

    batch = take(make_loader(tokenizer, Mute(4), batch_size=4), 1)[0]
    assert batch.tokens.shape == (0, 4)
    assert batch.lengths.shape == batch.image_index.shape == batch.caption_key.shape == (0,)
    assert batch.images.shape[0] == 4


def test_corrupt_images_are_dropped_and_named(tokenizer):
    batches = take(make_loader(tokenizer, Pictures(12, corrupt=(3, 11))), 2)
    named = sorted(name for batch in batches for name in batch.corrupt)
    assert [name.split(":")[0] for name in named] == ["picture/11", "picture/3"]
    assert all("is not an image" in name for name in named)
    assert sum(len(batch.ids) for batch in batches) == 10
    assert all(len(batch.ids) == batch.images.shape[0] for batch in batches)


def test_moving_the_position_under_an_iteration_is_a_bug(tokenizer):
    loader = make_loader(tokenizer)
    batches = iter(loader)
    next(batches)
    loader.position = 0
    with pytest.raises(RuntimeError, match="take a new iterator"):
        next(batches)
    with pytest.raises(ValueError, match="at least 0"):
        loader.position = -1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 21}, "batch_size=21 must be between 1 and the 20 examples"),
        ({"batch_size": 0}, "batch_size=0 must be between"),
        ({"batch_size": 6, "world_size": 4}, "batch_size=6 must be a multiple of the 4 ranks"),
        ({"captions_per_image": 0}, "captions_per_image=0 must be at least 1"),
        ({"workers": -1}, "workers=-1 must be at least 0"),
        ({"bucket": 0}, "bucket=0 must be at least 1"),
        ({"max_tokens": 2}, "max_tokens=2 must be at least 3"),
    ],
)
def test_settings_that_do_not_fit(tokenizer, settings, said):
    with pytest.raises(UserError) as error:
        make_loader(tokenizer, **settings)
    assert said in str(error.value)
