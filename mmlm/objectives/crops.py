"""Random crops of images, as a pure function of given random numbers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWS = 4
"""Numbers that decide one crop: its area, its shape, and where it is from left to right and from top to bottom."""
_MOST_OBLONG = math.log(4 / 3)


def crops(images: Tensor, draws: Tensor, min_area: float, max_area: float) -> Tensor:
    """One crop of each image, resized to its size (bilinear): uint8[B, 3, S, S], float64[B, 4] in [0, 1) -> as images.

    A crop has between ``min_area`` and ``max_area`` of the image's area and a width-to-height ratio between 3/4 and 4/3
    (as in Inception's random crops, arXiv:1409.4842), cut off at the image's own size.
    """
    if len(images) == 0:
        return images
    area = min_area + (max_area - min_area) * draws[:, 0]
    ratio = ((2 * draws[:, 1] - 1) * _MOST_OBLONG).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    # In the coordinates of grid_sample, where an image reaches from -1 to 1.
    left, top = (1 - width) * (2 * draws[:, 2] - 1), (1 - height) * (2 * draws[:, 3] - 1)
    zero = torch.zeros_like(width)
    theta = torch.stack([width, zero, left, zero, height, top], dim=1).unflatten(1, (2, 3)).float()
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    found = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.round().to(torch.uint8)
