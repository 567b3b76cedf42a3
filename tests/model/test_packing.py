"""Captions without their padding: real tokens in order, and zeros when they are padded again."""

import pytest
import torch

from mmlm.model.packing import Layout, rows_of

LENGTHS = torch.tensor([3, 1, 4, 2])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_packing_keeps_real_tokens_in_row_major_order_and_padding_back_gives_zeros():
    layout = Layout.of_lengths(LENGTHS, 5, multiple=1)
    x = noise(4, 5, 2)
    packed = layout.pack(x)
    expected = torch.cat([x[row, :length] for row, length in enumerate(LENGTHS.tolist())])
    torch.testing.assert_close(packed, expected, rtol=0, atol=0)
    back = layout.pad(packed)
    mask = Layout.mask(LENGTHS, 5)
    assert torch.equal(back, x * mask[..., None])
    assert torch.equal(layout.pack(back), packed)


def test_packing_passes_gradients_to_real_tokens_only():
    layout = Layout.of_lengths(LENGTHS, 5, multiple=1)
    x = noise(4, 5, 2).requires_grad_()
    layout.pad(layout.pack(x) ** 2).sum().backward()
    mask = Layout.mask(LENGTHS, 5)[..., None]
    torch.testing.assert_close(x.grad, 2 * x.detach() * mask)


@pytest.mark.parametrize(("multiple", "rows"), [(1, 10), (5, 10), (4, 12), (16, 16), (64, 20)])
def test_packed_rows_are_filled_up_with_padding_places(multiple, rows):
    layout = Layout.of_lengths(LENGTHS, 5, multiple=multiple)
    x = noise(4, 5, 2)
    packed = layout.pack(x)
    assert len(packed) == rows
    expected = torch.cat([x[row, :length] for row, length in enumerate(LENGTHS.tolist())])
    assert torch.equal(layout.real(packed), expected)
    assert layout.index.unique().numel() == rows
    mask = Layout.mask(LENGTHS, 5)
    assert torch.equal(layout.pad(packed)[mask], x[mask])


def test_a_layout_that_does_not_pack_keeps_every_place():
    layout = Layout.of_lengths(LENGTHS, 5, packed=False)
    x = noise(4, 5, 2)
    assert layout.pack(x).shape == (20, 2)
    assert torch.equal(layout.pad(layout.pack(x)), x)


def test_rows_of_gives_each_caption_its_image():
    memory = noise(2, 3, 4)
    rows = rows_of(memory, torch.tensor([1, -1, 0, 1]))
    assert torch.equal(rows[[0, 2, 3]], memory[[1, 0, 1]])
