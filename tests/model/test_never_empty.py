"""No part is called with nothing, and nothing comes out with the shape and the graph that something would have.

That this holds for every option, among ranks, is tested in ``tests/exactness/test_shared.py``.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.views import CAPTION, EMBED, ImageView, PatchView, TextPattern, TextView, ViewInputs
from mmlm.experiment.build import build_model
from mmlm.model.model import ImageTextModel
from mmlm.model.text_encoders.transformer import TransformerTextEncoder
from tests.model.conftest import build_batch
from tests.model.grid.cells import composed

VOCABULARY = 13
MASKED, KEPT, CROPS = TextView("masked"), PatchView("kept"), ImageView("crops")
VIEWS = {EMBED, CAPTION, MASKED, KEPT, CROPS}


def refuse_nothing(model: ImageTextModel) -> None:
    """Lets every part of a model fail if it is called with an empty tensor."""

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def checked(*arguments: Any, **named: Any) -> Any:
            given = [value for value in (*arguments, *named.values()) if isinstance(value, Tensor)]
            assert all(len(tensor) for tensor in given), "a part is called with nothing"
            return call(*arguments, **named)

        return checked

    for part, name in (
        (model.encoder, "forward"),
        (model.encoder, "some_tokens"),
        (model.bridge, "forward"),
        (model.text_encoder, "forward"),
        *((model.decoder, name) for name in ("text", "hidden", "hidden_by")),
    ):
        if hasattr(part, name):
            setattr(part, name, refusing(getattr(part, name)))


def make_model(has_text_encoder: bool) -> tuple[ImageTextModel, nn.Parameter]:
    """A model whose parts refuse nothing, and a mask embedding."""
    config = composed("encoder=vit_small_images", "encoder.depth=1", "bridge=q_former", "decoder=transformer")
    torch.manual_seed(0)
    model = build_model(config, VOCABULARY).double()
    if has_text_encoder:
        model.text_encoder = TransformerTextEncoder(VOCABULARY, 8, width=32, num_heads=2).double()
        model.text_norm = nn.Identity()
    refuse_nothing(model)
    return model, nn.Parameter(torch.ones(model.decoder.width, dtype=torch.float64))


def drawn(batch: Batch, mask_embedding: Tensor) -> ViewInputs:
    """Inputs of all views."""
    visible, masked = torch.ones_like(batch.lengths), torch.zeros_like(batch.inputs, dtype=torch.bool)
    masked[:, 1] = True
    kept = torch.arange(3).expand(len(batch.images), 3)
    return {MASKED: TextPattern(visible, masked, mask_embedding), KEPT: kept, CROPS: batch.images}


def results(model: ImageTextModel, batch: Batch, mask_embedding: Tensor) -> dict[str, Tensor]:
    """Everything that a batch makes."""
    output = model(batch, VIEWS, drawn(batch, mask_embedding))
    found = {str(view): tensor for view, tensor in (output.hidden | output.view_embedding).items()}
    found |= {str(view): visible.tokens for view, visible in output.patches.items()}
    return found | {name: getattr(output, name) for name in ("image_embedding", "text_embedding", "memory")}


def reached(model: ImageTextModel, batch: Batch) -> dict[str, Tensor]:
    """The gradients of a sum over everything that a batch makes."""
    model.zero_grad(set_to_none=True)
    mask_embedding = nn.Parameter(torch.ones(model.decoder.width, dtype=torch.float64))
    torch.stack([tensor.sin().sum() for tensor in results(model, batch, mask_embedding).values()]).sum().backward()
    named = (*model.named_parameters(), ("mask embedding", mask_embedding))
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


@pytest.mark.parametrize("has_text_encoder", [False, True])
def test_nothing_has_the_shape_and_the_graph_of_something(has_text_encoder):
    model, mask_embedding = make_model(has_text_encoder)
    some = build_batch(image_size=32)
    text_alone = replace(
        some, images=some.images[:0], image_concept=some.image_concept[:0], ids=(), image_index=some.image_index * 0 - 1
    )
    assert (text_alone.image_index == TEXT_ONLY).all()
    images_alone = build_batch((), (), image_size=32)
    nothing = build_batch((), (), num_images=0, image_size=32)
    no_columns = replace(nothing, tokens=nothing.tokens[:, :0])
    expected, gradients = results(model, some, mask_embedding), reached(model, some)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for batch, of_images, of_captions in ((text_alone, 0, None), (images_alone, None, 0), (nothing, 0, 0)):
        found = results(model, batch, mask_embedding)
        for name, tensor in expected.items():
            kept = of_captions if name.startswith("TextView") or name == "text_embedding" else of_images
            assert found[name].shape == tensor[:kept].shape, name
        own = reached(model, batch)
        assert own.keys() == gradients.keys()
        assert all(gradient.isfinite().all() for gradient in own.values())
    assert not any(gradient.count_nonzero() for gradient in own.values())
    assert model(no_columns, {EMBED, CAPTION}).hidden[CAPTION].shape == (0, model.decoder.width)
    assert not model.attention_maps(text_alone).count_nonzero()
