"""Any timm model as an image encoder: its last feature map becomes patch tokens, row by row."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.ranges import check_library_settings
from mmlm.core.timm_without_wandb import Eva, VisionTransformer, timm
from mmlm.core.wording import one_line
from mmlm.model.encoders.positions import resized_positions
from mmlm.model.encoders.readout import Normalize, OwnPool, Readout, readout_pool
from mmlm.model.encoders.some_patches import features_of, let_choose, num_kept, only_visible
from mmlm.model.encoders.timm_backbone import (
    check_arguments,
    check_registers,
    create,
    head_keys,
    load_file,
    mean_and_std,
)
from mmlm.model.encoders.unused import leave_out, leave_out_unused, unused_parameters
from mmlm.model.protocols import EncoderOutput

_OURS = {
    "img_size": "data.image_size",
    "drop_path_rate": "drop_path",
    "patch_drop_rate": "patch_dropout",
    "reg_tokens": "registers",
    "num_reg_tokens": "registers",
    "final_norm": "final_norm",
    "pretrained": "pretrained",
}
"""Arguments of timm's constructors that ``settings`` may not set, and what sets each: an argument of ours or a key."""
_LAST_NORMS = ("norm", "fc_norm", "head.norm")
"""Names of the last norm in timm's architectures: ``norm`` stands before the pooling, the other two behind it."""


class TimmEncoder(nn.Module):
    """Any timm model by name, without its head: ViT, DeiT, SigLIP, DINOv2, DINOv3, EVA-02, Swin, ConvNeXt, ResNet, ...

    A feature map [B, D, R, C] (or [B, R, C, D]) becomes R * C patch tokens, row by row. Random weights are initialised
    by timm. Modules that only serve the architecture's own head are left out. A last norm that stands behind the
    pooling (ConvNeXt, EVA-02) is applied to each token.

    Args:
        image_size: pixels a side, S; a multiple of the pixels that a token spans.
        name: timm's name of the architecture, with or without the tag of its weights.
        settings: arguments of timm's constructor, such as ``{depths: [2, 2], dims: [32, 64]}``; not with
            ``pretrained``.
        pretrained: load the weights that timm publishes under that name.
        weights: file of weights to load: safetensors, or .pth or .bin. Positions are resized to the grid, as they are
            with ``pretrained``.
        registers: register tokens (arXiv:2309.16588) of a ViT or EVA; None keeps the architecture's own number.
        drop_path: stochastic depth (arXiv:1603.09382): probability of skipping the last block; it falls linearly to 0
            at the first.
        patch_dropout: share of patches that a ViT or EVA leaves out while training (FLIP, arXiv:2212.00794).
            ``forward`` then gets the patches that stay, in order, and N is smaller. Not for a bridge that lays patches
            out on the grid.
        pool: ``cls`` pools the class token, ``mean`` the patch tokens, ``own`` is the architecture's own attention pool
            (SigLIP, PE-Core); None leaves pooling to the bridge.
        head: width of the architecture's own linear head behind its own pool, whose result is then what the encoder
            pools (PE-Core's projection); None leaves the head out.
        keep_prefix_tokens: leave class, distillation and register tokens in front of the patches.
        final_norm: false leaves the last norm out: tokens (and the pooled vector) are those before it.
        load_weights: false builds the architecture with random weights.

    Raises:
        UserError: an argument or a weight file that does not fit the architecture; features that are no grid of tokens.
    """

    def __init__(
        self,
        image_size: int,
        name: str = "vit_tiny_patch16_224",
        settings: Mapping[str, Any] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        registers: int | None = None,
        drop_path: float = 0.0,
        patch_dropout: float = 0.0,
        pool: OwnPool | None = None,
        head: int | None = None,
        keep_prefix_tokens: bool = False,
        final_norm: bool = True,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        check_arguments(name, pretrained, weights, registers, drop_path, patch_dropout)
        _check_settings(settings or {}, pretrained, registers)
        if head is not None and (pool != "own" or head < 1):
            raise ArgumentError(f"head: {head} is a width of at least 1, and needs pool=own; use null")
        num_classes = 0 if head is None else head
        arguments = dict(settings or {})
        published = timm.get_pretrained_cfg(name)
        if published is not None and published.fixed_input_size:
            arguments["img_size"] = image_size
        # A trial model on the meta device costs neither memory nor random numbers. The trial tells which of our options
        # the architecture has, where its last norm is, the shape of its features and which parameters they do not use.
        with torch.device("meta"):
            trial = _trial(name, arguments, num_classes)
            check_registers(trial, registers)
            options = _options(trial, name, registers, drop_path, patch_dropout)
            if options:
                arguments |= options
                trial = _trial(name, arguments, num_classes)
        if pool == "own" and getattr(trial, "attn_pool", None) is None:
            raise ArgumentError(f"pool: timm's '{name}' has no attention pool of its own; use cls, mean or null")
        self._own_pool = pool == "own"
        norms = [path for path in _LAST_NORMS if _has_norm(trial, path)]
        if not final_norm and not norms:
            raise ArgumentError(f"final_norm: timm's '{name}' has no last norm to leave out; use true")
        # Norms behind timm's pooling are no part of ``forward_features``: ``_tokens`` applies them.
        self._late_norms = tuple(path for path in norms if path != "norm") if final_norm else ()
        if not final_norm:
            leave_out(trial, norms)
        shape, unused = self._try(trial, name, image_size)

        self.backbone: nn.Module = create(name, pretrained and load_weights, num_classes=num_classes, **arguments)
        full = self.backbone.state_dict().keys()
        leave_out_unused(self.backbone, unused)
        if weights is not None and load_weights:
            load_file(self.backbone, weights, head_keys(self.backbone, full))
        if not final_norm:
            leave_out(self.backbone, norms)
        prefix = getattr(self.backbone, "num_prefix_tokens", 0)
        self.grid, self.width = _grid(shape, prefix, image_size, self.backbone, name)
        self.drops_patches, self.num_kept = patch_dropout > 0, num_kept(self.grid, patch_dropout)
        self.patch_size = (image_size // self.grid[0], image_size // self.grid[1])
        self.sees_some = False
        if isinstance(self.backbone, VisionTransformer | Eva):
            self.sees_some = True
            let_choose(self.backbone)
        has_class_token = prefix > 0 and getattr(self.backbone, "cls_token", None) is not None
        self.readout = Readout(prefix, has_class_token, readout_pool(pool), keep_prefix_tokens)
        self.num_prefix_tokens = self.readout.num_kept
        self.pooled_width = (head or self.width) if self._own_pool else self.readout.pooled_width(self.width)
        self.normalize = Normalize(*mean_and_std(self.backbone))

    def forward(self, images: Tensor, kept: Tensor | None = None) -> EncoderOutput:
        """uint8[B, 3, S, S] -> tokens float[B, N, D]; normalises with the architecture's own mean and deviation."""
        tokens = self._tokens(self.backbone, self.normalize(images), kept)
        encoded = self.readout(tokens)
        return EncoderOutput(encoded.tokens, _pooled(self.backbone, tokens)) if self._own_pool else encoded

    def some_tokens(self, images: Tensor, kept: Tensor) -> Tensor:
        """uint8[B, 3, S, S], int64[B, K] -> float[B, K, D]; see ``Encoder``."""
        pixels = only_visible(self.normalize(images), kept, self.grid)
        return self._tokens(self.backbone, pixels, kept)[:, self.readout.num_prefix_tokens :]

    def resized(self, name: str, old: Tensor) -> Tensor | None:
        """The position table ``old`` resampled to this grid; None for any other parameter. See ``Encoder``."""
        if name != "backbone.pos_embed":
            return None
        return resized_positions(old, self.backbone.get_parameter("pos_embed"), self.grid)

    def _tokens(self, backbone: nn.Module, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """float[B, 3, S, S] -> float[B, prefix + N, D]."""
        # Convolutional networks run with the channels of a pixel next to each other in memory: 1.6 times as fast on
        # CPU, and the layout that tensor cores need.
        is_map = not isinstance(backbone, VisionTransformer | Eva)
        layout = torch.channels_last if is_map else torch.contiguous_format
        images = images.contiguous(memory_format=layout)
        if kept is None:
            features = _features(backbone, images)
        else:
            assert isinstance(backbone, VisionTransformer | Eva), "no other architecture takes some patches only"
            features = features_of(backbone, images, kept)
        for path in self._late_norms:
            features = backbone.get_submodule(path)(features)
        if features.ndim == 3:
            return features
        return features.flatten(1, 2) if _channels_last(backbone) else features.flatten(2).transpose(1, 2)

    def _try(self, trial: nn.Module, name: str, image_size: int) -> tuple[tuple[int, ...], list[str]]:
        """Runs ``trial`` on the meta device -> shape of its features, and names of parameters its tokens do not use."""
        trial.eval().to("meta")  # timm 1.0.21 creates rotary positions on the CPU whatever the default device is
        images = torch.zeros(1, 3, image_size, image_size, device="meta")
        with torch.enable_grad():
            try:
                shape = tuple(_features(trial, images).shape)
                tokens = self._tokens(trial, images)
            except (AssertionError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
                raise ArgumentError(
                    f"name: timm's '{name}' gives no features of {image_size}-pixel images "
                    f"({one_line(error)}); choose another data.image_size or architecture"
                ) from error
            return shape, unused_parameters(trial, _pooled(trial, tokens) if self._own_pool else tokens)


def _pooled(backbone: nn.Module, tokens: Tensor) -> Tensor:
    """float[B, prefix + N, D] -> float[B, Dp]: the architecture's own pool, and its head if it has been built."""
    model: Any = backbone  # as in ``_features``
    return model.forward_head(tokens)


def _features(backbone: nn.Module, images: Tensor) -> Tensor:
    """float[B, 3, S, S] -> the features of timm's own forward pass, in the architecture's own shape."""
    model: Any = backbone  # timm's models have this method, but no common class that has it
    return model.forward_features(images)


def _check_settings(settings: Mapping[str, Any], pretrained: bool, registers: int | None) -> None:
    """UserError for settings beside pretrained weights, and for settings that have a key of their own or are fixed."""
    if pretrained and (settings or registers is not None):
        raise ArgumentError("pretrained: pretrained weights fix settings and registers; leave them at null")
    for key in settings:
        if key in _OURS:
            raise ArgumentError(f"settings.{key}: has a key of its own; set {_OURS[key]}")
        if key in ("num_classes", "in_chans", "global_pool"):
            raise ArgumentError(f"settings.{key}: is not free: the encoder reads colour images and has no head")
    check_library_settings(settings, {})


def _trial(name: str, arguments: Mapping[str, Any], num_classes: int) -> nn.Module:
    """timm's architecture with random weights; UserError for arguments that its constructor refuses."""
    try:
        return create(name, pretrained=False, num_classes=num_classes, **arguments)
    except (TypeError, AssertionError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        given = ", ".join(f"{key}={value}" for key, value in arguments.items()) or "its own sizes"
        raise ArgumentError(f"settings: timm's '{name}' does not take {given} ({one_line(error)})") from error


def _options(
    plain: nn.Module, name: str, registers: int | None, drop_path: float, patch_dropout: float
) -> dict[str, Any]:
    """Maps our options to arguments of timm's constructor; UserError for an option that the architecture lacks.

    ``plain`` is the architecture built without them.
    """
    known = inspect.signature(type(plain)).parameters
    is_vit = isinstance(plain, VisionTransformer | Eva)
    register_argument = "num_reg_tokens" if isinstance(plain, Eva) else "reg_tokens"
    wanted = {
        "registers": (registers, register_argument, is_vit),
        "drop_path": (drop_path or None, "drop_path_rate", "drop_path_rate" in known),
        "patch_dropout": (patch_dropout or None, None, is_vit),  # no argument: ``PatchChoice`` replaces timm's own
    }
    arguments = {}
    for option, (value, argument, is_known) in wanted.items():
        if value is None:
            continue
        if not is_known:
            kind, default = type(plain).__name__, "null" if option == "registers" else "0.0"
            raise ArgumentError(f"{option}: timm's '{name}' is a {kind}, which has none; use {default}")
        if argument is not None:
            arguments[argument] = value
    return arguments


def _has_norm(backbone: nn.Module, path: str) -> bool:
    """True if ``path`` is a norm over the features; false for an identity, or a norm of a wider layer in the head."""
    modules = dict(backbone.named_modules())
    if path not in modules or isinstance(modules[path], nn.Identity):
        return False
    scale = next(modules[path].parameters(), None)
    return scale is None or len(scale) == backbone.num_features


def _channels_last(backbone: nn.Module) -> bool:
    """True if feature maps are [B, R, C, D] (Swin) and not [B, D, R, C]."""
    return str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")


def _grid(
    shape: tuple[int, ...], prefix: int, image_size: int, backbone: nn.Module, name: str
) -> tuple[tuple[int, int], int]:
    """(rows, columns) and width of features of ``shape``; UserError unless they are a square grid over the image."""
    # ``feature_info`` is timm's list of an architecture's stages; ``reduction`` is the pixels that a token spans, a
    # side.
    pixels = cast(Sequence[Mapping[str, int]], backbone.feature_info)[-1]["reduction"]
    if image_size % pixels:
        spans = f"the pixels that a token of timm's '{name}' spans"
        raise UserError(f"data.image_size: {image_size} is not a multiple of {pixels}, {spans}; use one that is")
    side = image_size // pixels
    if len(shape) == 3 and shape[1] == prefix + side * side:
        return (side, side), shape[2]
    if len(shape) == 4:
        rows, columns, width = shape[1:] if _channels_last(backbone) else (shape[2], shape[3], shape[1])
        if (rows, columns) == (side, side):
            return (side, side), width
    raise ArgumentError(
        f"name: timm's '{name}' gives features of shape {list(shape[1:])}, which are not {prefix} tokens and a "
        f"{side} x {side} grid; choose another architecture"
    )
