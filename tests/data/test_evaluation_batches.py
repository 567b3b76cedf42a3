"""EvaluationBatches: every example once, in order, and read only when it is asked for."""

import pytest
import torch

from mmlm.core.batch import Example
from mmlm.core.errors import UserError
from mmlm.data.augment_settings import AugmentSettings
from mmlm.data.evaluation_batches import EvaluationBatches
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.data.transforms import Transform
from tests.data.pictures import Pictures

AUGMENT = AugmentSettings(scale=(0.7, 1.3), rotate=20, translate=0.1, contrast=0.4, hue=0.1, erase=0.3)


def evaluation(tokenizer: BytePair, source: Pictures, batch_size: int = 8) -> EvaluationBatches:
    return EvaluationBatches(source, tokenizer, Transform(16, AUGMENT), batch_size=batch_size, max_tokens=16)


def test_evaluation_gives_everything_once_in_order(tokenizer):
    source = Pictures(20)
    batches = evaluation(tokenizer, source)
    assert len(batches) == 3
    for _ in range(2):
        got = list(batches)
        assert [len(batch.ids) for batch in got] == [8, 8, 4]
        assert [id for batch in got for id in batch.ids] == [f"picture/{i}" for i in range(20)]
        assert [caption for batch in got for caption in batch.captions] == list(source.captions())
        assert not any(batch.corrupt for batch in got)
        images = torch.cat([batch.images for batch in got])
        assert torch.equal(images, Transform(16, None)([source[i].image for i in range(20)], None))


def test_a_sample_is_one_batch_spread_over_the_split(tokenizer):
    for size, wanted in {8: range(0, 20, 3), 3: range(0, 20, 7), 20: range(20), 99: range(20)}.items():
        sample = evaluation(tokenizer, Pictures(20), size).sample()
        assert (len(sample), sample.num_examples) == (1, len(wanted))
        assert list(sample[0].ids) == [f"picture/{i}" for i in wanted]
    assert len(evaluation(tokenizer, Pictures(0)).sample()) == 0


def test_evaluation_reads_only_the_batch_that_is_asked_for(tokenizer):
    class Watched(Pictures):
        read: list[int]

        def __getitem__(self, index: int) -> Example:
            self.read.append(index)
            return super().__getitem__(index)

    source = Watched(10)
    source.read = []
    assert evaluation(tokenizer, source, batch_size=4)[2].ids == ("picture/8", "picture/9")
    assert source.read == [8, 9]
    for beyond in (3, -1):
        with pytest.raises(IndexError, match="none of the split's 3"):
            evaluation(tokenizer, source, batch_size=4)[beyond]


def test_evaluation_names_corrupt_images_in_their_batch(tokenizer):
    batches = evaluation(tokenizer, Pictures(6, corrupt=(1, 2, 3)), batch_size=2)
    assert [batch.ids for batch in batches] == [("picture/0",), (), ("picture/4", "picture/5")]
    names = [[name.split(":")[0] for name in batch.corrupt] for batch in batches]
    assert names == [["picture/1"], ["picture/2", "picture/3"], []]
    assert batches[1].captions == ()
    with pytest.raises(UserError, match="batch_size=0"):
        evaluation(tokenizer, Pictures(6), batch_size=0)
