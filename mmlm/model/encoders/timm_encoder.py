"""Image encoders: uint8 images to patch tokens."""

from collections.abc import Sequence

import timm
import torch
from timm.layers import to_2tuple
from timm.models import VisionTransformer
from torch import Tensor, nn

from mmlm.errors import UserError
from mmlm.model.encoders.readout import Normalize, Pool, Readout
from mmlm.model.protocols import EncoderOutput


class ConvolutionalStem(nn.Module):
    """Strided 3x3 convolutions in place of one patch projection (arXiv:2106.14881), for timm's ``embed_layer`` slot.

    log2(patch_size) convolutions of stride 2, each followed by batch-independent normalisation and GELU, then a 1x1
    projection to the token width. Differs from the paper: GroupNorm with one group for BatchNorm, since a trainable
    batch norm would make the result depend on how the batch is split over ranks.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        patch_size: int | tuple[int, int] = 8,
        in_chans: int = 3,
        embed_dim: int = 144,
        channels: Sequence[int] | None = None,
        bias: bool = True,
        dynamic_img_pad: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = to_2tuple(img_size), to_2tuple(patch_size)
        self.grid_size = (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        num_layers = self.patch_size[0].bit_length() - 1
        if num_layers < 1 or 2**num_layers != self.patch_size[0] or dynamic_img_pad:
            raise UserError(f"encoder.patch_size: {patch_size} with a convolutional stem must be a power of two, 2 up")
        channels = channels or [max(embed_dim // 2 ** (num_layers - 1 - i), 24) for i in range(num_layers)]
        layers: list[nn.Module] = []
        for wide_in, wide_out in zip([in_chans, *channels[:-1]], channels, strict=True):
            layers += [
                nn.Conv2d(wide_in, wide_out, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(1, wide_out),
                nn.GELU(),
            ]
        self.convolutions = nn.Sequential(*layers).to(device, dtype)
        self.proj = nn.Conv2d(channels[-1], embed_dim, 1, bias=bias, device=device, dtype=dtype)

    def forward(self, images: Tensor) -> Tensor:
        """float[B, 3, H, W] -> float[B, N, D]."""
        return self.proj(self.convolutions(images)).flatten(2).transpose(1, 2)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels a token (timm asks for it)."""
        return max(self.patch_size) if as_scalar else self.patch_size


class TimmVit(nn.Module):
    """Any timm Vision Transformer (arXiv:2010.11929) by name, without its head: patch tokens after the last norm.

    ``width``, ``depth`` and ``num_heads`` override the named architecture (not with ``pretrained``); ``stem`` is the
    usual ``patch`` projection or ``convolution`` (``ConvolutionalStem``). Class and register tokens, where the
    architecture has them, take part in attention and are left out of the result. Without pretrained weights the linear
    layers start Xavier-uniform, as in the reference implementation (timm's ``weight_init="jax"``; timm's own default,
    normal(0, 0.02), shrinks signals in narrow models).
    """

    def __init__(
        self,
        image_size: int,
        name: str = "vit_tiny_patch16_224",
        pretrained: bool = False,
        patch_size: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        stem: str = "patch",
        class_token: bool = True,
        drop_path: float = 0.0,
        patch_dropout: float = 0.0,
        pool: Pool | None = None,
        keep_prefix_tokens: bool = False,
        final_norm: bool = True,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        if name not in timm.list_models(name, pretrained=False) and name not in timm.list_pretrained(name):
            near = timm.list_models(f"{name.split('_')[0]}*")[:6]
            some = ", ".join(near) or "vit_tiny_patch16_224"
            raise UserError(f"encoder.name: timm has no model '{name}'; it has for example {some}")
        changes = {"embed_dim": width, "depth": depth, "num_heads": num_heads, "patch_size": patch_size}
        changes = {key: value for key, value in changes.items() if value is not None}
        if stem not in ("patch", "convolution"):
            raise UserError(f"encoder.stem: '{stem}' is not one of patch, convolution")
        if pretrained and (changes.keys() - {"patch_size"} or stem != "patch" or not class_token):
            fixed = "width, depth, num_heads, stem and class_token"
            raise UserError(f"encoder.pretrained: pretrained weights fix {fixed}; leave them at their defaults")
        if stem == "convolution":
            changes["embed_layer"] = ConvolutionalStem
        if not class_token:
            changes |= {"class_token": False, "global_pool": "avg"}
        _check_patches(image_size, patch_size)
        try:
            self.vit = timm.create_model(
                name,
                pretrained=pretrained and load_weights,
                img_size=image_size,
                num_classes=0,
                drop_path_rate=drop_path,
                patch_drop_rate=patch_dropout,
                weight_init="" if pretrained else "jax",
                **changes,
            )
        except TypeError as error:
            raise UserError(f"encoder.name: timm's '{name}' is no plain ViT ({error})") from error
        except (AssertionError, ZeroDivisionError) as error:
            given = f"width={width}, depth={depth}, num_heads={num_heads}"
            raise UserError(f"encoder: timm's '{name}' does not take {given} ({error})") from error
        if not isinstance(self.vit, VisionTransformer):
            raise UserError(f"encoder.name: '{name}' is a {type(self.vit).__name__}; this encoder takes timm ViTs")
        _check_patches(image_size, self.vit.patch_embed.patch_size[0])
        # Only patch tokens are used: an attention pool would be parameters that never see a gradient.
        self.vit.reset_classifier(0, "")
        if not final_norm:
            self.vit.norm, self.vit.fc_norm = nn.Identity(), nn.Identity()
        self.width = self.vit.embed_dim
        self.grid = tuple(self.vit.patch_embed.grid_size)
        self.readout = Readout(self.vit.num_prefix_tokens, self.vit.has_class_token, pool, keep_prefix_tokens)
        self.num_prefix_tokens = self.readout.num_kept
        self.pooled_width = self.readout.pooled_width(self.width)
        self.normalize = Normalize(self.vit.pretrained_cfg["mean"], self.vit.pretrained_cfg["std"])

    def forward(self, images: Tensor) -> EncoderOutput:
        """uint8[B, 3, S, S] -> tokens float[B, N, D]; normalises with the architecture's own mean and deviation."""
        tokens = self.vit.forward_features(self.normalize(images))
        # timm moves the last norm behind the pooling (fc_norm) where an architecture averages; else it is the identity.
        return self.readout(self.vit.fc_norm(tokens))


def _check_patches(image_size: int, patch_size: int | None) -> None:
    """UserError unless patches tile the image; None is the architecture's own size, known only once it is built."""
    if patch_size is not None and (patch_size < 1 or image_size % patch_size):
        raise UserError(f"encoder.patch_size: image size {image_size} is not a multiple of patch size {patch_size}")
