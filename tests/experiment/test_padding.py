"""In every shipped experiment at most 3% of the places that the model computes for text tokens are padding.

Measured on the host alone: in the batches that training makes of the real captions, but without an image and without a
pass of the model, which is built without memory.
"""

import json
from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.data.loader import TrainLoader
from mmlm.data.sources import Source, texts_of
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.transforms import Transform
from mmlm.experiment.build import build_model, build_objective, build_source, unfitted_tokenizer
from mmlm.experiment.config import Config
from mmlm.experiment.config_checks import check_config
from mmlm.model.packing import MOST_PADDING
from mmlm.model.text_places import TextPlaces, text_places
from tests.experiment.test_configs import EXPERIMENTS

BATCHES = 5
FILLED_UP = {"two_towers": "tokenizer=byte_pair"}
"""SigLIP's text tower reads every text at one length: its padding is part of what the model reads. Its tokenizer is on
the hub, which tests do without."""


class TextsAlone:
    """A source's examples without their images."""

    def __init__(self, source: Source) -> None:
        self._texts: list[ExampleTexts] = list(texts_of(source))

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> Example:
        one = self._texts[index]
        return Example(one.id, None, one.captions, one.concept)

    def captions(self) -> Iterator[Caption]:
        for one in self._texts:
            yield from one.captions


@pytest.fixture(scope="module")
def prepared() -> dict[str, tuple[Source, Tokenizer]]:
    """Sources and fitted tokenizers, by the settings that make them: most experiments share them."""
    return {}


def ready(config: Config, prepared: dict[str, tuple[Source, Tokenizer]]) -> tuple[Source, Tokenizer]:
    key = json.dumps([config.data.train, config.tokenizer], default=str, sort_keys=True)
    if key not in prepared:
        source, tokenizer = (
            TextsAlone(build_source(config, config.data.train, "data.train")),
            unfitted_tokenizer(config),
        )
        tokenizer.fit(source.captions())
        prepared[key] = source, tokenizer
    return prepared[key]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_little_of_what_an_experiment_computes_is_padding(name, compose, prepared):
    config = check_config(compose(f"experiment={name}", *([FILLED_UP[name]] if name in FILLED_UP else [])))
    source, tokenizer = ready(config, prepared)
    with torch.device("meta"):
        model = build_model(config, tokenizer.vocab_size, load_weights=False)
    data, train = config.data, config.train
    loader = TrainLoader(
        source,
        tokenizer,
        Transform(data.image_size, None),
        train.batch_size,
        config.seed,
        data.captions_per_image,
        data.max_tokens,
        workers=0,
    )
    views = build_objective(config).views
    places = TextPlaces()
    for batch in islice(loader, BATCHES):
        for part in (batch,) if train.micro_batch_size is None else batch.split(train.micro_batch_size):
            places += text_places(model, part.lengths, part.tokens.shape[1], views)
    padding = 1 - places.tokens / places.computed
    print(f"{name}: {padding:.2%}")
    assert (padding > MOST_PADDING) == (name in FILLED_UP), f"{padding:.1%} of what {name} computes is padding"
