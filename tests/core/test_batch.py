"""Batch: shift, mask and padding; micro-batches."""

import os
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch, Caption, Example, ExampleTexts
from mmlm.core.errors import UserError

PAD, START, END = 0, 1, 2


def make_batch() -> Batch:
    tokens = torch.tensor([[START, 7, 8, 9, END, PAD], [START, 5, END, PAD, PAD, PAD], [START, 3, 4, 5, 6, END]])
    return Batch(
        images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        tokens=tokens,
        lengths=torch.tensor([5, 3, 6]),
        image_index=torch.tensor([1, TEXT_ONLY, 0]),
        image_concept=torch.tensor([10, 11]),
        caption_concept=torch.tensor([11, 12, 10]),
        caption_key=torch.tensor([1, 2, 3]),
        ids=("a", "b"),
        captions=(Caption("x"), Caption("y"), Caption("z", "en")),
        position=40,
        epoch=3,
    )


def test_inputs_and_targets_are_one_position_apart():
    batch = make_batch()
    assert batch.inputs.tolist() == batch.tokens[:, :-1].tolist()
    assert batch.targets.tolist() == batch.tokens[:, 1:].tolist()
    pairs = list(zip(batch.inputs[0].tolist(), batch.targets[0].tolist(), strict=True))
    assert pairs[:4] == [(START, 7), (7, 8), (8, 9), (9, END)]


def test_target_mask_holds_the_end_token_and_no_padding():
    batch = make_batch()
    assert batch.target_mask.dtype == torch.bool
    assert batch.target_mask.int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    supervised = batch.targets[batch.target_mask]
    assert supervised.tolist() == [7, 8, 9, END, 5, END, 3, 4, 5, 6, END]
    assert batch.num_targets.item() == len(supervised) == 11


def test_padding_is_told_by_length_and_not_by_value():
    """A real token may have the padding's id (tokenizers without one): only lengths count."""
    batch = make_batch()
    batch.tokens[0, 1] = PAD
    assert batch.target_mask[0].int().tolist() == [1, 1, 1, 1, 0]


def test_to_moves_every_tensor_and_keeps_the_rest():
    batch = make_batch()
    moved = batch.to("meta")
    for f in fields(Batch):
        value = getattr(moved, f.name)
        if isinstance(value, Tensor):
            assert value.device.type == "meta"
            assert value.shape == getattr(batch, f.name).shape
        else:
            assert value == getattr(batch, f.name)
    assert batch.images.device.type == "cpu"


def test_position_and_epoch_travel_with_every_part_of_a_batch():
    batch = make_batch()
    single = replace(batch, images=batch.images[:1], image_concept=batch.image_concept[:1], ids=("a",))
    single = replace(single, image_index=torch.tensor([0, TEXT_ONLY, 0]))
    parts = [batch.to("meta"), *batch.split(1), *batch.split(2), *batch.halves(), *single.halves()]
    assert [(part.position, part.epoch) for part in parts] == [(40, 3)] * 8
    plain = {f.name: getattr(batch, f.name) for f in fields(Batch) if f.name not in ("position", "epoch")}
    assert (Batch(**plain).position, Batch(**plain).epoch) == (0, 0)


def test_micro_batches_hold_each_image_and_caption_once_and_only_the_padding_they_need():
    batch = make_batch()
    first, second = batch.split(1)
    assert (first.ids, second.ids) == (("a",), ("b",))
    # The text-only caption goes to the first; captions keep their order.
    assert [caption.text for caption in first.captions] == ["y", "z"]
    assert [caption.text for caption in second.captions] == ["x"]
    assert first.image_index.tolist() == [TEXT_ONLY, 0]
    assert second.image_index.tolist() == [0]
    assert (first.tokens.shape, second.tokens.shape) == ((2, 6), (1, 5))
    assert (first.caption_key.tolist(), second.caption_concept.tolist()) == ([2, 3], [11])
    (whole,) = batch.split(2)
    assert torch.equal(whole.tokens, batch.tokens)
    with pytest.raises(UserError, match=r"^train\.micro_batch_size: 0 must be at least 1"):
        batch.split(0)


def test_text_only_captions_are_spread_evenly_and_a_batch_of_them_stays_whole():
    batch = make_batch()
    text_only = torch.full((3,), TEXT_ONLY)
    both = [part.captions for part in replace(batch, image_index=text_only).split(1)]
    assert [len(captions) for captions in both] == [2, 1]
    without = replace(batch, images=batch.images[:0], image_concept=batch.image_concept[:0], ids=())
    (part,) = replace(without, image_index=text_only).split(5)
    assert (len(part.images), len(part.captions)) == (0, 3)


def test_captions_and_ids_can_be_written_to_any_file():
    assert Caption("a \ud83d cat", "en") == Caption("a � cat", "en")
    name = os.fsdecode(b"a\xff.png")
    example = Example(name, None, (Caption("a"),))
    assert example.id == ExampleTexts(name, (), None, False).id == "a\\udcff.png"
