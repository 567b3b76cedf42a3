"""Is the true caption preferred to the false one? Ties are shared: a model that sees no difference is at chance.

Two captions of two images (Winoground, arXiv:2204.03162, section 3.2) have three scores: ``text``, each image prefers
its own caption; ``image``, each caption prefers its own image; ``group``, both. Guessing gives 1/4, 1/4 and 1/6.
"""

from itertools import permutations

import torch
from torch import Tensor

TIE = 1e-6
"""Scores that differ by less are equal: rounding moves a product of unit vectors by about a tenth of it."""
GROUP_CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
"""What guessing gives."""
_ORDERS = torch.tensor(list(permutations(range(4))), dtype=torch.float64)


def preferred(true: Tensor, false: Tensor) -> Tensor:
    """float64[n]: 1 where ``true`` float[n] is the higher score, 1/2 where the two are equal, else 0."""
    margin = true.double() - false.double()
    return torch.where(margin.abs() < TIE, 0.5, (margin > 0).double())


def group_scores(own: Tensor, other: Tensor) -> dict[str, Tensor]:
    """``text``, ``image`` and ``group`` of n groups, each float64[n] in [0, 1].

    ``own`` float[n, 2] are the scores of the images 0 and 1 with their own captions; ``other`` float[n, 2] those of the
    image 0 with the caption of image 1, and of the image 1 with that of image 0. Equal scores are put in every order,
    and the result is the share of the orders in which it is right.
    """
    scores = torch.cat([own, other], dim=1).double()  # [n, 4]: (0, 0), (1, 1), (0, 1), (1, 0), as (image, caption)

    def higher(one: int, two: int) -> Tensor:
        """bool[n, 24]: whether score ``one`` is above score ``two``, for each order of equal ones."""
        margin = (scores[:, one] - scores[:, two])[:, None]
        by_order = (_ORDERS[:, one] > _ORDERS[:, two])[None, :]
        return torch.where(margin.abs() < TIE, by_order, margin > 0)

    text = higher(0, 2) & higher(1, 3)
    image = higher(0, 3) & higher(1, 2)
    found = {"text": text, "image": image, "group": text & image}
    return {name: right.double().mean(dim=1) for name, right in found.items()}
