"""How similar each patch of an image is to a text, by a model that was trained on whole images.

The embedding of a patch is what the model would embed if the pooling saw that patch alone: under attention with one key
the weight is 1, which leaves the layer of the values and all that follows (MaskCLIP, arXiv:2112.01071, section 3.2).
The patches have seen each other inside of the encoder.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.core.computing import at_least_float32
from mmlm.core.errors import UserError
from mmlm.model import never_empty
from mmlm.model.model import ImageTextModel

_SAME = 1e-2
"""Relative difference of an encoder's pooled vector from the mean of its patches that may be rounding."""


@torch.no_grad()
def patch_embeddings(model: ImageTextModel, images: Tensor) -> Tensor:
    """float32[B, rows, columns, E], unit length, of uint8[B, 3, S, S]; at least float32.

    Raises UserError for an encoder that pools otherwise than by a mean of its patches, and for a bridge that takes
    patches as a whole grid only.
    """
    encoded = never_empty.encoded(model.encoder, images)
    patches = encoded.tokens[:, model.encoder.num_prefix_tokens :]
    if model.bridge is not None and model.bridge.pooled_width is not None:
        try:
            vectors = never_empty.bridged(model.bridge, patches.flatten(0, 1)[:, None]).pooled
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"bridge: {type(model.bridge).__name__} does not take one patch alone; use bridge=patches"
            ) from error
    else:
        vectors = patches.flatten(0, 1)
        mean = patches.mean(dim=1)
        pooled = encoded.pooled
        if pooled is None or pooled.shape != mean.shape or not torch.allclose(pooled, mean, _SAME, _SAME):
            raise UserError(
                "encoder.pool: its vector is not the mean of the patches; use encoder.pool=mean, or a bridge"
            )
    assert vectors is not None, "a bridge with a pooled_width pools"
    embedded = F.normalize(at_least_float32(model.image_projection(vectors)), dim=-1)
    return embedded.unflatten(0, (len(patches), *model.encoder.grid))


def resized(maps: Tensor, size: int) -> Tensor:
    """float[P, rows, columns] -> float[P, size, size], bilinearly between the middles of the patches."""
    return F.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]
