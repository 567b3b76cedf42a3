"""collate: what a Batch says of its examples, on a batch small enough to write down."""

import torch

from mmlm.core.batch import TEXT_ONLY, Batch, BatchTally, Caption, Example, Turn
from mmlm.core.errors import CorruptImage
from mmlm.core.keyed_random import stable_hash
from mmlm.data.collate import EncodedCaption, Prepared, caption_encoder, collate, prepare
from mmlm.data.tokenizer import frame
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.data.transforms import Transform

PAD = 99


def encode(caption: Caption) -> EncodedCaption:
    """One id a letter."""
    return EncodedCaption((1, *(ord(letter) for letter in caption.text), 2), stable_hash(caption.text))


def picture(value: int) -> torch.Tensor:
    return torch.full((3, 8, 8), value, dtype=torch.uint8)


EXAMPLES = [
    Example("a", picture(10), (Caption("xy"), Caption("z")), concept="c"),
    CorruptImage("b", "is damaged"),
    Example("d", None, (Caption("text"),)),
    Example("e", picture(20), ()),
    Example("f", picture(30), (Caption("xy"),), concept="c"),
]


def test_a_batch_written_down():
    batch = collate(prepare(EXAMPLES, Transform(4, None), None), encode, PAD, max_tokens=16, bucket=4)
    assert batch.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert batch.ids == ("a", "e", "f")
    assert [caption.text for caption in batch.captions] == ["xy", "z", "text", "xy"]
    assert batch.image_index.tolist() == [0, 0, TEXT_ONLY, 2]
    assert batch.lengths.tolist() == [4, 3, 6, 4]
    x, y, z = (ord(letter) for letter in "xyz")
    assert batch.tokens.tolist() == [
        [1, x, y, 2, PAD, PAD, PAD, PAD],
        [1, z, 2, PAD, PAD, PAD, PAD, PAD],
        [1, *(ord(letter) for letter in "text"), 2, PAD, PAD],
        [1, x, y, 2, PAD, PAD, PAD, PAD],
    ]
    c = stable_hash("c")
    assert batch.image_concept[[0, 2]].tolist() == [c, c]
    assert batch.caption_concept[[0, 1, 3]].tolist() == [c, c, c]
    assert len({*batch.image_concept.tolist(), *batch.caption_concept.tolist()}) == 3
    assert batch.caption_key[0] == batch.caption_key[3] != batch.caption_key[1]
    assert batch.corrupt == ("b: is damaged",)


def test_what_captions_lose_is_counted():
    """Letters are tokens: of the limit's five, two are start and end."""

    class Letters:
        def encode(self, text: str, language: str | None, max_tokens: int) -> list[int]:
            return frame(1, [ord(letter) for letter in text], 2, max_tokens)

    encode = caption_encoder(Letters(), max_tokens=5)
    assert [encode(Caption(text)).lost for text in ("ab", "abc", "abcd", "abcdefgh")] == [0, 0, 1, 5]
    examples = [Example(text, None, (Caption(text), Caption("a"))) for text in ("ab", "abcd", "abcdefgh")]
    batch = collate(prepare(examples, Transform(4, None), None), encode, PAD, max_tokens=5, bucket=1)
    assert batch.tally == BatchTally(cut_captions=2, cut_tokens=6)


def test_width_is_a_bucket_but_never_above_max_tokens():
    prepared = prepare(EXAMPLES, Transform(4, None), None)
    widths = {(bucket, most): collate(prepared, encode, PAD, most, bucket).tokens.shape[1]
              for bucket, most in ((1, 16), (4, 16), (5, 16), (4, 7), (100, 16))}  # fmt: skip
    assert widths == {(1, 16): 6, (4, 16): 8, (5, 16): 10, (4, 7): 7, (100, 16): 16}


def test_every_tensor_has_its_type():
    batch = collate(prepare(EXAMPLES[1:2], Transform(4, None), None), encode, PAD, max_tokens=16, bucket=4)
    assert batch.images.shape == (0, 3, 4, 4)
    assert batch.images.dtype == torch.uint8
    for name in ("tokens", "lengths", "image_index", "image_concept", "caption_concept", "caption_key"):
        assert getattr(batch, name).dtype == torch.int64


def test_prepare_gives_each_image_its_own_draws():
    seen = []

    class Recorder(Transform):
        def __call__(self, images, uniforms):
            seen.append((len(images), uniforms[:, 0].tolist()))
            return super().__call__(images, uniforms)

    uniforms = torch.arange(5, dtype=torch.float64)[:, None].expand(-1, Transform.num_uniforms) / 10
    prepared = prepare(EXAMPLES, Recorder(4, None), uniforms)
    assert seen == [(3, uniforms[[0, 3, 4], 0].tolist())]
    assert isinstance(prepared, Prepared)
    assert prepared.rows == (0, None, 1, 2)
    assert all(example.image is None for example in prepared.examples)


def test_a_caption_is_encoded_once():
    class Counting:
        calls = 0

        def encode(self, text: str, language: str | None, max_tokens: int) -> list[int]:
            self.calls += 1
            return [1, len(text), 2][:max_tokens]

    tokenizer = Counting()
    encode_caption = caption_encoder(tokenizer, 9)
    first = encode_caption(Caption("a  cat", "en"))
    assert encode_caption(Caption("a  cat", "en")) is first
    assert tokenizer.calls == 1
    assert first.ids == (1, 6, 2)
    assert encode_caption(Caption("a cat ", "en")).key == first.key
    assert encode_caption(Caption("a cat", "de")).key != first.key


def answers(captions: tuple[Caption, ...], max_tokens: int = 64) -> tuple[Batch, BytePair]:
    """A text-only batch of captions, by a tokenizer that knows bytes."""
    tokenizer = BytePair(vocab_size=260)
    tokenizer.fit(captions)
    prepared = Prepared(torch.zeros(0, 3, 1, 1, dtype=torch.uint8), (Example("a", None, captions),), (None,), ())
    return collate(prepared, caption_encoder(tokenizer, max_tokens), tokenizer.pad_id, max_tokens, 4), tokenizer


def test_the_targets_are_the_answers_of_every_turn_and_their_ends():
    dialogue = Caption("a red fox", source="what is it?", turns=(Turn("hello", "good day"), Turn("", "yes")))
    batch, tokenizer = answers((dialogue, Caption("plain")))
    for row, said in enumerate((["good day", "yes", "a red fox"], ["plain"])):
        targets, written = batch.targets[row][batch.target_mask[row]].tolist(), []
        while targets:
            end = targets.index(tokenizer.end_id)
            written.append(tokenizer.decode(targets[:end]))
            targets = targets[end + 1 :]
        assert written == said
    assert (batch.tokens[0] == tokenizer.start_id(None)).sum() == 1
    assert batch.num_targets == batch.target_mask.sum() == batch.target_counts.sum()
    assert batch.compared is not None
    assert batch.compared.tolist() == [False, True]
    parts = batch._part(range(0), torch.tensor([False, True]))
    assert torch.equal(parts.target_mask.sum(1), batch.target_counts[1:])
    assert answers((Caption("plain"),))[0].trained is None


def test_a_source_is_cut_before_its_answer_which_keeps_its_end():
    for most in (3, 4, 6, 9, 12):
        batch, tokenizer = answers((Caption("zqzq", source="jkvwxyz", turns=(Turn("q", "j"),)),), most)
        length = int(batch.lengths[0])
        row, whole = batch.tokens[0, :length].tolist(), tokenizer.encode("zqzq", None, 99)[1:]
        answer = row[row.index(tokenizer.end_id) + 1 :]
        assert answer == [*whole[: min(len(whole) - 1, most - 3)], tokenizer.end_id]
        assert length <= most
        assert batch.tally == BatchTally(1, 22 - length)


def test_states_of_what_is_read_are_left_out():
    batch, _ = answers((Caption("b", source="a long question"), Caption("plain")))
    places = batch.real_mask.nonzero()
    assert torch.equal(batch.written(places), batch.target_mask.nonzero())
