"""What people's data have in them goes through the loader: a batch as it should be, or one named example less.

What decoding makes of each kind of file is tested in ``test_images.py``, what becomes of tar members that lead
elsewhere, are there twice or lack a half, and of a shard that changes in mid-epoch, in ``test_tar_index.py`` and
``test_tar_shards.py``.
"""

import io
import json
from itertools import islice

import pytest
import torch
from PIL import Image

from mmlm.core.batch import Caption
from mmlm.data.image_folder import ImageFolder
from mmlm.data.images import decode_image
from mmlm.data.transforms import Transform
from mmlm.data.unreadable import Unreadable
from tests.data.test_images import png_header
from tests.data.test_loader import make_loader


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (20, 30), "red")
READ = {
    "a PNG called.jpg": encoded(RED, "PNG"),
    "a JPEG called.png": encoded(RED, "JPEG"),
    "cmyk.jpg": encoded(RED.convert("CMYK"), "JPEG"),
    "sixteen.png": encoded(Image.new("I;16", (5, 5), 40_000), "PNG"),
    "alpha.png": encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 128)), "PNG"),
    "palette.gif": encoded(RED.convert("P"), "GIF"),
    "turned.jpg": encoded(RED, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "moving.gif": encoded(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (20, 30), "blue")]),
    "tiny.png": encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
    "wide.png": encoded(Image.new("RGB", (20_000, 3), "red"), "PNG"),
    "line.png": encoded(Image.new("RGB", (20_000, 1), "red"), "PNG"),
    "high.jpg": encoded(Image.new("RGB", (2, 20_000), "red"), "JPEG"),
}
NOT_READ = {
    "cut.jpg": encoded(RED, "JPEG")[:-40],
    "empty.jpg": b"",
    "page.jpg": b"<html>404</html>",
    "bomb.png": png_header(65_000, 65_000),
    "gone.jpg": None,
}
CAPTIONS = {
    "typed": "<|endoftext|> a <|startoftext|> cat </s> <pad>",
    "long": "x" * 1_000_000,
    "control": "a\x00b\x1b[31m\x7f",
    "right to left": "قطة على \u202e طاولة",
    "blank": " \u00a0\u200b",
    "lone": "half \ud83d of a pair",
}


def test_each_kind_of_image_is_a_picture_or_one_example_less(tmp_path, tokenizer):
    lines = []
    for name, data in {**READ, **NOT_READ}.items():
        (tmp_path / name).write_bytes(b"x" if data is None else data)
        lines.append(json.dumps({"image": name, "caption": name}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    source = ImageFolder(tmp_path)
    (tmp_path / "gone.jpg").unlink()
    batch = next(iter(make_loader(tokenizer, source, batch_size=len(lines))))
    assert sorted(id.rpartition("/")[2] for id in batch.ids) == sorted(READ)
    found = Unreadable()
    found.add(batch.corrupt)
    assert sorted(name.partition(": ")[0].rpartition("/")[2] for name in found.names) == sorted(NOT_READ)
    assert sorted(found.by_reason().split(", ")) == [
        "1 has more than N megapixels; make it smaller first",
        "1 is damaged",
        "1 is not an image",
        "1 the file is empty",
        "1 there is no such file",
    ]


@pytest.mark.parametrize("name", [name for name in READ if name not in ("sixteen.png", "alpha.png")])
def test_a_red_picture_stays_red_at_any_shape(name):
    view = Transform(16, None)([decode_image(READ[name], name)], None)
    assert view.shape == (1, 3, 16, 16)
    red, *others = view[0, :, 7:9, 7:9].float().mean(dim=(1, 2)).tolist()  # its edges fade into the ground
    assert red > 240
    assert max(others) < 20


@pytest.mark.parametrize("kind", CAPTIONS)
def test_a_caption_is_text_and_no_token_of_ours(kind, tmp_path, tokenizer):
    text = CAPTIONS[kind]
    (tmp_path / "a.png").write_bytes(READ["tiny.png"])
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "a.png", "caption": text, "language": "en"}))
    source = ImageFolder(tmp_path)
    (batch,) = islice(make_loader(tokenizer, source, batch_size=1, max_tokens=64), 1)
    assert batch.captions == (Caption(text, "en"),)
    ids = batch.tokens[0, : int(batch.lengths[0])]
    special = torch.tensor([tokenizer.pad_id, tokenizer.end_id, *(tokenizer.start_id(code) for code in ("en", "de"))])
    assert not torch.isin(ids[1:-1], special).any()  # between its own start and end
    assert (len(ids) == 64) is (kind == "long")
