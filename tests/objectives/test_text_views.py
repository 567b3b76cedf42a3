"""What parallel, prefix and masked prediction have in common: no state knows its own target, nothing but keys decides.

With a real decoder: a supervised state that changed with its target would let the model copy what it has to predict.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.errors import UserError
from mmlm.core.model_output import ModelSizes
from mmlm.core.views import CAPTION, StepKey, TextPattern
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.packing import Layout
from mmlm.objectives.masked import MASKED, MaskedLanguageModelling
from mmlm.objectives.objective import Objective
from mmlm.objectives.parallel_captioning import PARALLEL, ParallelCaptioning
from mmlm.objectives.prefix import PREFIX, PrefixLanguageModelling
from mmlm.objectives.shared.token_prediction import INIT_STD
from mmlm.objectives.weighted_sum import WeightedSum

WIDTH, VOCABULARY, TOKENS = 8, 11, 7
SIZES = ModelSizes(embedding_width=4, patch_width=8, grid=(2, 2), decoder_width=WIDTH, vocab_size=VOCABULARY)
KINDS = {
    "parallel": (ParallelCaptioning, PARALLEL),
    "prefix": (PrefixLanguageModelling, PREFIX),
    "masked": (MaskedLanguageModelling, MASKED),
}
INDEX = (0, 0, 1, 2, TEXT_ONLY, 3, 4, TEXT_ONLY, 4, 3)
STEP_KEY = StepKey(3, 1)
LENGTHS = (2, 7, 4, 5, 6, 7, 3, 3, 6, 5)
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind: str) -> Objective:
    torch.manual_seed(0)
    objective = KINDS[kind][0]()
    objective.connect(SIZES)
    return objective.double()


def pattern_of(kind: str, batch: Batch, step_key: StepKey = STEP_KEY) -> TextPattern:
    return make(kind).draw(batch, step_key)[KINDS[kind][1]]


def supervised(kind: str, batch: Batch, step_key: StepKey) -> tuple[Tensor, Tensor]:
    """bool[C, T - 1]: positions that count, and int64[C, T - 1]: the column of ``tokens`` that each should predict."""
    objective, columns = make(kind), torch.arange(TOKENS - 1).expand(len(batch.lengths), -1)
    if kind == "parallel":
        return batch.target_mask, columns + 1
    if kind == "prefix":
        return objective.chosen(batch, step_key), columns + 1
    return objective.masked(batch, step_key), columns


@kinds
@pytest.mark.parametrize("fusion", ["cross_attention", "prefix"])
def test_no_supervised_state_knows_its_target(make_batch, kind, fusion):
    torch.manual_seed(1)
    decoder = TransformerDecoder(VOCABULARY, WIDTH, TOKENS, width=WIDTH, num_heads=2, fusion=fusion).double()
    memory = torch.randn(5, 3, WIDTH, dtype=torch.float64)
    checked = 0
    for step in range(4):
        batch, step_key = make_batch(INDEX, 5, lengths=LENGTHS), StepKey(3, step)
        pattern = pattern_of(kind, batch, step_key)
        positions, predicted = supervised(kind, batch, step_key)

        def states(tokens: Tensor, batch: Batch = batch, pattern: TextPattern = pattern) -> Tensor:
            hidden = decoder.hidden_by(tokens, batch.lengths, memory, batch.image_index, pattern)
            padded = hidden.new_zeros(*batch.inputs.shape, WIDTH)
            return padded.masked_scatter(Layout.mask(batch.lengths - 1, TOKENS - 1)[..., None], hidden)

        before = states(batch.tokens)
        for t in range(TOKENS - 1):
            changed = batch.tokens.clone()
            target = predicted[:, t, None]
            changed.scatter_(1, target, changed.gather(1, target) % (VOCABULARY - 1) + 1)
            difference = (states(changed)[:, t] - before[:, t]).abs().amax(dim=-1)
            assert (difference[positions[:, t]] < 1e-12).all()
            checked += int(positions[:, t].sum())
    assert checked > 40


@kinds
def test_the_pattern_depends_on_seed_step_and_example_alone(make_batch, kind):
    batch = make_batch(INDEX, 5, lengths=LENGTHS)
    whole = pattern_of(kind, batch)
    parts = [pattern_of(kind, part) for part in batch.split(2)]
    pairs = [
        (row, number, place)
        for number, part in enumerate(batch.split(2))
        for place, row in enumerate(int(caption.text) for caption in part.captions)
    ]
    assert sorted(row for row, *_ in pairs) == list(range(len(INDEX)))
    for row, number, place in pairs:
        assert parts[number].visible[place] == whole.visible[row]
        if whole.masked is not None:
            width = LENGTHS[row] - 1
            assert torch.equal(parts[number].masked[place, :width], whole.masked[row, :width])


@kinds
def test_another_seed_step_or_image_draws_anew(make_batch, kind):
    batch = make_batch((0, 1) * 20, 2, lengths=(7,) * 40)

    def drawn(batch: Batch = batch, step_key: StepKey = STEP_KEY) -> Tensor:
        pattern = pattern_of(kind, batch, step_key)
        return pattern.visible if pattern.masked is None else pattern.masked

    first = drawn()
    assert torch.equal(drawn(), first)
    others = [drawn(step_key=StepKey(4, 1)), drawn(step_key=StepKey(3, 2)), drawn(replace(batch, ids=("x", "y")))]
    assert not any(torch.equal(other, first) for other in others)
    # Two captions of one text at two images, and two texts at one image, are drawn apart.
    same_text = replace(batch, caption_key=torch.zeros(40, dtype=torch.int64))
    assert len({tuple(row.flatten().tolist()) for row in drawn(same_text)}) <= 2
    assert len({tuple(row.flatten().tolist()) for row in first}) > 1


@kinds
def test_padding_has_no_part_in_the_pattern(make_batch, kind):
    batch = make_batch(INDEX, 5, lengths=LENGTHS)
    longer = replace(batch, tokens=torch.cat([batch.tokens, batch.tokens[:, :3] * 0], dim=1))
    short, long = pattern_of(kind, batch), pattern_of(kind, longer)
    assert torch.equal(short.visible, long.visible)
    if short.masked is not None:
        assert torch.equal(long.masked[:, : TOKENS - 1], short.masked)
        assert not long.masked[:, TOKENS - 1 :].any()
        assert not (short.masked & ~batch.target_mask).any()
        assert not short.masked[:, 0].any(), "the start token is a condition"


@kinds
def test_the_mask_embedding_is_the_objective_s_own_and_starts_like_a_token(kind):
    objective = KINDS[kind][0]()
    assert list(objective.parameters()) == []
    with torch.device("meta"):
        objective.connect(SIZES)
    if kind == "prefix":
        assert list(objective.parameters()) == []
        return
    assert objective.mask_embedding.is_meta
    objective.connect(replace(SIZES, decoder_width=10_000))
    assert [name for name, _ in objective.named_parameters()] == ["mask_embedding"]
    assert objective.mask_embedding.shape == (10_000,)
    assert objective.mask_embedding.std().item() == pytest.approx(INIT_STD, rel=0.05)


@kinds
def test_a_model_without_a_decoder_is_refused(kind):
    with pytest.raises(UserError, match=r"^objective: .* needs a decoder, and there is none; choose one$"):
        KINDS[kind][0]().connect(replace(SIZES, decoder_width=None))


@kinds
def test_one_sum_has_one_of_each(kind):
    make_one = KINDS[kind][0]
    message = r"^objectives: a and b both draw how captions are read; take one of them$"
    with pytest.raises(UserError, match=message):
        WeightedSum({"a": make_one(), "b": make_one()}, {"a": 1.0, "b": 2.0})
    assert WeightedSum({"a": make_one(), "b": make_one()}, {"a": 1.0, "b": 0.0}).views == {KINDS[kind][1]}


@kinds
def test_a_batch_without_captions_has_loss_zero_and_finite_gradients(make_batch, alone, make_output, kind):
    objective, view = make(kind), KINDS[kind][1]
    batch = make_batch((), 2, lengths=())
    output = make_output(batch)
    output = replace(output, hidden={view: output.hidden[CAPTION]})
    loss = alone(objective, output, batch)
    assert loss.total.item() == 0
    assert all(figure.value.item() == 0 for figure in loss.figures.values())
    (gradient,) = torch.autograd.grad(loss.total, [output.head_weight])
    assert gradient.count_nonzero() == 0


@kinds
@pytest.mark.parametrize("smoothing", [1.0, -0.5])
def test_bad_label_smoothing_is_refused(kind, smoothing):
    with pytest.raises(UserError, match=rf"^label_smoothing: {smoothing} must lie in \[0, 1\)$"):
        KINDS[kind][0](label_smoothing=smoothing)


@pytest.mark.parametrize("kind", ["parallel", "masked"])
@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_bad_shares_are_refused(kind, share):
    with pytest.raises(UserError, match=rf"^share: {share} must lie in \(0, 1\]"):
        KINDS[kind][0](share=share)
