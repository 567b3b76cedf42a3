"""Captions that answer a source: the loss is over what is written alone, in every kind of decoder and on any ranks."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.check.batch import TOKENS, VOCABULARY, share_of, shuffled, with_more_padding
from mmlm.check.exactness import results
from mmlm.check.modules import stir
from mmlm.check.ranks import Ranks
from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.distributed import rank
from mmlm.core.views import CAPTION, StepKey
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.decoders.hugging_face import HuggingFaceDecoder
from mmlm.model.decoders.recurrent import RecurrentDecoder
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.model import ImageTextModel
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.masked import MaskedLanguageModelling
from tests.exactness.cells import PIXELS, STEP_KEY, WIDTH, Sum, make_step, whole_batch

QUERIES = 2
READ = {1: 3, 3: 2, 4: 2, 5: 4, 7: 1, 9: 5, 11: 3}
"""How many tokens behind the start are read, by caption; the others answer nothing. Caption 9 is a text alone."""


def answering() -> Batch:
    """The kit's batch with sources, and in caption 1 a turn that was written before: its tokens 2 and 3."""
    batch = whole_batch()
    trained = torch.arange(TOKENS)[None, :] < batch.lengths[:, None]
    for caption, count in READ.items():
        trained[caption, : 1 + count] = False
    trained[1, 2:4], trained[1, 4:6] = True, False
    compared = torch.tensor([caption not in READ for caption in range(len(batch.lengths))])
    return replace(batch, trained=trained, compared=compared)


def own(width: int) -> nn.Module:
    return TransformerDecoder(VOCABULARY, width, TOKENS, width=WIDTH, num_heads=2)


def recurrent(cell: str) -> Callable[[int], nn.Module]:
    return lambda width: RecurrentDecoder(VOCABULARY, width, WIDTH, cell, 1, "dot")


def hugging_face(architecture: str, fusion: str) -> Callable[[int], nn.Module]:
    gpt2 = {"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": 32}
    llama = {
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
    }
    settings = {"gpt2": gpt2, "llama": llama}[architecture]
    return lambda width: HuggingFaceDecoder(
        VOCABULARY, width, QUERIES, TOKENS, architecture=architecture, settings=settings, fusion=fusion
    )


DECODERS: dict[str, tuple[Callable[[int], nn.Module], float]] = {
    "own, packed": (own, 1e-10),
    "lstm": (recurrent("lstm"), 1e-10),
    "gru": (recurrent("gru"), 1e-10),
    "gpt2, prefix": (hugging_face("gpt2", "prefix"), 1e-10),
    "gpt2, gated": (hugging_face("gpt2", "gated_cross_attention"), 1e-10),
    "llama, prefix": (hugging_face("llama", "prefix"), 1e-5),  # its norms are in float32
}
"""By name, what makes a decoder for memory of a width, and the tolerance."""


@pytest.mark.parametrize("name", DECODERS)
def test_loss_and_gradients_are_a_plain_cross_entropy_over_what_is_written(name):
    """Each caption alone, without padding, one token after the other; in the batch they are packed or padded."""
    make, tolerance = DECODERS[name]
    torch.manual_seed(0)
    encoder = TimmVit(PIXELS, patch_size=8, width=WIDTH, depth=1, num_heads=2, class_token=False)
    bridge = AttentionalPooler(WIDTH, encoder.grid, WIDTH, num_heads=2, num_queries=QUERIES)
    model = ImageTextModel(encoder, bridge, make(bridge.memory_width), 6).double()
    stir(model)
    model.eval()
    batch, objective, parameters = answering(), Captioning(), dict(model.named_parameters())
    assert batch.trained is not None

    output = model(batch, {CAPTION})
    counts = objective.counts(batch, StepKey())
    assert output.hidden[CAPTION].shape[0] == counts["tokens"] == batch.num_targets
    loss = objective(output, batch, StepKey(), counts).total

    features, total, number = model.encode_image(batch.images), torch.zeros((), dtype=torch.float64), 0
    assert features.memory is not None
    for caption, length in enumerate(batch.lengths.tolist()):
        image = int(batch.image_index[caption])
        row, lengths = batch.tokens[caption : caption + 1, :length], torch.tensor([length])
        memory = features.memory[:1] if image == TEXT_ONLY else features.memory[image : image + 1]
        states = model.decoder.hidden(row, lengths, memory, torch.tensor([min(image, 0)]))
        log_shares = F.log_softmax(states @ model.decoder.head_weight.T, dim=1)
        for place in range(1, length):
            if batch.trained[caption, place]:
                total, number = total - log_shares[place - 1, row[0, place]], number + 1
    expected = total / number
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    wanted = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True)
    for key, ours, theirs in zip(parameters, found, wanted, strict=True):
        if theirs is None:
            assert ours is None or not ours.any(), key
        else:
            torch.testing.assert_close(ours, theirs, rtol=10 * tolerance, atol=tolerance, msg=key)


def sum_of() -> Sum:
    return Sum(
        {"contrastive": lambda: InfoNCE(0.3), "captioning": Captioning, "masked_lm": MaskedLanguageModelling},
        {"contrastive": 1.0, "captioning": 2.0, "masked_lm": 0.5},
    )


def test_a_token_that_is_read_is_no_target_and_still_has_an_influence():
    batch, captioning = answering(), Sum({"captioning": Captioning}, {"captioning": 1.0})
    other = replace(batch, tokens=batch.tokens.clone())
    other.tokens[9, 1] = 3 + (other.tokens[9, 1] - 2) % (VOCABULARY - 3)
    before, after, everything = (
        results(make_step(captioning), one, 8, STEP_KEY)["total"]
        for one in (batch, other, replace(batch, trained=None))
    )
    assert before != after, "what is read matters"
    assert before != everything, "what is read is not trained"


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-10, msg=f"{what}: {key}")


def test_micro_batches_and_order_change_nothing():
    whole = results(make_step(sum_of()), answering(), 8, STEP_KEY)
    for size in (3, 1):
        assert_same(results(make_step(sum_of()), answering(), size, STEP_KEY), whole, f"micro-batches of {size}")
    assert_same(results(make_step(sum_of()), shuffled(answering()), 8, STEP_KEY), whole, "another order")


def test_padding_is_no_target():
    batch, padded = answering(), with_more_padding(answering(), 3)
    assert padded.trained is not None
    assert padded.trained.shape == padded.tokens.shape
    assert torch.equal(padded.target_mask[:, : TOKENS - 1], batch.target_mask)
    assert torch.equal(padded.target_counts, batch.target_counts)


def of_a_rank(shares: tuple[int, ...]) -> dict[str, Tensor]:
    """What a rank does; where nothing is read, ``collate`` gives no mask."""
    share = share_of(answering(), rank(), shares)
    assert share.trained is not None
    if torch.equal(share.target_mask, share.real_mask):
        share = replace(share, trained=None)
    return results(make_step(sum_of()), share, 2, STEP_KEY)


def test_ranks_change_nothing():
    whole = results(make_step(sum_of()), answering(), 8, STEP_KEY)
    with Ranks() as ranks:
        for shares in ((5, 3), (0, 8), (1, 5, 2)):
            for found in ranks.run(len(shares), of_a_rank, shares):
                assert_same(found, whole, str(shares))
