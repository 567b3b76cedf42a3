"""``python -m mmlm.bench data``: the table it prints, and mistakes."""

import re

from torchvision import transforms

from mmlm.bench import __main__ as bench
from mmlm.bench import photos
from mmlm.data.jpeg import HAS_DECODER


def test_the_tables_have_all_figures(command, monkeypatch, tmp_path):
    # What open_clip's is made of: to import open_clip takes seconds.
    crop = transforms.RandomResizedCrop(224, (0.9, 1.0), interpolation=transforms.InterpolationMode.BICUBIC)
    monkeypatch.setattr(photos, "_open_clip_transform", lambda: transforms.Compose([crop, transforms.ToTensor()]))
    out = tmp_path / "table.md"
    outcome = command(bench, "data", "shards=20", "members=30", "photos=2", "rounds=2", f"out={out}")
    assert outcome.status == 0
    assert "`python -m mmlm.bench data shards=20 members=30 photos=2 rounds=2 out=" in outcome.out
    assert re.search(r"\| open_clip's transform \| [\d.]+ \| 1.00 \|  \|", outcome.out)
    assert re.search(r"\| the same pixels \| [\d.]+ \| [\d.]+ \| 2.1 \|", outcome.out)
    assert "at most 1 of 255 apart" in outcome.out
    assert ("decoded at a fraction" in outcome.out) == HAS_DECODER
    assert re.search(r"\| a tar member by the index, beside the read \| -?[\d.]+ µs \| 15 µs \|", outcome.out)
    assert re.search(r"\| 20 indexed shards ready \| [\d.]+ s \| 0\.004 s \|", outcome.out)
    assert out.read_text(encoding="utf-8").strip() == outcome.out.strip()


def test_numbers_below_one_are_refused(command):
    outcome = command(bench, "data", "rounds=0")
    assert (outcome.status, outcome.mistake) == (2, "rounds: 0 must be at least 1")


def test_without_open_clip_the_table_says_so(monkeypatch):
    monkeypatch.setattr(photos, "_open_clip_transform", lambda: None)
    assert "open_clip is not installed" in list(photos.crops_table([b""], 1))[-1]
