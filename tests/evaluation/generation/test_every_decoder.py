"""Every decoder writes the same with its cache as without one, for any batch, by all ways to decode."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmlm.evaluation.generation.generate import generate
from mmlm.evaluation.generation.logit_rules import LogitRules
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.generation.task import Hypothesis, Task
from mmlm.model.decoders.hugging_face import HuggingFaceDecoder
from mmlm.model.decoders.recurrent import RecurrentDecoder
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.decoders.two_pass import TwoPassDecoder
from mmlm.model.protocols import Decoder

START, END, V, M, D, T, B = 1, 2, 23, 3, 16, 12, 5
SIZES = {"vocab_size": V, "memory_width": D}
OWN = SIZES | {"max_tokens": T, "width": D, "num_heads": 2}
GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": D, "n_positions": 32, "attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0}
MISTRAL = {"hidden_size": D, "intermediate_size": D, "num_hidden_layers": 2, "num_attention_heads": 2}
WINDOW = MISTRAL | {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 6}


def language_model(architecture: str, settings: dict[str, object], **fusion: object) -> Decoder:
    return HuggingFaceDecoder(
        **SIZES, num_memory=M, max_tokens=T, architecture=architecture, settings=settings, **fusion
    )


DECODERS: dict[str, Callable[[], Decoder]] = {
    "transformer": lambda: TransformerDecoder(**OWN, positions="rotary", num_key_value_heads=1),
    "prefix": lambda: TransformerDecoder(**OWN, fusion="prefix", positions="rotary", num_key_value_heads=1),
    "alternating": lambda: TransformerDecoder(**OWN, alternating=True, memory_norm=True, multimodal_layers=2),
    "two_pass": lambda: TwoPassDecoder(**OWN),
    "two_pass_prefix": lambda: TwoPassDecoder(**OWN, fusion="prefix", cross_attention_every=None),
    "lstm": lambda: RecurrentDecoder(**SIZES, width=D, num_layers=2),
    "gru": lambda: RecurrentDecoder(**SIZES, width=D, cell="gru", attention="dot"),
    "gpt2": lambda: language_model("gpt2", GPT2),
    "gpt2_gated": lambda: language_model("gpt2", GPT2, fusion="gated_cross_attention"),
    "sliding_window": lambda: language_model("mistral", WINDOW),
}
WAYS = {
    "greedy": GenerationSettings(),
    "beam": GenerationSettings(beams=4, n=3, length_penalty=0.7),
    "samples": GenerationSettings(temperature=1.2, top_p=0.95, n=3, seed=5),
}


class WithoutCache:
    """A decoder that reads all tokens of every caption again at each step, by ``hidden``, as in training."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def start_decoding(self, features: Tensor, room: int | None = None) -> "AllTokens":
        return AllTokens(features, None)

    def decode(self, tokens: Tensor, cache: "AllTokens") -> Tensor:
        read = tokens if cache.tokens is None else torch.cat([cache.tokens, tokens], dim=1)
        cache.tokens = read
        count, places = read.shape
        image_index = torch.arange(count) // (count // len(cache.memory))
        longer = torch.cat([read, read[:, :1]], dim=1)  # the last is a target only
        hidden = self.decoder.hidden(longer, torch.full((count,), places + 1), cache.memory, image_index)
        return (hidden @ self.decoder.head_weight.T).view(count, places, -1)[:, -tokens.shape[1] :]


class AllTokens:
    def __init__(self, memory: Tensor, tokens: Tensor | None) -> None:
        self.memory, self.tokens = memory, tokens

    def copy_rows(self, source: Tensor, target: Tensor) -> None:
        self.tokens[target] = self.tokens[source]

    def keep_images(self, images: Tensor) -> None:
        copies = len(self.tokens) // len(self.memory)
        self.tokens = self.tokens.unflatten(0, (-1, copies))[images].flatten(0, 1)
        self.memory = self.memory[images]


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """In float32; its captions differ in length."""
    torch.manual_seed(0)
    made = DECODERS[request.param]().eval()
    assert isinstance(made, nn.Module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.25 * torch.randn(parameter.shape, generator=generator))
    return made


def memory_of(rows: list[int]) -> Tensor:
    return 2 * torch.randn(B, M, D, generator=torch.Generator().manual_seed(2))[rows]


def written(decoder: object, rows: list[int], settings: GenerationSettings) -> list[list[Hypothesis]]:
    rules = LogitRules(END, min_tokens=4, no_repeat_ngram=2)
    task = Task(torch.tensor(rows) * 1000, (START, 4, 5), END, T, rules)
    return generate(decoder, memory_of(rows), task, settings)


def expect_same(found: list[list[Hypothesis]], wanted: list[list[Hypothesis]]) -> None:
    """The same tokens, and probabilities as close as float32 has them."""
    for one, other in zip(found, wanted, strict=True):
        assert [caption.tokens for caption in one] == [caption.tokens for caption in other]
        for a, b in zip(one, other, strict=True):
            assert a.log_probabilities == pytest.approx(b.log_probabilities, abs=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_the_cache_changes_nothing(decoder, way):
    everything = list(range(B))
    found = written(decoder, everything, WAYS[way])
    expect_same(found, written(WithoutCache(decoder), everything, WAYS[way]))
    # Neither do the size of a batch and its order.
    expect_same(written(decoder, everything[::-1], WAYS[way])[::-1], found)
    expect_same([written(decoder, [row], WAYS[way])[0] for row in everything], found)
    expect_same(written(decoder, [3, 0, 4], WAYS[way]), [found[3], found[0], found[4]])


def test_captions_are_of_their_image_and_end_for_themselves(decoder):
    many = written(decoder, list(range(B)), replace(WAYS["samples"], temperature=3.0, n=8))
    lengths = {len(caption.tokens) for of_image in many for caption in of_image}
    assert len(lengths) > 1
    assert len({of_image[0].tokens for of_image in many}) > 1
