"""Training on crops of photos, as CLIP's models were: a random box, made S x S with an antialiased cubic filter.

The pixels are those of open_clip's transform for the same box, but for rounding, and stay uint8: the encoder
normalises a batch on its device.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.core.errors import ArgumentError
from mmlm.data.augment_settings import AugmentSettings
from mmlm.data.jpeg import HAS_DECODER
from mmlm.data.transforms import Transform

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


class Crop(Transform):
    """Images to uint8[B, 3, S, S]: in training a random box of each, and in evaluation the centre square.

    The box has a share of the area that is uniform in ``scale`` and a ratio of its sides that is log-uniform in those
    of ``ratio`` with which it fits into the image. (torchvision's RandomResizedCrop draws both again, up to ten times,
    until the box fits, which would need more numbers for some images than for others.) Evaluation resizes the shorter
    side to S by the same filter, as open_clip does.
    """

    num_uniforms = 5
    resample = 3

    def __init__(
        self,
        image_size: int,
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.0,
        scaled: bool = False,
    ) -> None:
        """``image_size`` is S in pixels.

        Args:
            image_size: see above.
            scale: smallest and largest share of the image's area.
            ratio: smallest and largest ratio of width to height.
            flip: probability of a left-right mirror image in training.
            scaled: JPEG files may be decoded at a fraction of their size that leaves S pixels to each side, which is
                faster and gives slightly other pixels; in training and in evaluation alike. Needs simplejpeg.

        Raises:
            UserError, ArgumentError: a value outside of its range, or ``scaled`` without the package.
        """
        super().__init__(image_size, AugmentSettings(flip=flip))
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ArgumentError(f"scale: {scale} must be two shares of the area above 0, at most 1, the smaller first")
        if not 0 < ratio[0] <= ratio[1] < math.inf:
            raise ArgumentError(f"ratio: {ratio} must be two positive numbers, the smaller first")
        if scaled and not HAS_DECODER:
            raise ArgumentError("scaled: true needs the package simplejpeg; pip install 'mmlm[jpeg]', or scaled=false")
        self._scale, self._ratio, self._flip = scale, ratio, flip
        self.at_least = image_size if scaled else None

    def __call__(self, images: Sequence[Tensor], uniforms: Tensor | None) -> Tensor:
        """See ``Transform``."""
        if uniforms is not None and uniforms.shape != (len(images), self.num_uniforms):
            expected = (len(images), self.num_uniforms)
            raise ValueError(f"uniforms must be float64[B, num_uniforms] = {expected}, not {tuple(uniforms.shape)}")
        out = torch.empty(len(images), 3, self.image_size, self.image_size, dtype=torch.uint8)
        draws = [None] * len(images) if uniforms is None else uniforms.tolist()
        for place, (image, drawn) in enumerate(zip(images, draws, strict=True)):
            if drawn is None:
                out[place] = self._centre(image)
                continue
            view = resized(image, self.box(image.shape[1], image.shape[2], drawn[:4]), self.image_size)
            out[place] = view.flip(2) if drawn[4] < self._flip else view
        return out

    def box(self, height: int, width: int, draws: Sequence[float]) -> Box:
        """The box of an image by four numbers in [0, 1): for its area, its ratio, and its place."""
        area = (self._scale[0] + (self._scale[1] - self._scale[0]) * draws[0]) * height * width
        # Wider than this, the box is wider than the image; narrower, it is higher.
        low, high = (math.log(min(max(ratio, area / height**2), width**2 / area)) for ratio in self._ratio)
        ratio = math.exp(low + (high - low) * draws[1])
        box_width = min(width, max(1, round(math.sqrt(area * ratio))))
        box_height = min(height, max(1, round(math.sqrt(area / ratio))))
        top, left = int(draws[2] * (height - box_height + 1)), int(draws[3] * (width - box_width + 1))
        return top, left, box_height, box_width

    def _centre(self, image: Tensor) -> Tensor:
        """uint8[3, S, S]: the shorter side made S, the longer one to scale (rounded down), and the centre square."""
        size, (height, width) = self.image_size, image.shape[1:]
        shorter = min(height, width)
        whole = _resize(image, size * height // shorter, size * width // shorter)
        top, left = (round((side - size) / 2) for side in whole.shape[1:])
        return whole[:, top : top + size, left : left + size]


def resized(image: Tensor, box: Box, size: int) -> Tensor:
    """uint8[3, size, size]: a box of uint8[3, H, W]."""
    top, left, height, width = box
    return _resize(image[:, top : top + height, left : left + width], size, size)


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[1:] == (height, width):
        return image
    # In the order H, W, 3 torch has a kernel for bytes that is several times as fast as Pillow's. It reads a box in
    # its place.
    if image.stride(0) != 1 or image.stride(2) != 3:
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return F.interpolate(image[None], size=(height, width), mode="bicubic", antialias=True, align_corners=False)[0]
