"""``python -m mmlm.bench losses``: the table it prints, what does not fit, that both sides do the same, mistakes."""

import importlib.util

import pytest
import torch

from mmlm.bench import __main__ as bench
from mmlm.bench import captioning_loss, contrastive_loss, losses
from mmlm.bench.process import Measured


@pytest.fixture
def pretend(monkeypatch):
    """``pretend(**{function: (seconds, MiB)})``: what each function takes per image; None does not fit."""

    def set_up(**costs):
        def measure(module_function, arguments):
            cost = costs[module_function.partition(":")[2]]
            if cost is None:
                raise MemoryError
            return Measured(cost[0] * int(arguments[0]), round(cost[1] * int(arguments[0]) * losses.MIB))

        monkeypatch.setattr(losses, "measure", measure)

    return set_up


def rows_of(text):
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {tuple(cells[:2]): cells[2:] for cells in lines}


def test_the_table(command, pretend, tmp_path):
    pretend(info_nce=(0.01, 1), clip_loss=(0.02, 4), sigmoid=(0.03, 2), siglip_loss=None)
    out = tmp_path / "table.md"
    outcome = command(
        bench, "losses", "batch_sizes=[100,2000]", "rounds=2", "device=cpu", "captioning=false", f"out={out}"
    )
    assert outcome.status == 0
    assert outcome.err.splitlines()[0] == "InfoNCE, B = 100"
    assert out.read_text(encoding="utf-8") == outcome.out
    none = "does not fit"
    assert rows_of(outcome.out) == {
        ("loss", "B"): ["seconds", "open_clip", "×", "MiB", "open_clip", "×"],
        ("InfoNCE", "100"): ["1.000", "2.000", "0.50", "100", "400", "0.25"],
        ("InfoNCE", "2,000"): ["20.000", "40.000", "0.50", "2,000", "8,000", "0.25"],
        ("Sigmoid", "100"): ["3.000", none, none, "200", none, none],
        ("Sigmoid", "2,000"): ["60.000", none, none, "4,000", none, none],
    }
    for said in (
        "Contrastive, embeddings of 512",
        "`python -m mmlm.bench losses 'batch_sizes=[100,2000]'",
        "took turns",
    ):
        assert said in outcome.out


def test_what_is_measured_can_be_found_and_both_sides_compute_the_same():
    for pair in losses.CONTRASTIVE:
        works = []
        for place in (pair.ours, pair.theirs):
            module, _, name = place.partition(":")
            assert module == contrastive_loss.__name__
            works.append(getattr(contrastive_loss, name)("6", "4", "cpu"))
        for ours, theirs in zip(works[0](), works[1](), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("batch_sizes=[]",), "batch_sizes: [] must be at least 1"),
        (("batch_sizes=[16,0]",), "batch_sizes: [16, 0] must be at least 1"),
        (("width=0",), "width: 0 must be at least 1"),
        (("rounds=0",), "rounds: 0 must be at least 1"),
        (("device=gpu",), "device: 'gpu' is not one of auto, cpu, cuda"),
        (("out=not/there/table.md",), "out: not/there/table.md must be a file in a folder that is there"),
        (("round=3",), "round: no such setting; did you mean rounds?"),
    ],
)
def test_mistakes(command, arguments, message):
    assert message in command(bench, "losses", *arguments).mistake


def test_open_clip_has_to_be_there(command, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "open_clip is not installed" in command(bench, "losses").mistake


def test_captioning_is_measured_too_unless_it_is_left_out(command, pretend, monkeypatch):
    pretend(info_nce=(0.01, 1), clip_loss=(0.02, 4), sigmoid=(0.03, 2), siglip_loss=(0.03, 2))
    monkeypatch.setattr(captioning_loss, "table", lambda: "| the table |")
    outcome = command(bench, "losses", "batch_sizes=[100]", "rounds=1", "device=cpu")
    assert "### Captioning, 256 captions of 13 tokens on average, 49,408 words, states of 512; once each" in outcome.out
    assert outcome.out.endswith("| the table |\n")
