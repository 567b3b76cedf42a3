"""Lists of folders answer as the file system does, whatever is asked and however many names fit."""

import os

import pytest

from mmlm.data.existing_files import ExistingFiles


@pytest.fixture
def folder(tmp_path):
    """Files, a folder, links to both, and a link to nothing."""
    for name in ("a.png", "b.png", "ü.png"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.png").touch()
    for name, to in (("link.png", "a.png"), ("folder.png", "sub"), ("nowhere.png", "missing")):
        (tmp_path / name).symlink_to(tmp_path / to)
    return tmp_path


@pytest.mark.parametrize("most_listed", [0, 3, 100])
@pytest.mark.parametrize("list_after", [0, 2, 100])
def test_the_answers_are_those_of_the_file_system(folder, list_after, most_listed):
    files = ExistingFiles(list_after, most_listed)
    names = ["a.png", "missing.png", "sub", "sub/c.png", "sub/../b.png", "link.png", "folder.png", "folder.png/c.png"]
    names += ["nowhere.png", "ü.png", "a.png/", "", "no folder/a.png", "a\0b", "x" * 5000, "./a.png"]
    for _ in range(3):
        for name in names:
            path = os.path.join(folder, name)
            assert files.has(path) == os.path.isfile(path), name


def test_a_folder_is_listed_once_and_its_files_are_not_asked_for(folder, monkeypatch):
    files, listed, asked = ExistingFiles(list_after=1), [], []
    scandir, isfile = os.scandir, os.path.isfile
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path) or isfile(path))
    assert all(files.has(str(folder / name)) for name in ("a.png", "b.png", "link.png", "a.png"))
    assert (len(listed), len(asked)) == (1, 1)
