"""Which images and captions of a split belong together, as pairs of rows.

Work and memory are in the number of pairs.
"""

import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY


def positive_pairs(image_concept: Tensor, caption_concept: Tensor, caption_key: Tensor, image_index: Tensor) -> Tensor:
    """int64[P, 2]: all pairs (image row, caption row) that belong together, sorted, on the CPU.

    The arguments are the fields of ``Batch``, over a whole split: ``image_concept`` int64[B], ``caption_concept``
    int64[C], ``caption_key`` int64[C], ``image_index`` int64[C] (rows of ``image_concept``, or TEXT_ONLY). A text is an
    image's own if one of the image's captions, or a caption of its concept, reads so; every caption that reads so is
    positive, whatever its own concept. Work and memory are in the number of pairs, not B x C.

    Raises ValueError if the captions' tensors differ in length or ``image_index`` names a row that is not there.
    """
    image_concept, caption_concept, caption_key, image_index = (
        tensor.cpu() for tensor in (image_concept, caption_concept, caption_key, image_index)
    )
    if not len(caption_concept) == len(caption_key) == len(image_index):
        lengths = f"{len(caption_concept)}, {len(caption_key)}, {len(image_index)}"
        raise ValueError(f"caption_concept, caption_key and image_index hold {lengths} captions: give equally many")
    if len(image_index) and not TEXT_ONLY <= int(image_index.min()) <= int(image_index.max()) < len(image_concept):
        raise ValueError(
            f"image_index spans {int(image_index.min())} to {int(image_index.max())}: "
            f"there are {len(image_concept)} images, and {TEXT_ONLY} stands for none"
        )
    # First the (image, caption) pairs that belong together by image or concept, then the distinct (image, text) pairs
    # among them, then every caption that reads as such a text.
    own = (image_index != TEXT_ONLY).nonzero().squeeze(1)
    belongs = torch.cat([_equal_pairs(image_concept, caption_concept), torch.stack([image_index[own], own], dim=1)])

    _, text = torch.unique(caption_key, return_inverse=True)
    image_text = torch.unique(torch.stack([belongs[:, 0], text[belongs[:, 1]]], dim=1), dim=0)
    expanded = _equal_pairs(image_text[:, 1], text)
    return torch.unique(torch.stack([image_text[expanded[:, 0], 0], expanded[:, 1]], dim=1), dim=0)


def merge_equal_captions(positives: Tensor, caption_key: Tensor) -> tuple[Tensor, Tensor]:
    """Keeps one of the captions that read the same, so that a wrong text takes one place before the right one at most.

    ``positives`` int64[P, 2] (image row, caption row), ``caption_key`` int64[C]. Returns the caption rows to keep,
    int64[K] (the first of each text, in order), and the pairs (image row, index into the kept rows), int64[P', 2], both
    on the CPU. COCO's own protocol does not merge.
    """
    positives, caption_key = positives.cpu(), caption_key.cpu()
    _, text = torch.unique(caption_key, return_inverse=True)
    num_texts = int(text.max()) + 1 if len(text) else 0
    first = torch.full((num_texts,), len(text)).scatter_reduce_(0, text, torch.arange(len(text)), "amin")
    kept, order = first.sort()
    row_of_text = torch.empty_like(order)
    row_of_text[order] = torch.arange(num_texts)
    return kept, torch.unique(torch.stack([positives[:, 0], row_of_text[text[positives[:, 1]]]], dim=1), dim=0)


def _equal_pairs(left: Tensor, right: Tensor) -> Tensor:
    """int64[P, 2]: every (i, j) with ``left[i] == right[j]``, for int64[L] and int64[R], without an L x R matrix."""
    # In sorted ``right``, the values equal to left[i] are one run: from ``begin[i]`` on, ``count[i]`` of them.
    left = left.contiguous()
    sorted_right, order = right.sort(stable=True)
    begin = torch.searchsorted(sorted_right, left, side="left")
    count = torch.searchsorted(sorted_right, left, side="right") - begin
    rows = torch.arange(len(left)).repeat_interleave(count)
    first_of_row = (count.cumsum(0) - count).repeat_interleave(count)
    return torch.stack([rows, order[begin[rows] + torch.arange(len(rows)) - first_of_row]], dim=1)
