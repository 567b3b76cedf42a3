"""A source of small pictures, in memory and as files."""

import io
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image

from mmlm.core.batch import Caption, Example
from mmlm.data.image_folder import ImageFolder
from mmlm.data.images import decode_image


@lru_cache
def encoded_picture(index: int) -> bytes:
    buffer = io.BytesIO()
    picture = Image.new("RGB", (24, 24 + index % 3), "white")
    picture.paste((index * 11 % 256, index * 5 % 256, 100), (3, 5, 15, 19))
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class Pictures:
    """A source in memory: picture i has three captions, and each seventh is another language's."""

    def __init__(self, count: int, corrupt: tuple[int, ...] = (), text_only: tuple[int, ...] = ()) -> None:
        self.count = count
        self.corrupt = corrupt
        self.text_only = text_only

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        image = None if index in self.text_only else decode_image(self.encoded(index), f"picture/{index}")
        return Example(
            f"picture/{index}", image, self.captions_of(index), concept=None if index % 2 else f"c{index // 4}"
        )

    def captions(self) -> Iterator[Caption]:
        for index in range(self.count):
            yield from self.captions_of(index)

    def captions_of(self, index: int) -> tuple[Caption, ...]:
        language = "de" if index % 7 == 0 else "en"
        texts = (f"picture number {index}", f"{index}", "any picture")
        return tuple(Caption(text, language) for text in texts)

    def encoded(self, index: int) -> bytes:
        return b"no picture" if index in self.corrupt else encoded_picture(index)


def write_folder(folder: Path, pictures: Pictures) -> ImageFolder:
    """The same pictures as files: a source that worker processes can import."""
    lines = []
    for index in range(len(pictures)):
        name = None if index in pictures.text_only else f"{index}.png"
        if name is not None:
            (folder / name).write_bytes(encoded_picture(index))
        for caption in pictures.captions_of(index):
            lines.append(json.dumps({"image": name, "caption": caption.text, "language": caption.language}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    source = ImageFolder(folder)
    for index in pictures.corrupt:
        (folder / f"{index}.png").write_bytes(b"no picture")
    return source
