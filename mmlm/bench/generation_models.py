"""The CoCa whose captions are timed: its sizes, and ours with open_clip's weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from mmlm.core.errors import UserError
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.model import ImageTextModel
from mmlm.model.protocols import Decoder
from mmlm.pretrained.open_clip import coca_from_open_clip
from mmlm.pretrained.open_clip_config import CocaSizes, open_clip_sizes, read_config

WEIGHTS, IMAGES = "weights.pt", "images.pt"
"""The files of ``open_clip_generate.py``, which imports nothing from here."""
VIT_B_32 = "coca_ViT-B-32"
VOCABULARY = 49408
"""Ids of open_clip's tokenizer."""


def model_config(model: str) -> Mapping[str, Any]:
    """open_clip's configuration: that of a JSON file, or that of coca_ViT-B-32 with ``:n`` layers in each stack.

    ``coca_ViT-B-32`` is the released model, of 12. Raises UserError.
    """
    if model.endswith(".json"):
        return read_config(Path(model))
    name, _, layers = model.partition(":")
    if name != VIT_B_32 or not (layers or "12").isdecimal() or int(layers or 12) < 1:
        raise UserError(f"model: '{model}' must be {VIT_B_32}, {VIT_B_32}:2 (of 2 layers a stack), or a JSON file")
    depth, text = int(layers or 12), {"context_length": 76, "vocab_size": VOCABULARY, "width": 512, "heads": 8}
    vision = {"image_size": 224, "width": 768, "patch_size": 32, "attentional_pool": True, "attn_pooler_heads": 8}
    return {
        "embed_dim": 512,
        "vision_cfg": vision | {"layers": depth, "output_tokens": True},
        "text_cfg": text | {"layers": depth, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": text | {"layers": depth, "attn_pooler_heads": 8},
    }


def image_size(config: Mapping[str, Any]) -> int:
    """S, pixels a side."""
    return open_clip_sizes(config).image_size


def coca_of(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ImageTextModel:
    """Our CoCa of an open_clip configuration with open_clip's weights, in evaluation mode."""
    sizes = open_clip_sizes(config)
    if not isinstance(sizes, CocaSizes):
        raise UserError("model: this is a CLIP, which writes no captions; give a CoCa")
    encoder = TimmVit(
        sizes.image_size,
        "vit_base_patch32_clip_224",
        patch_size=sizes.patch_size,
        width=sizes.vision_width,
        depth=sizes.vision_layers,
        num_heads=sizes.vision_heads,
        keep_prefix_tokens=True,
        final_norm=False,
    )
    bridge = AttentionalPooler(
        encoder.width, encoder.grid, sizes.width, sizes.pooler_heads, sizes.num_queries, num_prefix_tokens=1
    )
    decoder = TransformerDecoder(
        int(config["text_cfg"].get("vocab_size", VOCABULARY)),
        sizes.width,
        sizes.max_tokens,
        width=sizes.width,
        num_heads=sizes.heads,
        unimodal_layers=sizes.text_layers,
        multimodal_layers=sizes.multimodal_layers,
        alternating=True,
        memory_norm=True,
        text_pooling="cls_shifted_mask",
        tie_weights=False,
    )
    model = ImageTextModel(encoder, bridge, cast(Decoder, decoder), sizes.embedding_width)
    model.load_state_dict(coca_from_open_clip(weights, model.state_dict()))
    return model.eval()
