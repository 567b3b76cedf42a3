"""``python -m mmlm.bench data``: the table it prints, and mistakes."""

import re

from mmlm.bench import __main__ as bench


def test_the_table_has_both_figures(command, tmp_path):
    out = tmp_path / "table.md"
    outcome = command(bench, "data", "shards=20", "members=30", "rounds=2", f"out={out}")
    assert outcome.status == 0
    assert "`python -m mmlm.bench data shards=20 members=30 rounds=2 out=" in outcome.out
    assert re.search(r"\| a tar member by the index, beside the read \| -?[\d.]+ µs \| 15 µs \|", outcome.out)
    assert re.search(r"\| 20 indexed shards ready \| [\d.]+ s \| 0\.004 s \|", outcome.out)
    assert out.read_text(encoding="utf-8").strip() == outcome.out.strip()


def test_numbers_below_one_are_refused(command):
    outcome = command(bench, "data", "rounds=0")
    assert (outcome.status, outcome.mistake) == (2, "rounds: 0 must be at least 1")
