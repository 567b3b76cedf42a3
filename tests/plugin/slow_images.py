"""Images that take the time that a file says while it is there, for runs that are to be met on their way."""

import time
from contextlib import suppress
from pathlib import Path

from mmlm.core.batch import Example
from mmlm.data.image_folder import ImageFolder

SLOW = "slow"
"""File in the folder of the images: while it is there, an example takes the seconds that it holds."""


class SlowImages(ImageFolder):
    """An ``ImageFolder``, the same examples sooner or later."""

    def __init__(self, folder: str | Path, captions: str = "captions.jsonl", outside: bool = False) -> None:
        super().__init__(folder, captions, outside)
        self.slow = Path(folder) / SLOW

    def __getitem__(self, index: int) -> Example:
        with suppress(FileNotFoundError):
            time.sleep(float(self.slow.read_text(encoding="utf-8")))
        return super().__getitem__(index)
