"""timm Vision Transformers as image encoders, with an optional convolutional stem."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmlm.core.errors import ArgumentError
from mmlm.core.ranges import check_counts
from mmlm.core.timm_without_wandb import VisionTransformer, to_2tuple
from mmlm.model.encoders.positions import resized_positions
from mmlm.model.encoders.readout import Normalize, Pool, Readout
from mmlm.model.encoders.some_patches import features_of, let_choose, num_kept, only_visible
from mmlm.model.encoders.timm_backbone import (
    check_arguments,
    check_registers,
    create,
    head_keys,
    load_file,
    mean_and_std,
)
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
            raise ArgumentError(f"patch_size: {patch_size} with a convolutional stem must be a power of two, 2 up")
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
        """Pixels that a token spans, a side. Part of the interface of timm's patch embeddings."""
        return max(self.patch_size) if as_scalar else self.patch_size


class TimmVit(nn.Module):
    """Any timm Vision Transformer (arXiv:2010.11929) by name, without its head: patch tokens after the last norm.

    Class and register tokens, where the architecture has them, take part in attention. Random weights of linear layers
    are Xavier-uniform, as in the reference implementation (timm's ``weight_init="jax"``): timm's default, normal(0,
    0.02), shrinks signals in narrow models.

    Args:
        image_size: pixels a side, S.
        name: timm's name of the architecture, with or without the tag of its weights.
        pretrained: load the weights that timm publishes under that name.
        weights: file of weights to load: safetensors, or .pth or .bin. Positions are resized to the grid, as they are
            with ``pretrained``.
        patch_size, width, depth, num_heads: override the architecture; with ``pretrained``, only ``patch_size`` may.
        stem: the usual ``patch`` projection or ``convolution`` (``ConvolutionalStem``).
        class_token: false builds the architecture without one.
        registers: register tokens (arXiv:2309.16588); None keeps the architecture's own number.
        drop_path: stochastic depth (arXiv:1603.09382): probability of skipping the last block; it falls linearly to 0
            at the first.
        patch_dropout: share of patches left out while training (FLIP, arXiv:2212.00794). ``forward`` then gets the
            patches that stay, in order, and N is smaller. Not for a bridge that lays patches out on the grid.
        pool: ``cls`` pools the class token, ``mean`` the patch tokens; None leaves pooling to the bridge.
        keep_prefix_tokens: leave class and register tokens in front of the patches.
        final_norm: false leaves the last norm out: tokens (and the pooled vector) are those before it, which CoCa's
            pooler reads.
        load_weights: false builds the architecture with random weights.

    Raises:
        UserError: an argument or a weight file that does not fit the architecture.
    """

    def __init__(
        self,
        image_size: int,
        name: str = "vit_tiny_patch16_224",
        pretrained: bool = False,
        weights: str | None = None,
        patch_size: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        stem: str = "patch",
        class_token: bool = True,
        registers: int | None = None,
        drop_path: float = 0.0,
        patch_dropout: float = 0.0,
        pool: Pool | None = None,
        keep_prefix_tokens: bool = False,
        final_norm: bool = True,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        check_arguments(name, pretrained, weights, registers, drop_path, patch_dropout)
        check_counts({"width": width, "num_heads": num_heads})
        check_counts({"depth": depth}, least=0)
        sizes = {"embed_dim": width, "depth": depth, "num_heads": num_heads}
        sizes = {key: value for key, value in sizes.items() if value is not None}
        if stem not in ("patch", "convolution"):
            raise ArgumentError(f"stem: '{stem}' is not one of patch, convolution")
        if pretrained and (sizes or stem != "patch" or not class_token or registers is not None):
            fixed = "width, depth, num_heads, stem, class_token and registers"
            raise ArgumentError(f"pretrained: pretrained weights fix {fixed}; leave them at their defaults")
        _check_patches(image_size, patch_size)
        changes: dict[str, object] = {**sizes}
        if patch_size is not None:
            changes["patch_size"] = patch_size
        if registers is not None:
            changes["reg_tokens"] = registers
        if stem == "convolution":
            changes["embed_layer"] = ConvolutionalStem
        if not class_token:
            changes |= {"class_token": False, "global_pool": "avg"}
        changes["drop_path_rate"] = drop_path
        self.vit = _create_vit(name, pretrained and load_weights, "" if pretrained else "jax", image_size, changes)
        _check_patches(image_size, self.vit.patch_embed.patch_size[0])
        check_registers(self.vit, registers)
        full = self.vit.state_dict().keys()
        # An attention pool or a head would be parameters that never get a gradient.
        self.vit.reset_classifier(0, "")
        if weights is not None and load_weights:
            load_file(self.vit, weights, head_keys(self.vit, full))
        if not final_norm:
            self.vit.norm, self.vit.fc_norm = nn.Identity(), nn.Identity()
        self.width = self.vit.embed_dim
        self.grid = tuple(self.vit.patch_embed.grid_size)
        self.drops_patches, self.num_kept = patch_dropout > 0, num_kept(self.grid, patch_dropout)
        self.patch_size = (image_size // self.grid[0], image_size // self.grid[1])
        # timm's hybrids run a convolutional network before the blocks; its grid may not tile the image, and then pixels
        # of a patch cannot be blanked.
        self.sees_some = image_size % self.grid[0] == 0 and image_size % self.grid[1] == 0
        let_choose(self.vit)
        self.readout = Readout(self.vit.num_prefix_tokens, self.vit.has_class_token, pool, keep_prefix_tokens)
        self.num_prefix_tokens = self.readout.num_kept
        self.pooled_width = self.readout.pooled_width(self.width)
        self.normalize = Normalize(*mean_and_std(self.vit))

    def forward(self, images: Tensor, kept: Tensor | None = None) -> EncoderOutput:
        """uint8[B, 3, S, S] -> tokens float[B, N, D]; normalises with the architecture's own mean and deviation."""
        tokens = features_of(self.vit, self.normalize(images), kept)
        # In architectures that average their tokens, timm's last norm is ``fc_norm``, behind the pooling; in all others
        # ``fc_norm`` is an identity.
        return self.readout(self.vit.fc_norm(tokens))

    def some_tokens(self, images: Tensor, kept: Tensor) -> Tensor:
        """uint8[B, 3, S, S], int64[B, K] -> float[B, K, D]; see ``Encoder``.

        Pixels of the other patches are blanked before the stem: a convolutional stem would mix them into neighbouring
        tokens and, through its norm, into every token.
        """
        pixels = only_visible(self.normalize(images), kept, self.grid)
        return self.vit.fc_norm(features_of(self.vit, pixels, kept))[:, self.vit.num_prefix_tokens :]

    def resized(self, name: str, old: Tensor) -> Tensor | None:
        """The position table ``old`` resampled to this grid; None for any other parameter. See ``Encoder``."""
        if name != "vit.pos_embed" or self.vit.pos_embed is None:
            return None
        return resized_positions(old, self.vit.pos_embed, self.grid)


def _create_vit(
    name: str, pretrained: bool, weight_init: str, image_size: int, changes: dict[str, object]
) -> VisionTransformer:
    """timm's ViT. UserError for another kind of model, or sizes that do not go together."""
    try:
        vit = create(name, pretrained, img_size=image_size, num_classes=0, weight_init=weight_init, **changes)
    except TypeError as error:
        raise ArgumentError(
            f"name: timm's '{name}' is no plain ViT ({error}); encoder=timm takes any timm model"
        ) from error
    except (AssertionError, ZeroDivisionError) as error:
        sizes = {"width": "embed_dim", "depth": "depth", "num_heads": "num_heads"}
        given = ", ".join(f"{ours}={changes.get(theirs)}" for ours, theirs in sizes.items())
        raise ArgumentError(f"name: timm's '{name}' does not take {given} ({error})") from error
    if not isinstance(vit, VisionTransformer):
        kind = type(vit).__name__
        raise ArgumentError(f"name: '{name}' is a {kind} and this encoder takes timm ViTs; use encoder=timm")
    return vit


def _check_patches(image_size: int, patch_size: int | None) -> None:
    """UserError unless patches tile the image.

    A ``patch_size`` of None is the architecture's own: its check follows once the model is built.
    """
    if patch_size is not None and (patch_size < 1 or image_size % patch_size):
        raise ArgumentError(f"patch_size: image size {image_size} is not a multiple of patch size {patch_size}")
