"""Crops of JPEG files: mmlm's against those of open_clip's own transform, by turns in one thread."""

import importlib.util
import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional as peer
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from mmlm.data.crop import Crop
from mmlm.data.images import decode_image
from mmlm.data.jpeg import HAS_DECODER

WIDTH, HEIGHT, VIEW = 640, 480, 224
EXACT_RATIO, SCALED_RATIO = 2.1, 4.0
"""How many times as fast as open_clip's transform crops are to be: with its pixels, and with scaled decoding."""


def encoded_photos(count: int) -> list[bytes]:
    """JPEG files of smooth colours with some noise, of about the size that photos have (90 kB)."""
    generator = np.random.default_rng(0)
    return [_encoded_photo(generator) for _ in range(count)]


def _encoded_photo(generator: np.random.Generator) -> bytes:
    coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
    noisy = smooth + generator.normal(0, 6, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def crops_table(photos: Sequence[bytes], rounds: int) -> Iterator[str]:
    """The lines of the table of crops."""
    size = sum(map(len, photos)) / len(photos)
    yield f"Crops: {len(photos)} files of {size / 1000:.0f} kB in the mean, by turns in one thread."
    yield ""
    yield "| crop of 224 from a JPEG of 640x480 | ms | times as fast as open_clip's | aimed at, at least |"
    yield "|---|--:|--:|--:|"
    theirs = _open_clip_transform()
    if theirs is None:
        yield "| open_clip is not installed: pip install open_clip_torch | | | |"
        return
    ways: dict[str, tuple[Callable[[bytes], object], str]] = {
        "open_clip's transform": (lambda data: theirs(Image.open(io.BytesIO(data))), ""),
        "the same pixels": (_ours(Crop(VIEW)), f"{EXACT_RATIO}"),
    }
    if HAS_DECODER:
        ways["decoded at a fraction of the size"] = (_ours(Crop(VIEW, scaled=True)), f"{SCALED_RATIO:.1f}")
    medians = _medians({name: way for name, (way, _) in ways.items()}, photos, rounds)
    base = medians["open_clip's transform"]
    for name, (_, aim) in ways.items():
        yield f"| {name} | {1e3 * medians[name]:.2f} | {base / medians[name]:.2f} | {aim} |"
    yield ""
    yield _apart(photos)
    if not HAS_DECODER:
        yield "Decoded by Pillow: simplejpeg, which is faster and can scale, is not installed."


def _medians(ways: Mapping[str, Callable[[bytes], object]], photos: Sequence[bytes], rounds: int) -> dict[str, float]:
    """Seconds of one photo by each way, which take turns; processor time of one thread."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds + 1):
            for name, way in ways.items():
                begun = time.thread_time()
                for data in photos:
                    way(data)
                taken[name].append((time.thread_time() - begun) / len(photos))
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(some[1:]) for name, some in taken.items()}  # the first round warms up


def _open_clip_transform() -> Any:
    """open_clip's transform of training images; None without the package, which is found before it is imported."""
    if importlib.util.find_spec("open_clip") is None:
        return None
    import open_clip

    return open_clip.image_transform(VIEW, is_train=True)


def _ours(crop: Crop) -> Callable[[bytes], Tensor]:
    generator = torch.Generator().manual_seed(0)

    def crop_of(data: bytes) -> Tensor:
        uniforms = torch.rand(1, crop.num_uniforms, generator=generator, dtype=torch.float64)
        return crop([decode_image(data, "a photo", crop.at_least)], uniforms)

    return crop_of


def _apart(photos: Sequence[bytes]) -> str:
    """How far pixels are from those of open_clip's transform, for the boxes that this draws."""
    worst = {False: 0, True: 0}
    mean = {False: 0.0, True: 0.0}
    for data in photos:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        draws = torch.rand(Crop.num_uniforms, dtype=torch.float64, generator=torch.Generator().manual_seed(len(data)))
        box = Crop(VIEW).box(HEIGHT, WIDTH, draws.tolist()[:4])
        theirs = torch.from_numpy(np.array(peer.resized_crop(image, *box, [VIEW, VIEW], InterpolationMode.BICUBIC)))
        for scaled in worst if HAS_DECODER else [False]:
            crop = Crop(VIEW, scaled=scaled)
            ours = crop([decode_image(data, "a photo", crop.at_least)], draws[None])[0].permute(1, 2, 0)
            apart = (ours.int() - theirs.int()).abs()
            worst[scaled], mean[scaled] = (
                max(worst[scaled], int(apart.max())),
                mean[scaled] + float(apart.float().mean()),
            )
    said = f"Pixels beside open_clip's of the same box: at most {worst[False]} of 255 apart"
    if HAS_DECODER:
        said += f"; decoded at a fraction {mean[True] / len(photos):.1f} in the mean, at most {worst[True]}"
    return said + "."
