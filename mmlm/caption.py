"""``python -m mmlm.caption run=DIR IMAGE...``: writes one caption an image with a trained run."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mmlm.cli.exits import report_user_errors
from mmlm.cli.key_values import parse_key_values
from mmlm.core.errors import USER_ERROR, UserError
from mmlm.data.images import read_image
from mmlm.evaluation.decoding import write_captions
from mmlm.experiment.build import build_transform
from mmlm.experiment.device import choose_device
from mmlm.experiment.saved_run import load_run

BATCH = 64
"""Images that are read and captioned at a time."""


@dataclass
class CaptionSettings:
    """Caption images with a trained run: prints ``path<TAB>caption``, one line an image."""

    run: str = "???"
    """Run folder, or a folder with a single run below it."""
    language: str | None = None
    """Language to caption in; null takes the run's own."""
    device: str = "auto"
    """auto, cpu or cuda."""
    plugins: list[str] = field(default_factory=list)
    """Packages, besides mmlm, that the run may take parts from: naming one allows it to run code."""


def main(argv: list[str]) -> int:
    """Captions every readable image, and names the other files on stderr; the exit status is 2 if there are any."""
    settings, paths = parse_key_values(argv, CaptionSettings, positional="IMAGE")
    if not paths:
        raise UserError("no image given; usage: python -m mmlm.caption run=DIR IMAGE...")
    device = choose_device(settings.device)
    run = load_run(settings.run, device, settings.plugins)
    config, model, tokenizer = run.config, run.model, run.tokenizer
    if model.decoder is None:
        raise UserError(f"run: {run.folder} has no decoder to write captions; give a run that was trained with one")
    start_id = tokenizer.start_id(settings.language or config.data.language)
    transform = build_transform(config)

    def captions(images: list[Tensor]) -> list[str]:
        with torch.no_grad():
            features = model.encode_image(transform(images, None).to(device))
        return write_captions(model, tokenizer, features, start_id, config.data.max_tokens)

    failed = 0
    for first in range(0, len(paths), BATCH):
        read: dict[str, Tensor] = {}
        for path in paths[first : first + BATCH]:
            try:
                read[path] = read_image(Path(path))
            except UserError as error:
                failed += 1
                print(f"mmlm: {error}", file=sys.stderr)
        for path, caption in zip(read, captions(list(read.values())) if read else [], strict=True):
            print(f"{path}\t{caption}")
    return USER_ERROR if failed else 0


if __name__ == "__main__":
    report_user_errors(main)
