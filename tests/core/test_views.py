"""The randomness of views: keyed by image and text."""

import torch

from mmlm.core.keyed_random import stream
from mmlm.core.views import StepKey
from tests.core.test_batch import make_batch


def test_randomness_is_keyed_by_image_and_text_and_not_by_place():
    batch = make_batch()
    keys = batch.caption_image_key
    assert len(set(keys.tolist())) == 3
    step_key = StepKey(seed=1, step=2)
    whole = step_key.uniform(keys, 2, stream("one"))
    for part in batch.split(1):
        own = step_key.uniform(part.caption_image_key, 2, stream("one"))
        for caption, drawn in zip(part.captions, own, strict=True):
            assert torch.equal(drawn, whole[[c.text for c in batch.captions].index(caption.text)])
    assert not torch.equal(whole, step_key.uniform(keys, 2, stream("other")))
    assert not torch.equal(whole, StepKey(seed=1, step=3).uniform(keys, 2, stream("one")))
