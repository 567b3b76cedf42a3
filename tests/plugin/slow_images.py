"""Images that take their time while a file says so, for runs that are to be met on their way."""

import time
from pathlib import Path

from mmlm.data.sources import ImageFolder
from mmlm.flow import Example

SLOW = "slow"
"""File in the folder of the images: while it is there, an example takes SECONDS."""
SECONDS = 0.25


class SlowImages(ImageFolder):
    """An ``ImageFolder``, the same examples sooner or later."""

    def __init__(self, folder: str | Path, captions: str = "captions.jsonl") -> None:
        super().__init__(folder, captions)
        self.slow = Path(folder) / SLOW

    def __getitem__(self, index: int) -> Example:
        if self.slow.exists():
            time.sleep(SECONDS)
        return super().__getitem__(index)
