"""Writes captions of images with a trained run."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmlm.cli.arguments import CaptionArguments
from mmlm.cli.runs import chosen_run
from mmlm.core.errors import USER_ERROR, UserError
from mmlm.core.wording import printable
from mmlm.data.images import read_image
from mmlm.evaluation.generation.captions import Written, check_settings, pixel_keys, write_captions
from mmlm.experiment.build import build_transform
from mmlm.experiment.device import choose_device
from mmlm.experiment.saved_run import load_run

BATCH = 64
"""Images that are read and captioned at a time."""


def caption_images(arguments: CaptionArguments, paths: Sequence[str]) -> int:
    """Captions every readable image, and names the other files on stderr; the exit status is 2 if there are any."""
    device = choose_device(arguments.device)
    run = load_run(str(chosen_run(arguments.run)), device, arguments.plugins)
    config, model, tokenizer = run.config, run.model, run.tokenizer
    if model.decoder is None:
        raise UserError(f"run: {run.folder} has no decoder to write captions; give a run that was trained with one")
    most, language = config.data.max_tokens, config.data.language
    check_settings(tokenizer, arguments, most, language)
    transform = build_transform(config)

    def captions(images: list[Tensor]) -> list[list[Written]]:
        seen = transform(images, None).to(device)
        with torch.no_grad():
            features = model.encode_image(seen)
        return write_captions(model, tokenizer, features, arguments, pixel_keys(seen), most, language)

    failed = 0
    for first in range(0, len(paths), BATCH):
        read: dict[str, Tensor] = {}
        for path in paths[first : first + BATCH]:
            try:
                read[path] = read_image(Path(path))
            except UserError as error:
                failed += 1
                print(f"mmlm: {error}", file=sys.stderr)
        for path, written in zip(read, captions(list(read.values())) if read else [], strict=True):
            for one in written:
                # A model may say anything, also a line end: this is one line.
                line = f"{path}\t{printable(one.text)}"
                print(line if arguments.n == 1 else f"{line}\t{one.score:.4f}")
    return USER_ERROR if failed else 0
