"""The index of a folder of images: it knows each file's content and the model's digest, and embeds only what is new."""

import os
import time
from pathlib import Path

import pytest
import torch

from mmlm.core.errors import UserError
from mmlm.pretrained import image_index
from mmlm.pretrained.image_index import ImageIndex, update_index
from tests.conftest import draw

MODEL = "0123"


class Indexed:
    """A folder, its index, and how many images were embedded by the last update."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder / "images", folder / "kept" / "index.safetensors"
        self.folder.mkdir()
        self.told: list[str] = []
        self.seen = 0

    def draw(self, name: str, colour: str = "red") -> Path:
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        draw(colour, "square").save(file)
        return file

    def update(self, model: str = MODEL, later: int = 10**10) -> ImageIndex:
        """Brings the index up to date; it is ``later`` nanoseconds since the files were made."""
        self.seen = 0

        def embed(images: list[torch.Tensor]) -> torch.Tensor:
            self.seen += len(images)
            return torch.nn.functional.normalize(torch.stack([i.float().mean(dim=(1, 2)) for i in images]), dim=1)

        now = time.time_ns() + later
        return update_index(self.folder, self.file, model, embed, lambda: now, lambda doing: None, self.told.append)


@pytest.fixture
def indexed(tmp_path):
    return Indexed(tmp_path)


def test_only_what_has_changed_is_embedded_again(indexed, monkeypatch):
    for name, colour in (("a.png", "red"), ("b.png", "blue"), ("inner/c.PNG", "green")):
        indexed.draw(name, colour)
    (indexed.folder / ".hidden").mkdir()
    indexed.draw(".hidden/d.png", "yellow")
    (indexed.folder / "notes.txt").write_text("none")
    first = indexed.update()
    assert (first.names, first.embedded, indexed.seen) == (("a.png", "b.png", "inner/c.PNG"), 3, 3)
    with monkeypatch.context() as patch:
        patch.setattr(image_index, "decode_image", None)  # nothing is read
        again = indexed.update()
    assert (again.names, again.embedded) == (first.names, 0)
    assert torch.equal(again.vectors, first.vectors)
    # Moved, copied and removed images cost nothing; a new one is embedded.
    (indexed.folder / "a.png").rename(indexed.folder / "z.png")
    (indexed.folder / "copy.png").write_bytes((indexed.folder / "b.png").read_bytes())
    (indexed.folder / "inner/c.PNG").unlink()
    indexed.draw("new.png", "yellow")
    moved = indexed.update()
    assert (moved.names, moved.embedded) == (("b.png", "copy.png", "new.png", "z.png"), 1)
    rows = dict(zip(moved.names, moved.vectors, strict=True))
    before = dict(zip(first.names, first.vectors, strict=True))
    assert torch.equal(rows["z.png"], before["a.png"])
    assert torch.equal(rows["b.png"], before["b.png"])
    assert torch.equal(rows["copy.png"], before["b.png"])
    # What was removed left the index too.
    indexed.draw("inner/c.PNG", "green")
    assert indexed.update().embedded == 1


@pytest.mark.parametrize("later", [0, 10**10], ids=["at once", "later"])
def test_an_image_changed_in_place_with_its_old_size_and_time_gets_a_new_vector(indexed, later):
    file = indexed.draw("a.png", "red")
    indexed.draw("b.png", "red")
    old = file.stat()
    before = indexed.update(later=later)
    content = bytearray(draw_bytes(indexed, "blue"))
    size = max(old.st_size, len(content))
    file.write_bytes(bytes(content) + b"\0" * (size - len(content)))
    os.truncate(file, size)
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    after = indexed.update(later=later)
    assert after.embedded == 1
    assert not torch.equal(after.vectors[0], before.vectors[0])
    assert torch.equal(after.vectors[1], before.vectors[1])


def draw_bytes(indexed: Indexed, colour: str) -> bytes:
    file = indexed.draw("drawn.png", colour)
    content = file.read_bytes()
    file.unlink()
    return content


def test_an_index_belongs_to_one_model(indexed):
    indexed.draw("a.png")
    indexed.update()
    (indexed.folder / "a.png").rename(indexed.folder / "b.png")
    assert indexed.update("other").embedded == 1
    assert indexed.update("other").embedded == 0
    assert indexed.told == []


def test_a_damaged_index_is_made_anew_and_told(indexed):
    indexed.draw("a.png")
    whole = indexed.update()
    content = indexed.file.read_bytes()
    for at in (0, 100, len(content) - 1):
        damaged = bytearray(content)
        damaged[at] ^= 255
        indexed.file.write_bytes(bytes(damaged))
        assert torch.equal(indexed.update().vectors, whole.vectors)
    indexed.file.write_bytes(content[:-3])
    assert indexed.update().embedded == 1
    assert len(indexed.told) == 4
    assert all("was damaged; it is made anew" in line for line in indexed.told)


def test_what_cannot_be_read_is_left_out_and_named(indexed):
    indexed.draw("a.png")
    (indexed.folder / "bad.jpg").write_text("no image")
    index = indexed.update()
    assert index.names == ("a.png",)
    assert [error.name for error in index.unreadable] == ["bad.jpg"]
    (indexed.folder / "a.png").unlink()
    assert indexed.update().names == ()
    (indexed.folder / "bad.jpg").unlink()
    with pytest.raises(UserError, match="holds no image"):
        indexed.update()


def test_who_is_interrupted_goes_on_from_the_last_save(indexed, monkeypatch):
    monkeypatch.setattr(image_index, "BATCH", 1)
    monkeypatch.setattr(image_index, "SAVE_EVERY", 2)
    for i, colour in enumerate(("red", "blue", "green", "yellow")):
        indexed.draw(f"{i}.png", colour)
    with monkeypatch.context() as patch:
        decode, calls = image_index.decode_image, []

        def stop_at_the_fourth(data, name):
            calls.append(name)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return decode(data, name)

        patch.setattr(image_index, "decode_image", stop_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            indexed.update()
    assert indexed.update().embedded == 2
