"""What a model is known by: a digest of all that decides how it embeds an image."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

import mmlm
from mmlm.core.precision import Precision
from mmlm.pretrained.files import MmlmConfig


def image_digest(config: MmlmConfig, weights: Mapping[str, Tensor], precision: Precision = Precision.fp32) -> str:
    """A SHA-256 of what decides how a model embeds an image: weights, parts, sizes, precision, and mmlm's version.

    A run and what was exported from it have the same.
    """
    parts = {slot: config.parts[slot] for slot in ("encoder", "bridge", "transform")}
    said = {"parts": parts, "size": config.image_size, "width": config.embedding_width, "version": mmlm.__version__}
    if precision is not Precision.fp32:
        said["precision"] = precision.name
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
