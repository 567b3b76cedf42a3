"""``python -m mmlm.bench parts``: the table it prints, what it leaves out and why, and what it refuses."""

import re

import pytest
import torch

from mmlm.bench import __main__ as bench
from mmlm.bench import cells, parts
from mmlm.bench.cells import options_of
from mmlm.experiment.build import build_model
from mmlm.model.costs import model_costs
from mmlm.model.model import parameter_counts
from mmlm.model.protocols import MODEL_SLOTS


@pytest.fixture
def measure(command, tiny):
    """``measure(*arguments)``: the command on the tiny model, two images a step, one timed step."""
    overrides = ",".join(token for token in tiny if not token.startswith("experiment="))
    small = ("steps=1", "batch_size=2", "vocab_size=300", "device=cpu", f"overrides=[{overrides}]")
    return lambda *arguments: command(bench, "parts", *small, *arguments)


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of each line of the tables, by the first."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: others for first, *others in lines}


def test_two_cells(measure, tiny_config, tmp_path):
    out = tmp_path / "table.md"
    outcome = measure("slots=[bridge]", "options=[mlp,patches]", f"out={out}")
    assert outcome.status == 0
    assert outcome.err.splitlines() == ["1 of 2: bridge=mlp", "2 of 2: bridge=patches"]
    assert out.read_text(encoding="utf-8") == outcome.out
    rows = rows_of(outcome.out)
    assert list(rows) == ["bridge", "mlp", "**patches** (reference)"]
    for name, option, kind in (
        ("mlp", "mlp", "MlpProjection"),
        ("**patches** (reference)", "patches", "AttentionalPooler"),
    ):
        model = build_model(tiny_config(f"bridge={option}"), 300)
        flops = model_costs(model, 16, 24).flops
        assert rows[name][:4] == [
            kind,
            f"{parameter_counts(model)['bridge']:,}",
            f"{flops['bridge'] / 1e6:.2f}",
            f"{sum(flops.values()) / 1e6:.1f}",
        ]
        assert all(float(number.replace(",", "")) > 0 for number in rows[name][4:])
    assert rows["**patches** (reference)"][5] == "1.00", "memory is no matter of chance"
    for said in (
        "Reference: encoder=vit_small_images, bridge=patches, text_encoder=own, decoder=transformer",
        "A batch of 2 random images of 16 pixels, each with a random caption of 3 to 24 tokens out of 300.",
        "a multiply-add is 2",
        "`python -m mmlm.bench parts steps=1 batch_size=2 vocab_size=300 device=cpu 'overrides=[",
    ):
        assert said in outcome.out, said


def test_an_empty_slot_can_be_the_reference(measure):
    rows = rows_of(measure("slots=[text_encoder]", "options=[own]").out)
    assert rows["**own** (reference)"][:3] == ["none", "0", "0.00"]


def test_cells_that_are_refused_are_left_out_with_the_reason(measure):
    outcome = measure("slots=[bridge,decoder]", "options=[none]")
    assert outcome.status == 0
    assert rows_of(outcome.out) == {}
    found = re.findall(r"^- none: (.*)$", outcome.out, re.MULTILINE)
    assert [reason.split(";")[0] for reason in found] == [
        "bridge: the decoder needs one to see the image",
        "bridge: there is no decoder to read its memory",
    ]


def test_options_that_need_the_user_are_left_out(command, monkeypatch, own_parts):
    monkeypatch.setattr(cells, "options_of", lambda slot: ["own_pooled"])
    quoted = ",".join(f'"{token}"' for token in own_parts)
    outcome = command(bench, "parts", "slots=[encoder]", "batch_size=2", "steps=1", f"overrides=[{quoted}]")
    needed = ", ".join(f"encoder.{key}=VALUE" for key in ("depth", "num_heads", "patch_size", "width"))
    assert f"- own_pooled: needs {needed}\n" in outcome.out


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("gpt9 is no local folder\nand cannot be downloaded"), "needs a file that is not here (gpt9 is no "),
        (torch.OutOfMemoryError("CUDA out of memory"), "does not fit the device's memory"),
    ],
)
def test_what_the_machine_lacks_is_a_reason(measure, monkeypatch, error, reason):
    build = parts._build

    def lacking(overrides, *others):
        if overrides[-1] == "bridge=mlp":
            raise error
        return build(overrides, *others)

    monkeypatch.setattr(parts, "_build", lacking)
    outcome = measure("slots=[bridge]", "options=[mlp,patches]")
    assert f"- mlp: {reason}" in outcome.out
    assert list(rows_of(outcome.out)) == ["bridge", "**patches** (reference)"]


def test_every_option_file_is_found():
    assert {"mlp", "none", "patches"} <= set(options_of("bridge"))
    assert set(MODEL_SLOTS) == {"encoder", "bridge", "text_encoder", "decoder"}
    assert all(options_of(slot) for slot in MODEL_SLOTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no benchmark: name a benchmark; usage: python -m mmlm.bench parts|learns|losses|sources|data|"),
        (("part",), "part: name a benchmark"),
        (("parts", "slots=[bridges]"), "slots: 'bridges' is no slot; did you mean 'bridge'?"),
        (("parts", "slots=[bridge]", "options=[mpl]"), "options: 'mpl' is no option of bridge; did you mean 'mlp'?"),
        (("parts", "steps=0"), "steps: 0 must be at least 1"),
        (("parts", "batch_size=0"), "batch_size: 0 must be at least 1"),
        (("parts", "vocab_size=3"), "vocab_size: 3 must be at least 10"),
        (("parts", "out=not/there/table.md"), "out: not/there/table.md must be a file in a folder that is there"),
        (("parts", "step=3"), "step: no such setting; did you mean steps?"),
        (("parts", "device=gpu"), "device: 'gpu' is not one of auto, cpu, cuda"),
        (("parts", "experiment=captoin"), "captoin"),
        (("parts", "overrides=[model.widht=3]"), "model.widht: no such setting; did you mean model.width?"),
        (("parts", "overrides=[encoder.num_heads=5]"), "num_heads=5"),
    ],
)
def test_mistakes(command, arguments, message):
    assert message in command(bench, *arguments).mistake


def test_help(command):
    assert "\n  parts " in command(bench, "--help").out
    assert "vocab_size=2000" in command(bench, "parts", "--help").out
