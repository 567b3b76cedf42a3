"""Vision Transformers of the library transformers as image encoders."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, ImageProcessingMixin, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.local_files import locate
from mmlm.core.wording import one_line
from mmlm.model.encoders.positions import resized_positions
from mmlm.model.encoders.readout import Normalize, OwnPool, Readout, readout_pool
from mmlm.model.encoders.unused import leave_out_unused, unused_parameters
from mmlm.model.hugging_face_loading import (
    check_source,
    config_class,
    new_config,
    pretrained_model,
    random_model,
    saved_config,
)
from mmlm.model.protocols import EncoderOutput

_CLIP = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
_HALF = (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
_COLOURS: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {
    "clip_vision_model": _CLIP,
    "chinese_clip_vision_model": _CLIP,
    "siglip_vision_model": _HALF,
    "vit": _HALF,
    "beit": _HALF,
    "ijepa": _HALF,
}
"""Mean and deviation of the images of a model family, by model type; any other has ImageNet's (DINOv2, DINOv3, DeiT).
"""
_SUPPLIED = {
    "image_size": "has a key of its own; set data.image_size",
    "dtype": "is decided by the run; remove it",
    "attn_implementation": "is decided by the run; remove it",
}
"""Config values that ``settings`` may not set, and how the error message ends if it does."""
_CLIP_NORM = "post_layernorm"
"""Name of the last norm in CLIP's vision tower. transformers applies it to the class token only; we, to all tokens."""


class HuggingFaceVision(nn.Module):
    """A Hugging Face vision Transformer with one token a patch: CLIP, SigLIP, ViT, DeiT, DINOv2, DINOv3, BEiT, I-JEPA.

    Tokens are those after the last norm. Poolers, mask tokens and other parameters that the tokens do not depend on are
    left out. From a CLIP or SigLIP checkpoint (its config has a ``vision_config``) only the vision tower is loaded.
    Positions are resized to ``image_size`` bicubically, as transformers' own ``interpolate_pos_encoding`` does, but
    once and not in every pass.

    Args:
        image_size: pixels a side, S.
        name_or_path: pretrained model on the hub or in a folder (safetensors only, and none of its code is run), or
            ``package:NAME/folder``; or
        architecture: transformers' model type, such as ``clip_vision_model``, ``dinov2`` or ``vit``, to start from
            random weights (as transformers starts them).
        settings: values of the architecture's config, such as ``{hidden_size: 64, num_hidden_layers: 2}``.
        pool: ``cls`` pools the class token, ``mean`` the patch tokens, ``own`` is the architecture's own pooling head
            (SigLIP's attention pool); None leaves pooling to the bridge.
        keep_prefix_tokens: leave class and register tokens in front of the patches.
        load_weights: false builds a pretrained model from its config, with random weights.

    Raises:
        UserError: a model that cannot be loaded, is no vision Transformer, or does not take ``settings`` or images of
            ``image_size``.
    """

    sees_some = False

    def __init__(
        self,
        image_size: int,
        name_or_path: str | None = None,
        architecture: str | None = None,
        settings: Mapping[str, Any] | None = None,
        pool: OwnPool | None = None,
        keep_prefix_tokens: bool = False,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        check_source(name_or_path, architecture)
        if name_or_path is not None and settings:
            raise ArgumentError("settings: a pretrained model has its own; leave it at null")
        if name_or_path is not None:
            config = saved_config(name_or_path)
            config = getattr(config, "vision_config", config)
        else:
            config = _new_config(str(architecture), settings or {})
        key = "name_or_path" if architecture is None else "architecture"
        side = _check_patches(config, image_size, key)
        # The checkpoint's own image size gives the grid that its positions are resampled from.
        own_size = config.image_size
        config.image_size = image_size
        self.grid, self.width = (side, side), config.hidden_size
        # A trial model on the meta device costs neither memory nor random numbers; it tells the number of prefix
        # tokens, and which parameters the tokens do not depend on.
        with torch.device("meta"):
            trial = _build(config).eval()
        self._own_pool = pool == "own"
        prefix, unused = self._try(trial, image_size, key)
        norm = next((name for name in unused if name.endswith(f"{_CLIP_NORM}.weight")), None)
        # CLIP's last norm is unused by the tokens that transformers returns, but ``forward`` applies it: it stays.
        self._late_norm = None if norm is None else norm.removesuffix(".weight")
        self.tower = _build(config)
        spare = [name for name in unused if _CLIP_NORM not in name]
        if name_or_path is not None and load_weights:
            _load(self.tower, name_or_path, own_size, self.grid, spare)
        leave_out_unused(self.tower, spare)
        self.readout = Readout(prefix, prefix > 0, readout_pool(pool), keep_prefix_tokens)
        self.num_prefix_tokens, self.drops_patches = self.readout.num_kept, False
        self.pooled_width = self.width if self._own_pool else self.readout.pooled_width(self.width)
        self.normalize = Normalize(*_colours(config, name_or_path))

    def forward(self, images: Tensor) -> EncoderOutput:
        """uint8[B, 3, S, S] -> tokens float[B, N, D]; normalises with the model's own mean and deviation."""
        found = self.tower(pixel_values=self.normalize(images))
        tokens = found.last_hidden_state
        if self._late_norm is not None:
            tokens = self.tower.get_submodule(self._late_norm)(tokens)
        encoded = self.readout(tokens)
        return EncoderOutput(encoded.tokens, found.pooler_output) if self._own_pool else encoded

    def resized(self, name: str, old: Tensor) -> Tensor | None:
        """The position table ``old`` resampled to this grid; None for any other parameter. See ``Encoder``."""
        if "position" not in name:
            return None
        return resized_positions(old, self.get_parameter(name), self.grid, antialias=False)

    def _try(self, trial: PreTrainedModel, image_size: int, key: str) -> tuple[int, list[str]]:
        """Runs ``trial`` on the meta device -> number of prefix tokens, names of parameters its tokens do not use."""
        with torch.enable_grad():
            try:
                images = torch.zeros(1, 3, image_size, image_size, device="meta")
                found = trial(pixel_values=images)
                tokens = found.last_hidden_state
            except (RuntimeError, ValueError, TypeError, AttributeError) as error:
                raise _no_tower(trial, key, one_line(error)) from error
            prefix = tokens.shape[1] - self.grid[0] * self.grid[1] if tokens.ndim == 3 else -1
            if prefix < 0:
                shape = list(tokens.shape[1:])
                raise _no_tower(trial, key, f"tokens of shape {shape}, with {self.grid[0]} x {self.grid[1]} patches")
            if not self._own_pool:
                return prefix, unused_parameters(trial, tokens)
            pooled = getattr(found, "pooler_output", None)  # not every output of transformers has the field
            if pooled is None:
                kind = trial.config.model_type
                raise ArgumentError(f"pool: a '{kind}' has no pooling head of its own; use cls, mean or null")
            return prefix, unused_parameters(trial, pooled)


def _new_config(architecture: str, settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The config of a model with random weights."""
    examples = "clip_vision_model, siglip_vision_model, vit, dinov2"
    kind = config_class(architecture, MODEL_MAPPING_NAMES, "model type", examples)
    config = new_config(kind, settings, _SUPPLIED, {})
    values = config.to_dict()
    width, heads = values.get("hidden_size"), values.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int) and width % heads:  # some architectures would round down
        raise ArgumentError(f"settings.num_attention_heads: {heads} does not divide hidden_size {width}")
    return config


def _check_patches(config: PreTrainedConfig, image_size: int, key: str) -> int:
    """Number of patches a side; UserError unless the model is a vision Transformer whose patches tile the image."""
    sizes = {"patch_size", "image_size", "hidden_size"}
    values = config.to_dict()
    if not all(isinstance(values.get(size), int) for size in sizes):
        raise ArgumentError(
            f"{key}: '{config.model_type}' is no vision Transformer with square patches; choose one that is, "
            "or encoder=timm for other architectures"
        )
    if image_size % config.patch_size:
        raise UserError(
            f"data.image_size: {image_size} is not a multiple of {config.patch_size}, the patch size of this "
            f"'{config.model_type}'; use one that is"
        )
    return image_size // config.patch_size


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    """The model with random weights, float32."""
    return random_model(config, partial(AutoModel.from_config, config, dtype=torch.float32))


def _load(
    tower: PreTrainedModel, name_or_path: str, image_size: int, grid: tuple[int, int], spare: Collection[str]
) -> None:
    """Copies the weights of a checkpoint for ``image_size`` into ``tower``, resampling positions to ``grid``.

    Raises UserError if the checkpoint lacks a weight, except for those in ``spare``, which the caller removes.
    """
    config = type(tower.config).from_dict(tower.config.to_dict() | {"image_size": image_size})
    load = partial(type(tower).from_pretrained, config=config)
    source = pretrained_model(name_or_path, load, may_lack=tuple(spare))
    state, target = source.state_dict(), tower.state_dict()
    for name, value in target.items():
        if state[name].shape != value.shape:
            resized = resized_positions(state[name], value, grid, antialias=False)
            if resized is None:
                raise UserError(
                    f"data.image_size: '{name}' of '{name_or_path}' cannot be resized; use {image_size}, its own size"
                )
            state[name] = resized
    tower.load_state_dict(state)


def _colours(config: PreTrainedConfig, name_or_path: str | None) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the images: those saved beside the checkpoint, else those of the model's family."""
    own = _COLOURS.get(config.model_type, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    if name_or_path is None:
        return own
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(locate(name_or_path, "name_or_path"))
    except OSError:  # no image processor was saved beside the checkpoint
        return own
    return settings.get("image_mean") or own[0], settings.get("image_std") or own[1]


def _no_tower(model: PreTrainedModel, key: str, reason: str) -> ArgumentError:
    """The error for a model that is not a vision Transformer with one token a patch."""
    kind = type(model).__name__
    return ArgumentError(f"{key}: a {kind} gives no tokens of image patches ({reason}); choose a vision tower")
