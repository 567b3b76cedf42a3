"""What we use of timm, imported without wandb; every file of ours imports timm from here.

timm imports wandb if it is installed, for a training script of its own. That takes half a second of every process, and
leaves two temporary folders behind wherever the process is killed.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Inside, importing the package ``name`` raises ImportError; if it has been imported already, nothing changes."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # how Python marks what must not be imported
    try:
        yield
    finally:
        del sys.modules[name]


with _absent("wandb"):
    import timm
    from timm.layers import resample_abs_pos_embed, to_2tuple
    from timm.models import EfficientNet, Eva, VisionTransformer, load_state_dict
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import Block

__all__ = [
    "Block",
    "EfficientNet",
    "Eva",
    "VisionTransformer",
    "VisionTransformerDistilled",
    "load_state_dict",
    "resample_abs_pos_embed",
    "timm",
    "to_2tuple",
]
