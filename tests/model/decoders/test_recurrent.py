"""The recurrent decoder in float64 against PyTorch's cells and a plain loop: attention, padding, images, decoding."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import UserError
from mmlm.model.attention import AttentionRecord
from mmlm.model.decoders.recurrent import RecurrentDecoder
from mmlm.model.decoders.recurrent_layers import Steps
from mmlm.model.packing import Layout

KINDS = list(itertools.product(("lstm", "gru"), ("additive", "dot"), (True, False), (1, 2)))
CELLS = ("lstm", "gru")

V, T, M, MEMORY_WIDTH, WIDTH = 13, 8, 3, 6, 8
LENGTHS = torch.tensor([5, 3, 7, 4, 2, 3])
IMAGE_INDEX = torch.tensor([0, 1, 1, 2, TEXT_ONLY, 0])
C = len(LENGTHS)


def make_decoder(cell="lstm", attention="additive", gated=True, num_layers=1, **changes) -> RecurrentDecoder:
    """In float64, every parameter random and none small."""
    decoder = RecurrentDecoder(V, MEMORY_WIDTH, WIDTH, cell, num_layers, attention, gated, **changes).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return decoder


def make_tokens(seed: int = 0) -> Tensor:
    return torch.randint(1, V, (C, T), generator=torch.Generator().manual_seed(seed))


def make_memory(images: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(images, M, MEMORY_WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hidden_of(decoder, tokens=None, lengths=LENGTHS, memory=None, image_index=IMAGE_INDEX, record=None) -> Tensor:
    tokens = make_tokens() if tokens is None else tokens
    memory = make_memory() if memory is None else memory
    return decoder.hidden(tokens, lengths, memory, image_index, record=record)


def padded(hidden: Tensor, lengths: Tensor = LENGTHS) -> Tensor:
    """float[P, D] -> float[C, T - 1, D], zeros at padding."""
    mask = Layout.mask(lengths - 1, T - 1)
    return hidden.new_zeros(*mask.shape, hidden.shape[1]).masked_scatter(mask[..., None], hidden)


def torch_cell(layer: nn.Module) -> nn.LSTMCell | nn.GRUCell:
    """PyTorch's cell with the layer's weights; its input is the token and, behind it, the context."""
    kind = {4: nn.LSTMCell, 3: nn.GRUCell}[layer.cell.num_gates]
    parts = [layer.input.weight] + ([] if layer.context is None else [layer.context.weight])
    cell = kind(sum(part.shape[1] for part in parts), WIDTH).double()
    cell.weight_ih, cell.weight_hh = nn.Parameter(torch.cat(parts, dim=1)), layer.recurrent.weight
    cell.bias_ih, cell.bias_hh = layer.input.bias, nn.Parameter(torch.zeros_like(layer.input.bias))
    return cell


def plain(decoder: RecurrentDecoder, tokens: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """One caption int64[t] with float[M, Dm] (or none): outputs and last layer's states float[t, D], weights [t, M]."""
    is_lstm = decoder.cell.num_states == 2
    cells, look = [torch_cell(layer) for layer in decoder.layers], decoder.layers[0].attention
    states = [[torch.zeros(1, WIDTH, dtype=torch.float64)] * decoder.cell.num_states for _ in cells]
    if memory is not None:
        states[0] = list(decoder.initial_state(sum(memory)[None] / M).tanh().split(WIDTH, dim=1))
    outputs, lasts, maps = [], [], []
    for token in tokens:
        embedded = decoder.embedding_norm(decoder.token_embedding.weight[token])
        context = torch.zeros(MEMORY_WIDTH, dtype=torch.float64)
        if memory is not None:
            query = look.query.weight @ states[0][0][0] + look.query.bias
            keys = [look.key.weight @ m for m in memory]
            if look.score is None:
                scores = torch.stack([query @ key / math.sqrt(WIDTH) for key in keys])
            else:
                scores = torch.stack([look.score.weight[0] @ (query + key).tanh() for key in keys])
            weights = scores.exp() / scores.exp().sum()
            context = sum(w * m for w, m in zip(weights, memory, strict=True))
            if look.gate is not None:
                context = context * torch.sigmoid(look.gate.weight[0] @ states[0][0][0] + look.gate.bias)
            maps.append(weights)
        x = embedded
        for number, cell in enumerate(cells):
            x = torch.cat([x, context]) if number == 0 else x
            new = cell(x[None], tuple(states[number]) if is_lstm else states[number][0])
            states[number] = list(new) if is_lstm else [new]
            x = states[number][0][0]
        lasts.append(x)
        out = embedded + decoder.state_output(x) + decoder.context_output.weight @ context
        outputs.append(decoder.norm(out))
    return torch.stack(outputs), torch.stack(lasts), torch.stack(maps) if maps else torch.zeros(len(tokens), M)


@pytest.mark.parametrize(("cell", "attention", "gated", "num_layers"), KINDS)
def test_hidden_is_the_plain_loop_over_one_caption_at_a_time(cell, attention, gated, num_layers):
    decoder, tokens, memory = make_decoder(cell, attention, gated, num_layers), make_tokens(), make_memory()
    record = AttentionRecord()
    hidden = hidden_of(decoder, tokens, memory=memory, record=record)
    assert hidden.shape == ((LENGTHS - 1).sum(), WIDTH)
    assert [weights.shape for weights in record.weights] == [(C, 1, T - 1, M)]
    assert record.weights[0].dtype == torch.float32
    for c, (rows, maps) in enumerate(zip(padded(hidden), record.weights[0][:, 0], strict=True)):
        length, image = int(LENGTHS[c]) - 1, int(IMAGE_INDEX[c])
        expected, _, weights = plain(decoder, tokens[c, :length], None if image == TEXT_ONLY else memory[image])
        torch.testing.assert_close(rows[:length], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(maps[:length], weights.float())
        assert not maps[length:].any()


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_text_is_the_same_cells_without_an_image(cell, num_layers):
    decoder, tokens = make_decoder(cell, num_layers=num_layers), make_tokens()
    text = decoder.text(tokens, LENGTHS)
    assert (text.states.shape, text.pooled.shape) == ((C, T, WIDTH), (C, decoder.text_width))
    for c, length in enumerate(LENGTHS.tolist()):
        _, states, _ = plain(decoder, tokens[c, :length], None)
        torch.testing.assert_close(text.states[c, :length], states, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(text.pooled[c], states[-1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_text_only_captions_read_no_image_and_are_what_text_makes_of_them(cell):
    decoder, tokens = make_decoder(cell), make_tokens()
    memory = make_memory().requires_grad_()
    text_only = torch.arange(C) % 2 == 1
    index = IMAGE_INDEX.masked_fill(text_only, TEXT_ONLY)
    hidden = padded(hidden_of(decoder, tokens, memory=memory, image_index=index))
    states = decoder.text(tokens, LENGTHS).states[:, :-1]
    embedded = decoder.embedding_norm(decoder.token_embedding(tokens[:, :-1]))
    without = decoder.norm(embedded + decoder.state_output(states))
    mask = Layout.mask(LENGTHS - 1, T - 1) & text_only[:, None]
    torch.testing.assert_close(hidden[mask], without[mask], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hidden[~text_only & (IMAGE_INDEX >= 0)], padded(hidden_of(decoder))[[0, 2]])
    hidden[text_only].square().sum().backward()
    assert memory.grad.abs().max() == 0


@pytest.mark.parametrize("cell", CELLS)
def test_each_caption_reads_its_own_image_only(cell):
    decoder, memory = make_decoder(cell), make_memory()
    before = padded(hidden_of(decoder, memory=memory))
    changed = memory.clone()
    changed[1] += 1
    difference = (padded(hidden_of(decoder, memory=changed)) - before).abs().amax(dim=(1, 2))
    assert (difference > 1e-6).tolist() == (IMAGE_INDEX == 1).tolist()
    order = torch.tensor([2, 0, 1])
    index = torch.where(IMAGE_INDEX == TEXT_ONLY, TEXT_ONLY, order.argsort()[IMAGE_INDEX])
    permuted = hidden_of(decoder, memory=memory[order], image_index=index)
    torch.testing.assert_close(padded(permuted), before, rtol=1e-12, atol=1e-12)


def test_the_order_of_captions_and_of_memory_tokens_does_not_matter():
    decoder, tokens, memory = make_decoder(), make_tokens(), make_memory()
    before = padded(hidden_of(decoder, tokens, memory=memory))
    order = torch.randperm(C, generator=torch.Generator().manual_seed(3))
    moved = decoder.hidden(tokens[order], LENGTHS[order], memory.flip(1), IMAGE_INDEX[order])
    torch.testing.assert_close(padded(moved, LENGTHS[order]), before[order], rtol=1e-12, atol=1e-12)


def test_padding_never_matters_and_costs_no_step():
    decoder, tokens = make_decoder(), make_tokens()
    before, text = hidden_of(decoder, tokens), decoder.text(tokens, LENGTHS)
    other = torch.where(Layout.mask(LENGTHS, T), tokens, make_tokens(seed=9))
    assert torch.equal(hidden_of(decoder, other), before)
    assert torch.equal(decoder.text(other, LENGTHS).pooled, text.pooled)
    rows = []
    decoder.layers[0].recurrent.register_forward_hook(lambda _module, inputs, _out: rows.append(len(inputs[0])))
    torch.testing.assert_close(hidden_of(decoder, tokens[:, :7]), before, rtol=1e-12, atol=1e-12)
    assert rows == [6, 5, 3, 2, 1, 1]
    assert sum(rows) == len(before)


def test_steps_go_through_real_tokens_longest_caption_first():
    steps = Steps.of_lengths(torch.tensor([2, 3, 0]), 4)
    assert steps.order.tolist() == [1, 0, 2]
    assert steps.sizes == (2, 2, 1)
    assert steps.index.tolist() == [4, 0, 5, 1, 6]
    packed = steps.pack(torch.arange(12).view(3, 4))[:, None]
    assert steps.row_major(packed)[:, 0].tolist() == [0, 1, 4, 5, 6]
    assert steps.pad(packed, 4)[..., 0].tolist() == [[0, 1, 0, 0], [4, 5, 6, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("chunks", [[1] * T, [T], [3, 1, 4]], ids=["one by one", "all at once", "in chunks"])
@pytest.mark.parametrize(("cell", "attention", "gated", "num_layers"), KINDS)
def test_decoding_with_the_cache_is_teacher_forcing(cell, attention, gated, num_layers, chunks):
    decoder, memory = make_decoder(cell, attention, gated, num_layers), make_memory()
    tokens = torch.randint(1, V, (3, T + 1), generator=torch.Generator().manual_seed(0))
    hidden = decoder.hidden(tokens, torch.full((3,), T + 1), memory, torch.arange(3))
    cache, pieces, read = decoder.start_decoding(memory), [], 0
    for size in chunks:
        pieces.append(decoder.decode(tokens[:, read : read + size], cache))
        read += size
    logits = torch.cat(pieces, dim=1)
    assert logits.shape == (3, T, V)
    expected = (hidden @ decoder.head_weight.T).view(3, T, V)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_the_memory_is_projected_once_an_image():
    decoder, calls = make_decoder(), []
    decoder.layers[0].attention.key.register_forward_hook(lambda _m, inputs, _out: calls.append(inputs[0].shape))
    hidden_of(decoder)
    cache = decoder.start_decoding(make_memory())
    for _ in range(3):
        decoder.decode(torch.ones(3, 1, dtype=torch.int64), cache)
    assert calls == [(3, M, MEMORY_WIDTH)] * 2


@pytest.mark.parametrize(("cell", "attention", "gated", "num_layers"), KINDS)
def test_gradients_reach_every_parameter_and_the_memory(cell, attention, gated, num_layers):
    decoder = make_decoder(cell, attention, gated, num_layers, tie_weights=False)
    memory = make_memory().requires_grad_()
    (hidden_of(decoder, memory=memory) @ decoder.head_weight.T).square().sum().backward()
    for name, tensor in [*decoder.named_parameters(), ("memory", memory)]:
        assert tensor.grad.abs().max() > 0, name


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_products_stay_near_float32(cell):
    torch.manual_seed(0)
    decoder, memory = RecurrentDecoder(V, MEMORY_WIDTH, WIDTH, cell), make_memory().float()
    exact = hidden_of(decoder, memory=memory)
    with torch.autocast("cpu", torch.bfloat16):
        rough = hidden_of(decoder, memory=memory)
        rough.float().sum().backward()
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_the_first_loss_is_that_of_a_uniform_guess(tie_weights):
    torch.manual_seed(0)
    decoder = RecurrentDecoder(V, MEMORY_WIDTH, 16, tie_weights=tie_weights)
    assert (decoder.head_weight is decoder.token_embedding.weight) is tie_weights
    logits = hidden_of(decoder, memory=make_memory().float()) @ decoder.head_weight.T
    assert (-logits.log_softmax(-1) - math.log(V)).abs().max() < 0.6
    assert decoder.layers[0].input.bias.tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32


def test_dropout_acts_in_training_only():
    decoder = make_decoder(dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(hidden_of(decoder), hidden_of(decoder))
    decoder.eval()
    assert torch.equal(hidden_of(decoder), hidden_of(decoder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, r"^width: 8 and num_layers=0 must both be at least 1$"),
        ({"dropout": 1.0}, r"^dropout: 1\.0 must lie in \[0, 1\); 0 turns it off$"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        make_decoder(**changes)
