"""Weights of open_clip's CoCa and CLIP (open_clip 3.3) under our names, and a CoCa's of ours under theirs.

Nothing is computed: tensors are renamed, transposed, cut and joined, so that there and back is exact. The models that
our names belong to are those of ``experiment=coca_vit_b_32`` and ``experiment=clip_captioner_vit_b_32``, at any size.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.checkpoints.weights import match_weights
from mmlm.core.errors import UserError
from mmlm.core.wording import listed

SCALE = "logit_scale"
"""Name of open_clip's parameter ln(1 / temperature). In mmlm it belongs to the objective, not to the model."""
SOURCE = "the open_clip weights"
"""The name of open_clip's weights in messages."""
_SHOWN = 5
"""Names that an error shows before it only counts."""


@dataclass(frozen=True)
class Match:
    """Tensors of open_clip ("theirs") and of mmlm ("ours") that hold the same numbers."""

    theirs: tuple[str, ...]
    """Names of tensors of equal size, which are joined along the first dimension."""
    ours: tuple[str, ...]
    """One name; the two of a query and of keys and values, which are joined along the first dimension (the second is
    twice as large as the first); or the three of query, key and value."""
    transposed: bool = False
    """True if their matrix multiplies from the right, and so is the transpose of ours."""
    leading: int = 0
    """Number of leading dimensions of size 1 that our tensor has and theirs does not."""

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        """The tensors ``theirs`` converted to ours, in the order of ``ours``."""
        joined = torch.cat(theirs)
        joined = (joined.T if self.transposed else joined)[(None,) * self.leading]
        if len(self.ours) == 1:
            return [joined]
        if len(self.ours) == 3:
            return list(joined.chunk(3))
        third = len(joined) // 3
        return [joined[:third], joined[third:]]

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        """The tensors ``ours`` converted to theirs, in the order of ``theirs``."""
        joined = torch.cat(ours)[(0,) * self.leading]
        return list((joined.T if self.transposed else joined).chunk(len(self.theirs)))


def coca_from_open_clip(weights: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of open_clip's CoCa as one for our model, whose state dict ``ours`` gives names and shapes.

    ``ours`` may be on the meta device; ``logit_scale`` is left out. Raises UserError for missing, unexpected or
    wrongly shaped tensors.
    """
    converted = renamed(_coca(ours), weights)
    match_weights(ours, converted, SOURCE)
    return converted


def clip_from_open_clip(weights: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of open_clip's CLIP as one of our encoder, text layers and projections.

    Our model's bridge and multimodal layers, for which CLIP has no weights, are not in the result. ``ours`` and errors
    are as for ``coca_from_open_clip``.
    """
    # CLIPs trained as ``CustomTextCLIP`` have their text tower in a module of its own.
    text = "text." if any(name.startswith("text.") for name in weights) else ""
    converted = renamed(_clip(ours, text), weights)
    match_weights({name: tensor for name, tensor in ours.items() if name in converted}, converted, SOURCE)
    return converted


def coca_to_open_clip(ours: Mapping[str, Tensor], logit_scale: Tensor) -> dict[str, Tensor]:
    """Our model's state dict and the objective's ``logit_scale`` as a state dict of open_clip's CoCa.

    Raises UserError for missing or unexpected tensors.
    """
    matches = _coca(ours)
    _check_names("the run", ours, {name for match in matches for name in match.ours})
    converted = {SCALE: logit_scale}
    for match in matches:
        tensors = match.to_theirs([ours[name] for name in match.ours])
        converted |= {name: tensor.contiguous() for name, tensor in zip(match.theirs, tensors, strict=True)}
    return converted


def renamed(
    matches: Sequence[Match], weights: Mapping[str, Tensor], beside: Collection[str] = (SCALE,)
) -> dict[str, Tensor]:
    """``weights`` under our names. Raises UserError if a name is missing or unexpected.

    ``beside`` are names that have no match.
    """
    _check_names(SOURCE, weights, {name for match in matches for name in match.theirs} | {*beside})
    converted: dict[str, Tensor] = {}
    for match in matches:
        tensors = match.to_ours([weights[name] for name in match.theirs])
        converted |= {name: tensor.contiguous() for name, tensor in zip(match.ours, tensors, strict=True)}
    return converted


def _check_names(whose: str, found: Collection[str], wanted: Collection[str]) -> None:
    odd = {"no": sorted({*wanted} - {*found}), "an unexpected": sorted({*found} - {*wanted})}
    told = [f"{word} {listed(names, _SHOWN)}" for word, names in odd.items() if names]
    if told:
        raise UserError(f"{whose} cannot be converted: it has {' and '.join(told)}")


def _coca(ours: Mapping[str, Tensor]) -> list[Match]:
    """The matches of all tensors of a CoCa. The names in ``ours`` say how many layers there are."""
    return [
        *image_side(count_layers(ours, "encoder.vit.blocks.")),
        *_pooler(ours),
        *affine("visual.ln_post", "bridge.norm"),
        *_text_side(count_layers(ours, "decoder.unimodal_layers."), "text."),
        Match(("text.cls_emb",), ("decoder.cls_embedding",)),
        *_decoder(count_layers(ours, "decoder.multimodal_layers.")),
    ]


def _clip(ours: Mapping[str, Tensor], text: str) -> list[Match]:
    """The matches of all tensors of a CLIP. ``text`` is the prefix of the names of its text tower."""
    return [
        *image_side(count_layers(ours, "encoder.vit.blocks.")),
        *affine("visual.ln_post", "encoder.vit.norm"),
        *_text_side(count_layers(ours, "decoder.unimodal_layers."), text),
    ]


def count_layers(names: Collection[str], prefix: str) -> int:
    """The number of layers in the list of modules whose names begin with ``prefix``."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    return len(numbers)


def image_side(num_layers: int) -> Iterator[Match]:
    """The matches of an image tower of CLIP, without its last norm, with our ``encoder=vit``."""
    yield Match(("visual.class_embedding",), ("encoder.vit.cls_token",), leading=2)
    yield Match(("visual.positional_embedding",), ("encoder.vit.pos_embed",), leading=1)
    yield Match(("visual.conv1.weight",), ("encoder.vit.patch_embed.proj.weight",))
    yield from affine("visual.ln_pre", "encoder.vit.norm_pre")
    yield Match(("visual.proj",), ("image_projection.weight",), transposed=True)
    for i in range(num_layers):
        theirs, ours = f"visual.transformer.resblocks.{i}", f"encoder.vit.blocks.{i}"
        yield from affine(f"{theirs}.ln_1", f"{ours}.norm1")
        yield Match((f"{theirs}.attn.in_proj_weight",), (f"{ours}.attn.qkv.weight",))
        yield Match((f"{theirs}.attn.in_proj_bias",), (f"{ours}.attn.qkv.bias",))
        yield from affine(f"{theirs}.attn.out_proj", f"{ours}.attn.proj")
        yield from affine(f"{theirs}.ln_2", f"{ours}.norm2")
        yield from affine(f"{theirs}.mlp.c_fc", f"{ours}.mlp.fc1")
        yield from affine(f"{theirs}.mlp.c_proj", f"{ours}.mlp.fc2")


def _pooler(ours: Mapping[str, Tensor]) -> Iterator[Match]:
    theirs = "visual.attn_pool"
    yield Match((f"{theirs}.query",), ("bridge.queries",))
    yield from affine(f"{theirs}.ln_q", "bridge.query_norm")
    yield from affine(f"{theirs}.ln_k", "bridge.patch_norm")
    query, key_value = "bridge.attention.query.weight", "bridge.attention.key_value.weight"
    widths = {ours[name].shape[1] for name in (query, key_value) if name in ours}
    if len(widths) == 1:
        yield from _attention(f"{theirs}.attn", "bridge.attention")
    else:  # PyTorch's attention has three matrices instead of one if keys and queries differ in width.
        yield Match((f"{theirs}.attn.q_proj_weight",), (query,))
        yield Match((f"{theirs}.attn.k_proj_weight", f"{theirs}.attn.v_proj_weight"), (key_value,))
        yield from _attention_but_weight(f"{theirs}.attn", "bridge.attention")


def _text_side(num_layers: int, text: str) -> Iterator[Match]:
    yield Match((f"{text}token_embedding.weight",), ("decoder.token_embedding.weight",))
    yield Match((f"{text}positional_embedding",), ("decoder.position_embedding",))
    for i in range(num_layers):
        ours = f"decoder.unimodal_layers.{i}"
        yield from _self_attention_block(f"{text}transformer.resblocks.{i}", ours, "feed_forward")
    yield from affine(f"{text}ln_final", "text_norm")
    yield Match((f"{text}text_projection",), ("text_projection.weight",), transposed=True)


def _decoder(num_layers: int) -> Iterator[Match]:
    for i in range(num_layers):
        ours, theirs = f"decoder.multimodal_layers.{i}", f"text_decoder.cross_attn.{i}"
        yield from _self_attention_block(f"text_decoder.resblocks.{i}", ours, "self_feed_forward")
        yield from affine(f"{theirs}.ln_1", f"{ours}.cross_norm")
        yield from affine(f"{theirs}.ln_1_kv", f"{ours}.memory_norm")
        yield from _attention(f"{theirs}.attn", f"{ours}.cross_attention")
        yield from _feed_forward(theirs, f"{ours}.feed_forward")
    yield from affine("text_decoder.ln_final", "decoder.norm")
    yield Match(("text_decoder.text_projection",), ("decoder.head.weight",), transposed=True)


def _self_attention_block(theirs: str, ours: str, feed_forward: str) -> Iterator[Match]:
    yield from affine(f"{theirs}.ln_1", f"{ours}.self_norm")
    yield from _attention(f"{theirs}.attn", f"{ours}.self_attention")
    yield from _feed_forward(theirs, f"{ours}.{feed_forward}")


def _feed_forward(theirs: str, ours: str) -> Iterator[Match]:
    yield from affine(f"{theirs}.ln_2", f"{ours}_norm")
    yield from affine(f"{theirs}.mlp.c_fc", f"{ours}.0")
    yield from affine(f"{theirs}.mlp.c_proj", f"{ours}.2")


def _attention(theirs: str, ours: str) -> Iterator[Match]:
    yield Match((f"{theirs}.in_proj_weight",), (f"{ours}.query.weight", f"{ours}.key_value.weight"))
    yield from _attention_but_weight(theirs, ours)


def _attention_but_weight(theirs: str, ours: str) -> Iterator[Match]:
    yield Match((f"{theirs}.in_proj_bias",), (f"{ours}.query.bias", f"{ours}.key_value.bias"))
    yield from affine(f"{theirs}.out_proj", f"{ours}.output")


def affine(theirs: str, ours: str) -> Iterator[Match]:
    """The matches of a weight and its bias."""
    for name in ("weight", "bias"):
        yield Match((f"{theirs}.{name}",), (f"{ours}.{name}",))
