"""The samples of a run's report as its loggers get them: pictures, each with one line of what is said of it."""

import base64
import io
from pathlib import Path

from PIL import Image

from mmlm.record.logger import Sample
from mmlm.reports.run_folder import read_run_folder
from mmlm.reports.samples import SampleExample


def logged_samples(folder: Path) -> dict[str, list[Sample]]:
    """By split: the examples of ``samples.json``, in its order. Raises UserError if it cannot be understood."""
    found = read_run_folder(folder).samples
    return {split: [_sample(example) for example in samples.examples] for split, samples in found.items()}


def _sample(example: SampleExample) -> Sample:
    encoded = base64.b64decode(example.image.partition(",")[2])
    with Image.open(io.BytesIO(encoded)) as image:
        return Sample(image.convert("RGB"), caption_of(example))


def caption_of(example: SampleExample) -> str:
    """``a red circle (true: a red square)``: what the model says, then what is true.

    A model without a decoder says the nearest caption of the split.
    """
    nearest = example.nearest_captions[0].text if example.nearest_captions else None
    said = nearest if example.generated is None else example.generated
    true = f"true: {example.captions[0]}" if example.captions else "no caption is given"
    return true if said is None else f"{said} ({true})"
