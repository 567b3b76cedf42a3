"""A model in a few words: its parts and sizes, its languages, and where it is."""

import torch

from mmlm.experiment.similarity_scale import Scale
from mmlm.model.model import ImageTextModel, parameter_counts
from mmlm.pretrained.files import MmlmConfig


def headline(model: ImageTextModel, device: torch.device, dtype: torch.dtype) -> str:
    """``MmlmModel: 2,209,792 parameters, on cpu in float32``."""
    count = sum(parameter_counts(model).values())
    return f"MmlmModel: {count:,} parameters, on {device} in {str(dtype).removeprefix('torch.')}"


def facts(config: MmlmConfig, model: ImageTextModel, scale: Scale | None) -> list[tuple[str, str]]:
    """Names and values: a row for each part, then what goes in and comes out."""
    rows, columns = model.encoder.grid
    side, counts = config.image_size, parameter_counts(model)
    about = {"encoder": f"{side} x {side} pixels as {rows} x {columns} patches"}
    if model.bridge is not None:
        about["bridge"] = f"{model.bridge.num_memory} tokens for the decoder"
    if model.decoder is not None:
        about["decoder"] = f"by {model.decoder.fusion.replace('_', '-')}"
    found = []
    for slot in ("encoder", "bridge", "text_encoder", "decoder"):
        part = getattr(model, slot)
        if part is not None:
            more = f", {about[slot]}" if slot in about else ""
            found.append((slot, f"{type(part).__name__}, {counts.get(slot, 0):,} parameters{more}"))
    scaled = "no scale of its own" if scale is None else f"scale {scale.value:.4g} {scale.source}"
    found.append(("embeddings", f"{model.sizes.embedding_width} wide; {scaled}"))
    found.append(("texts", f"up to {config.max_tokens} tokens of {config.vocab_size:,}; {_languages(config)}"))
    return found


def _languages(config: MmlmConfig) -> str:
    """``en, de; captions in en``, as far as the config says."""
    tokenizer = config.parts.get("tokenizer") or {}
    names = [str(name) for name in tokenizer.get("languages") or []]
    tagged = ", ".join(names) if names else "languages without tags"
    return tagged if config.language is None else f"{tagged}; captions in {config.language}"
