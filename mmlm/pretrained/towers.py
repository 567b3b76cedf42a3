"""Two towers that somebody else has trained: what a run of ours is made of to be them, whatever library has them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.data.tokenizers.hugging_face import HuggingFace
from mmlm.data.tokenizers.open_clip import OpenClip
from mmlm.data.tokenizers.siglip import Siglip

Node = dict[str, object]
"""A part of a config: ``_target_`` and arguments; those left out keep the defaults of the class."""
SCALE, BIAS = "logit_scale", "logit_bias"
"""Names of ln(1 / temperature) and of the sigmoid loss's bias, in both libraries."""


@dataclass(frozen=True)
class Towers:
    """An image tower and a text tower as parts of ours, and their weights under our names."""

    encoder: Node
    text_encoder: Node
    tokenizer: Node
    image_size: int
    """Pixels a side."""
    max_tokens: int
    """Longest text in tokens, start and end included."""
    embedding_width: int | None
    """E; None if both towers end in projections of their own."""
    weights: Mapping[str, Tensor]
    """By the names of ``ImageTextModel``."""
    scale: Tensor | None
    """float32[]: ln(1 / temperature); None if the weights have none."""
    bias: Tensor | None
    """float32[]: the bias of the sigmoid loss; None for towers that were trained by a softmax."""
    sigmoid: bool
    """True if the towers were trained by the sigmoid loss."""


def node(kind: type, **arguments: object) -> Node:
    """The node of a part of ours."""
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **arguments}


def clip_tokenizer() -> Node:
    """CLIP's tokenizer as its weights know it."""
    return node(OpenClip, own_padding=False)


def siglip_tokenizer(name: str | None) -> tuple[Node, int]:
    """The tokenizer of a SigLIP and the id that fills its texts. Raises UserError if it cannot be had."""
    if name is None:
        raise UserError("tokenizer: the model names none; give its folder or its name at the hub: tokenizer=FOLDER")
    try:
        padding = Siglip(name).own_pad_id
    except UserError as error:
        raise UserError(f"tokenizer: {error}; give a folder that holds it: tokenizer=FOLDER") from None
    if padding is None:
        raise UserError(f"tokenizer: '{name}' has no padding, which SigLIP fills texts with; give SigLIP's own")
    return node(Siglip, name_or_path=name), padding


def scalar(weights: Mapping[str, Tensor], name: str) -> Tensor | None:
    """A number among weights as float32[]; None if it is not there."""
    return weights[name].reshape(()).to(torch.float32) if name in weights else None


def with_tokenizer(
    weights: Mapping[str, Tensor], name: str, kind: type[HuggingFace] = HuggingFace
) -> tuple[Node, dict[str, Tensor]]:
    """A tokenizer of transformers, and the weights of a CLIP without the rows behind its ids, which no text has.

    Raises UserError if it cannot be had, or has more ids than the text tower has rows.
    """
    try:
        kept = kind(name).vocab_size
    except UserError as error:
        raise UserError(f"tokenizer: {error}; give a folder that holds it: tokenizer=FOLDER") from None
    rows = weights[_EMBEDDING]
    if kept > len(rows):
        raise UserError(
            f"tokenizer: '{name}' has {kept} ids and the model rows for {len(rows)}; give the one that it was trained "
            "with: tokenizer=FOLDER"
        )
    return node(kind, name_or_path=name), {**weights, _EMBEDDING: rows[:kept]}


_EMBEDDING = "text_encoder.text_model.embeddings.token_embedding.weight"
