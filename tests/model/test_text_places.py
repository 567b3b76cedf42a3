"""The places that are counted for text tokens are the rows that go through the parts' token-wise layers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.views import CAPTION, EMBED, TextView
from mmlm.model.decoders.recurrent import RecurrentDecoder
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.decoders.two_pass import TwoPassDecoder
from mmlm.model.model import ImageTextModel
from mmlm.model.packing import MOST_PADDING, Layout, like_lengths, pack_multiple
from mmlm.model.text_encoders.hugging_face import HuggingFaceText
from mmlm.model.text_encoders.siglip import SiglipText
from mmlm.model.text_encoders.transformer import TransformerTextEncoder
from mmlm.model.text_places import TextPlaces, text_places
from tests.model.conftest import build_batch
from tests.model.test_costs import make_model

V, MOST = 40, 24
BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SIGLIP = BERT | {"max_position_embeddings": MOST}
TOWERS = {
    "packed": lambda: TransformerTextEncoder(V, MOST, width=8, num_heads=2, num_layers=1),
    "padded": lambda: TransformerTextEncoder(V, MOST, width=8, num_heads=2, num_layers=1, packed=False),
    "in groups": lambda: HuggingFaceText(V, MOST, architecture="bert", settings=BERT),
    "filled up": lambda: SiglipText(V, MOST, settings=SIGLIP),
}
DECODERS = {
    "packed": lambda: TransformerDecoder(V, 8, MOST, width=8, num_heads=2),
    "padded": lambda: TransformerDecoder(V, 8, MOST, width=8, num_heads=2, packed=False),
    "two passes": lambda: TwoPassDecoder(V, 8, MOST, width=8, num_heads=2),
    "recurrent": lambda: RecurrentDecoder(V, 8, width=8),
}


def random_lengths(count: int, seed: int = 0) -> Tensor:
    return torch.randint(3, MOST + 1, (count,), generator=torch.Generator().manual_seed(seed))


def rows_seen(part: nn.Module, run: Callable[..., object], *given: Tensor) -> int:
    """The rows of all calls of the part's (first) embedding of tokens."""
    seen = []
    embedding = next(
        m for n, m in part.named_modules() if n.endswith(("token_embedding", "embeddings.word_embeddings"))
    )
    hook = embedding.register_forward_hook(lambda module, given, out: seen.append(out.shape[:-1].numel()))
    run(*given)
    hook.remove()
    return sum(seen)


@pytest.mark.parametrize("name", TOWERS)
def test_the_places_of_a_tower_are_the_rows_of_its_embedding(name):
    tower = TOWERS[name]()
    for seed in range(3):
        lengths = random_lengths(40, seed)
        tokens = torch.ones(40, MOST, dtype=torch.int64)
        assert tower.places(lengths, MOST) == rows_seen(tower, tower, tokens, lengths)


@pytest.mark.parametrize("name", DECODERS)
def test_the_places_of_a_decoder_are_the_rows_of_its_embedding(name):
    decoder = DECODERS[name]()
    lengths, tokens = random_lengths(40), torch.ones(40, MOST, dtype=torch.int64)
    assert decoder.places(lengths, MOST) == rows_seen(decoder, decoder.text, tokens, lengths)
    memory, index = torch.randn(2, 3, 8), torch.arange(40) % 2
    if name == "two passes" or name == "recurrent":  # the pass that predicts embeds anew
        seen = rows_seen(decoder, decoder.hidden, tokens, lengths, memory, index)
        assert decoder.places(lengths - 1, MOST - 1) == seen


def test_passes_add_up():
    lengths = torch.tensor([3, 8, 5])
    model = make_model()
    packed = {n: Layout.places(lengths - n, 8 - n) for n in (0, 1)}
    assert text_places(model, lengths, 8, {EMBED}) == TextPlaces(16, packed[0])
    both = TextPlaces(16 + 13, packed[0] + packed[1])
    assert text_places(model, lengths, 8, {EMBED, CAPTION}) == both
    third = text_places(model, lengths, 8, {EMBED, CAPTION, TextView("other")})
    assert third == TextPlaces(16 + 2 * 13, packed[0] + 2 * packed[1])
    assert text_places(model, lengths[:0], 8, {EMBED, CAPTION}) == TextPlaces()


def test_of_a_prefix_only_the_text_counts():
    """The image's three tokens stand in front of each caption, and share the places that fill up."""
    model, lengths = make_model("prefix"), torch.tensor([3, 8, 5])
    rows = []
    hook = model.decoder.norm.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    batch = build_batch(lengths=(3, 8, 5), image_index=(0, 1, 2))
    model(batch, {CAPTION})
    hook.remove()
    assert text_places(model, lengths, 8, {CAPTION}) == TextPlaces(13, rows[0] - 3 * 3)


def test_a_model_of_a_stranger_is_taken_to_compute_all_that_is_padded():
    class Stranger(nn.Module):
        width, vocabulary = 8, None

        def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
            return tokens.new_zeros(len(tokens), 8).float()

    plain = make_model()
    model = ImageTextModel(plain.encoder, plain.bridge, plain.decoder, 6, Stranger())
    assert text_places(model, torch.tensor([3, 8]), 8, {EMBED}) == TextPlaces(11, 16)


@pytest.mark.parametrize("count", [40, 64, 256, 4096])
def test_little_of_what_is_packed_or_grouped_is_padding(count):
    lengths = random_lengths(count)
    real = int(lengths.sum())
    assert 0 <= Layout.places(lengths, MOST) - real < pack_multiple(real) <= MOST_PADDING * real
    groups = like_lengths(lengths)
    assert sum(len(group.rows) * group.longest for group in groups) - real <= MOST_PADDING * real
    assert sorted(torch.cat([group.rows for group in groups]).tolist()) == list(range(count))
    assert all(int(lengths[group.rows].max()) == group.longest for group in groups)
    assert 1 < len(groups) < len(lengths.unique())


def test_texts_of_one_length_are_one_group():
    (group,) = like_lengths(torch.tensor([7, 7, 7]))
    assert (group.rows.tolist(), group.longest) == ([0, 1, 2], 7)
