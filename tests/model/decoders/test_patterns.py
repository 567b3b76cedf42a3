"""Captions read by a pattern, in float64: what each position sees, what masks hide, padding, images and gradients."""

import itertools

import pytest
import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.views import TextPattern
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.packing import Layout

FUSIONS, PACKED = ("cross_attention", "prefix"), (True, False)
POSITIONS = ("sinusoidal", "learned", "rotary")
V, T, M, MEMORY_WIDTH, WIDTH = 13, 8, 3, 6, 8
LENGTHS = torch.tensor([5, 3, 8, 4, 2, 7, 6])
INPUTS = LENGTHS - 1
IMAGE_INDEX = torch.tensor([0, 1, 1, TEXT_ONLY, 2, 0, TEXT_ONLY])
C = len(LENGTHS)
VISIBLE = torch.tensor([2, 0, 4, 3, 1, 6, 0])
"""None, some and all (the last but one) of each caption's inputs."""
NOTHING = torch.zeros(C, T - 1, dtype=torch.bool)

kinds = pytest.mark.parametrize(("fusion", "positions", "packed"), list(itertools.product(FUSIONS, POSITIONS, PACKED)))
both = pytest.mark.parametrize(("fusion", "packed"), list(itertools.product(FUSIONS, PACKED)))


def make_decoder(fusion: str, packed: bool = True, positions: str = "learned", **changes) -> TransformerDecoder:
    """Two layers of each kind, every parameter random and none small."""
    sizes = {"width": WIDTH, "num_heads": 2, "unimodal_layers": 2, "multimodal_layers": 2} | changes
    decoder = TransformerDecoder(V, MEMORY_WIDTH, T, fusion=fusion, packed=packed, positions=positions, **sizes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.double().parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return decoder


def make_tokens(seed: int = 0) -> Tensor:
    return torch.randint(1, V, (C, T), generator=torch.Generator().manual_seed(seed))


def make_memory(seed: int = 1) -> Tensor:
    return torch.randn(3, M, MEMORY_WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_mask_embedding() -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def read(
    decoder: TransformerDecoder,
    tokens: Tensor,
    visible: Tensor = VISIBLE,
    masked: Tensor | None = None,
    memory: Tensor | None = None,
    index: Tensor = IMAGE_INDEX,
) -> Tensor:
    """float[C, T - 1, D] of ``hidden_by``, zeros at padding."""
    pattern = TextPattern(visible, masked, None if masked is None else make_mask_embedding())
    hidden = decoder.hidden_by(tokens, LENGTHS, make_memory() if memory is None else memory, index, pattern)
    assert hidden.shape == (INPUTS.sum(), WIDTH)
    return hidden.new_zeros(C, T - 1, WIDTH).masked_scatter(Layout.mask(INPUTS, T - 1)[..., None], hidden)


def should_see(visible: Tensor) -> Tensor:
    """bool[C, T - 1, T - 1]: whether position i of each caption reads input j; false at padding."""
    sees = torch.zeros(C, T - 1, T - 1, dtype=torch.bool)
    for c, (count, first) in enumerate(zip(INPUTS.tolist(), visible.tolist(), strict=True)):
        for i in range(count):
            for j in range(count):
                sees[c, i, j] = j <= i or j < first
    return sees


def really_sees(decoder: TransformerDecoder, visible: Tensor, masked: Tensor | None = None) -> Tensor:
    """The same, found out by changing one token after another."""
    tokens, before = make_tokens(), read(decoder, make_tokens(), visible, masked)
    sees = torch.zeros(C, T - 1, T - 1, dtype=torch.bool)
    for j in range(T - 1):
        changed = tokens.clone()
        changed[:, j] = changed[:, j] % (V - 1) + 1
        difference = (read(decoder, changed, visible, masked) - before).abs().amax(dim=-1)
        # Either nothing but rounding, or plainly something.
        assert ((difference < 1e-12) | (difference > 1e-7)).all()
        sees[:, :, j] = difference > 1e-7
    return sees


@kinds
def test_a_position_sees_the_inputs_up_to_itself_and_the_visible_ones_and_no_other(fusion, positions, packed):
    decoder = make_decoder(fusion, packed, positions)
    assert torch.equal(really_sees(decoder, VISIBLE), should_see(VISIBLE))


@both
@pytest.mark.parametrize("mixing", range(4))
def test_every_layer_reads_by_the_pattern(fusion, packed, mixing):
    """With one layer alone that mixes positions: or what another has seen would hide that this one does not look."""
    decoder = make_decoder(fusion, packed)
    layers = [*decoder.unimodal_layers, *decoder.multimodal_layers]
    with torch.no_grad():
        for layer in layers[:mixing] + layers[mixing + 1 :]:
            for parameter in layer.self_attention.output.parameters():
                parameter.zero_()
    assert torch.equal(really_sees(decoder, VISIBLE), should_see(VISIBLE))


@both
@pytest.mark.parametrize("visible", [0, 1, "all"])
def test_none_and_one_visible_are_causal_and_all_are_not(fusion, packed, visible):
    given = INPUTS if visible == "all" else torch.full((C,), visible)
    sees = really_sees(make_decoder(fusion, packed), given)
    real = Layout.mask(INPUTS, T - 1)
    everything = real[:, :, None] & real[:, None, :]
    assert torch.equal(sees, everything if visible == "all" else everything.tril())


@kinds
def test_a_causal_pattern_without_masks_is_hidden(fusion, positions, packed):
    decoder, tokens = make_decoder(fusion, packed, positions), make_tokens()
    expected = decoder.hidden(tokens, LENGTHS, make_memory(), IMAGE_INDEX)
    for masked in (None, NOTHING):
        found = read(decoder, tokens, torch.zeros_like(LENGTHS), masked)[Layout.mask(INPUTS, T - 1)]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@both
def test_masked_inputs_are_seen_by_no_position(fusion, packed):
    """Not even by their own; all others are seen as before."""
    generator = torch.Generator().manual_seed(4)
    masked = (torch.rand(C, T - 1, generator=generator) < 0.4) & Layout.mask(INPUTS, T - 1)
    assert 5 < masked.sum() < INPUTS.sum() - 5
    for visible in (VISIBLE, INPUTS):
        sees = really_sees(make_decoder(fusion, packed), visible, masked)
        assert torch.equal(sees, should_see(visible) & ~masked[:, None, :])


@both
def test_the_mask_embedding_stands_where_a_token_was_and_has_its_position(fusion, packed):
    """Masking equals a token whose embedding is the mask's."""
    decoder, tokens = make_decoder(fusion, packed), make_tokens() % (V - 1)
    masked = NOTHING.clone()
    masked[:, 1:3] = True
    with torch.no_grad():
        decoder.token_embedding.weight[V - 1] = make_mask_embedding()
    replaced = tokens.clone()
    replaced[:, 1:3] = V - 1
    torch.testing.assert_close(read(decoder, tokens, masked=masked), read(decoder, replaced), rtol=1e-12, atol=1e-12)
    hidden = read(decoder, tokens, INPUTS, masked)
    assert (hidden[2, 1] - hidden[2, 2]).abs().max() > 1e-3, "two masks at two positions are not alike"


@kinds
def test_padding_changes_nothing(fusion, positions, packed):
    decoder, tokens = make_decoder(fusion, packed, positions), make_tokens()
    masked = NOTHING.clone()
    masked[:, 2] = True
    before = read(decoder, tokens, masked=masked)
    other = torch.where(Layout.mask(INPUTS, T), tokens, make_tokens(seed=9))
    assert torch.equal(read(decoder, other, masked=masked | ~Layout.mask(INPUTS, T - 1)), before)
    for c in range(C):
        length, index = LENGTHS[c : c + 1], IMAGE_INDEX[c : c + 1]
        width = int(length)
        pattern = TextPattern(VISIBLE[c : c + 1], masked[c : c + 1, : width - 1], make_mask_embedding())
        alone = decoder.hidden_by(tokens[c : c + 1, :width], length, make_memory(), index, pattern)
        torch.testing.assert_close(alone, before[c, : width - 1], rtol=1e-10, atol=1e-12)


@both
def test_a_caption_reads_its_own_image_and_a_text_only_one_reads_none(fusion, packed):
    decoder, tokens = make_decoder(fusion, packed), make_tokens()
    before = read(decoder, tokens)
    for image in range(3):
        memory = make_memory()
        memory[image] += 1
        difference = (read(decoder, tokens, memory=memory) - before).abs().amax(dim=(1, 2))
        reads_it = IMAGE_INDEX.eq(image)
        assert torch.equal(difference > 1e-6, reads_it)
        assert (difference[~reads_it] < 1e-12).all()


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 1, "norm": "rms_norm", "feed_forward": "swiglu"}])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_packed_equals_unpacked_in_outputs_and_all_gradients(fusion, changes):
    found = []
    masked = NOTHING.clone()
    masked[:, 1] = True
    for packed in PACKED:
        decoder = make_decoder(fusion, packed, **changes)
        memory, mask_embedding = make_memory().requires_grad_(), make_mask_embedding().requires_grad_()
        pattern = TextPattern(VISIBLE, masked, mask_embedding)
        hidden = decoder.hidden_by(make_tokens(), LENGTHS, memory, IMAGE_INDEX, pattern)
        weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        inputs = {"memory": memory, "mask_embedding": mask_embedding, **dict(decoder.named_parameters())}
        total = (hidden * weights).sum() + (hidden @ decoder.head_weight.T).square().sum()
        gradients = dict(zip(inputs, torch.autograd.grad(total, list(inputs.values())), strict=True))
        found.append({"hidden": hidden.detach()} | gradients)
    for name, value in found[0].items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(value, found[1][name], rtol=1e-10, atol=1e-10)


def test_masked_tokens_get_no_gradient_and_unmasked_ones_do():
    decoder, tokens = make_decoder("cross_attention", tie_weights=False), torch.full((C, T), 1)
    tokens[:, 1], tokens[:, 2] = 7, 8
    masked = NOTHING.clone()
    masked[:, 1] = True
    read(decoder, tokens, masked=masked).square().sum().backward()
    gradient = decoder.token_embedding.weight.grad
    assert gradient[7].count_nonzero() == 0
    assert gradient[[1, 8]].count_nonzero() == 2 * WIDTH


@both
def test_the_gradient_is_that_of_finite_differences(fusion, packed):
    decoder = make_decoder(fusion, packed, unimodal_layers=1, multimodal_layers=1)
    masked = NOTHING.clone()
    masked[:, 1:2] = True

    def hidden(memory: Tensor, mask_embedding: Tensor) -> Tensor:
        pattern = TextPattern(VISIBLE, masked, mask_embedding)
        return decoder.hidden_by(make_tokens(), LENGTHS, memory, IMAGE_INDEX, pattern)

    inputs = (make_memory().requires_grad_(), make_mask_embedding().requires_grad_())
    assert torch.autograd.gradcheck(hidden, inputs, fast_mode=True)


@pytest.mark.parametrize("packed", PACKED)
def test_the_pattern_holds_with_a_class_token_too(packed):
    """Captions do not depend on it, whatever they are read by."""
    decoder = make_decoder("cross_attention", packed, text_pooling="cls")
    assert torch.equal(really_sees(decoder, VISIBLE), should_see(VISIBLE))
    read(decoder, make_tokens()).sum().backward()
    assert decoder.cls_embedding.grad is None
