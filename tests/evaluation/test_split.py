"""An encoded split: rows through the batches, references, and the gallery of distinct texts."""

from dataclasses import replace

import pytest
import torch

from mmlm.core.batch import TEXT_ONLY, Caption, Example
from mmlm.core.errors import CorruptImage, UserError
from mmlm.evaluation.evaluators import CaptionLoss, caption_losses
from mmlm.evaluation.retrieval import gallery_under
from mmlm.evaluation.split import EncodedSplit, encode_split


def picture(value: int) -> torch.Tensor:
    """uint8[3, 16, 16] of one grey."""
    return torch.full((3, 16, 16), value, dtype=torch.uint8)


def example(name: str, *texts: str, value: int | None = 0, concept: str | None = None) -> Example:
    image = None if value is None else picture(value)
    return Example(name, image, tuple(Caption(text) for text in texts), concept)


EXAMPLES = [
    example("a", "a cat", "a small cat", value=10, concept="cat"),
    example("b", "a dog", value=20, concept="dog"),
    example("words", "nothing to see", value=None),
    example("c", "a cat", value=30, concept="cat"),
    example("d", "A bird", "a  bird", value=40),
]
"""With a batch size of 2 or 3, batches differ in images, captions and lengths."""


def memory_of(split: EncodedSplit) -> torch.Tensor:
    """float[B, M, Dm] of all images."""
    return torch.cat([item.features.memory for item in split.batches])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_rows_count_through_the_batches(make_split, batch_size):
    split = make_split(EXAMPLES, batch_size)
    assert len(split.batches) == -(-5 // batch_size)
    assert split.image_ids == ("a", "b", "c", "d")
    assert split.image_index.tolist() == [0, 0, 1, TEXT_ONLY, 2, 3, 3]
    assert [caption.text for caption in split.captions] == [c.text for e in EXAMPLES for c in e.captions]
    assert [[c.text for c in found] for found in split.references] == [
        ["a cat", "a small cat"],
        ["a dog"],
        ["a cat"],
        ["A bird", "a  bird"],
    ]
    assert split.over_images(range(4), lambda row, image: int(image[0, 0, 0])) == {0: 10, 1: 20, 2: 30, 3: 40}
    assert [row for item in split.batches for row in item.rows] == [0, 1, 2, 3]
    assert split.image_concept[0] == split.image_concept[2]
    assert len(split.image_concept.unique()) == 3


@pytest.mark.parametrize("batch_size", [2, 3])
def test_batching_does_not_change_what_is_encoded(make_split, batch_size):
    whole, parts = make_split(EXAMPLES, 5), make_split(EXAMPLES, batch_size)
    torch.testing.assert_close(parts.image_embedding, whole.image_embedding)
    torch.testing.assert_close(memory_of(parts), memory_of(whole))
    torch.testing.assert_close(parts.gallery.text_embedding, whole.gallery.text_embedding)
    assert parts.gallery.texts == whole.gallery.texts
    assert torch.equal(parts.gallery.pairs, whole.gallery.pairs)


def test_the_gallery_holds_each_text_once_with_all_that_belongs_together(make_split):
    gallery = make_split(EXAMPLES, 2).gallery
    # White space is no difference, case is one.
    assert gallery.texts == ("a cat", "a small cat", "a dog", "nothing to see", "A bird", "a  bird")
    cat, small, dog, upper, lower = 0, 1, 2, 4, 5
    assert gallery.pairs.tolist() == [[0, cat], [0, small], [1, dog], [2, cat], [2, small], [3, upper], [3, lower]]
    assert gallery.text_embedding.shape == (6, 16)
    torch.testing.assert_close(gallery.text_embedding.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(gallery.image_embedding.norm(dim=1), torch.ones(4))


def test_answers_are_no_captions_of_their_image(make_split):
    """They are not retrieved, nor what is generated is held against; their loss is one of the split's."""
    asked = Example("a", picture(10), (Caption("a cat"), Caption("yes", source="is it a cat?")), "cat")
    split, without = make_split([asked, *EXAMPLES[1:]], 2), make_split(EXAMPLES, 2)
    assert [caption.text for caption in split.references[0]] == ["a cat"]
    assert split.gallery.texts == ("a cat", *without.gallery.texts[2:])
    assert split.gallery.pairs.tolist() == [[0, 0], [1, 1], [2, 0], [3, 3], [3, 4]]
    for protocol in ("coco", "paired"):
        assert "yes" not in gallery_under(protocol, split).texts
    assert "yes" not in [text.text for concept in split.concepts for text in concept.texts]
    (loss,) = [value for _, value in CaptionLoss()(split)]
    tokens = torch.cat([item.batch.target_counts for item in split.batches])
    assert len(tokens) == 7
    assert tokens[1] == len(split.tokenizer.encode("yes", None, 48)) - 1
    torch.testing.assert_close(loss, float((caption_losses(split, None) * tokens).sum() / tokens.sum()))


def test_a_text_stands_for_its_own_embedding(make_split):
    split = make_split(EXAMPLES, 2)
    tokens = torch.tensor([split.tokenizer.encode("a dog", None, 48)])
    with torch.no_grad():
        alone = split.model.encode_text(tokens, torch.tensor([tokens.shape[1]]))[0]
    torch.testing.assert_close(split.gallery.text_embedding[2], alone)


def test_a_row_beyond_the_last_is_a_bug(make_split):
    with pytest.raises(IndexError, match="row 4 is none of the split's 4"):
        make_split(EXAMPLES, 2).over_images([0, 4], lambda row, image: row)


def test_nothing_is_kept_for_gradients(make_split):
    split = make_split(EXAMPLES, 2)
    assert not memory_of(split).requires_grad
    assert not split.image_embedding.requires_grad
    assert not split.gallery.text_embedding.requires_grad


def test_a_split_without_an_image_that_can_be_decoded_is_refused(make_split):
    split = make_split(EXAMPLES)
    with pytest.raises(UserError, match="evaluation split 'empty' has no image that can be decoded"):
        encode_split("empty", split.model, split.tokenizer, [], torch.device("cpu"), 48)


def test_corrupt_images_are_left_out(make_split, monkeypatch):
    class Broken(Example):
        pass

    def read(source, index, at_least):
        found = source[index]
        return CorruptImage(found.id, "is damaged") if isinstance(found, Broken) else found

    monkeypatch.setattr("mmlm.data.evaluation_batches.read_example", read)
    broken = Broken("broken", None, (Caption("a fish"),))
    split = make_split([EXAMPLES[0], broken, EXAMPLES[1], broken, broken, EXAMPLES[2]], 2)
    assert split.image_ids == ("a", "b")
    assert split.corrupt == ("broken: is damaged",) * 3
    assert [len(item.batch.captions) for item in split.batches] == [2, 1, 1], (
        "each batch holds what of it could be read"
    )


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_captions_with_the_images_of_others(make_split, batch_size):
    split = make_split(EXAMPLES, batch_size)
    swap = torch.tensor([2, 0, 3, 1])
    swapped = split.with_images_of(swap)
    assert torch.equal(memory_of(swapped), memory_of(split)[swap])
    assert torch.equal(swapped.image_embedding, split.image_embedding[swap])
    assert swapped.captions == split.captions
    assert torch.equal(memory_of(swapped.with_images_of(swap.argsort())), memory_of(split))


def test_each_batch_is_worked_on_once_after_a_sign_of_life(make_split):
    seen = []
    split = replace(make_split(EXAMPLES, 2), tick=seen.append)
    assert split.over_batches(lambda item: (len(seen), item.batch.ids)) == [(1, ("a", "b")), (2, ("c",)), (3, ("d",))]
    assert seen == [f"evaluating hand_made, batch {number} of 3" for number in (1, 2, 3)]
