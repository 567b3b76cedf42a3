"""Small tar shards, member by member."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.data.pictures import Pictures, encoded_picture

Members = Sequence[tuple[str, bytes | str]]
"""Names and contents, in the order of the file."""


def write_tar(shard: Path, members: Members, form: int = tarfile.PAX_FORMAT) -> Path:
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, "w", format=form) as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return shard


def sample(key: str, number: int = 0, caption: str | None = None) -> Members:
    """A picture and its caption."""
    return [(f"{key}.png", encoded_picture(number)), (f"{key}.txt", caption or f"picture number {number}")]


def write_shards(folder: Path, pictures: Pictures, shards: Sequence[int]) -> Path:
    """The pictures in shards of so many each, with the first caption of each; returns the folder."""
    numbers = iter(range(len(pictures)))
    for shard, size in enumerate(shards):
        members = [
            member
            for number in (next(numbers) for _ in range(size))
            for member in ((f"{number}.png", pictures.encoded(number)), (f"{number}.txt", f"picture number {number}"))
        ]
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder
