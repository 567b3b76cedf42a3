"""The benchmark of captions: our greedy tokens are those of open_clip's forward pass, and mistakes are one line."""

import json
from pathlib import Path
from typing import Self

import pytest
import torch

from mmlm.bench import __main__ as bench
from mmlm.bench import generation
from mmlm.bench.open_clip_generate import IMAGES, WEIGHTS, random_model

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 24, "head_width": 12, "patch_size": 8}
    | {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5, "output_tokens": True},
    "text_cfg": {"context_length": 76, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


class PlainForward:
    """The peer in this process: the most probable token of open_clip's whole forward pass, as its ``generate`` takes.

    ``generate`` itself does not work with the version of transformers that is installed here.
    """

    def __init__(self, python: str, config: dict, folder: Path, threads: int) -> None:
        self.model, self.folder = random_model(dict(config)), folder
        torch.save(self.model.state_dict(), folder / WEIGHTS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    @torch.no_grad()
    def turn(self, tokens: int, beams: int) -> generation.Turn:
        images = torch.load(self.folder / IMAGES, weights_only=True)
        text = torch.full((len(images), 1), generation.START)
        while text.shape[1] < tokens - 1:
            logits = self.model(images, text, output_labels=False)["logits"][:, -1]
            if text.shape[1] < generation.SHORTEST - 1:
                logits[:, generation.END] = -torch.inf
            text = torch.cat([text, logits.argmax(dim=1, keepdim=True)], dim=1)
        ends = torch.full((len(images), 1), generation.END)
        return generation.Turn(2.0, torch.cat([text, ends], dim=1).tolist())


def test_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generation, "Peer", PlainForward)
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TINY))
    words = ["peer=python", f"model={config}", "batch_size=2", "tokens=[9]", "beams=[1,3]", "rounds=1"]
    assert bench.main(["generation", *words, f"out={tmp_path}/out.md"]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out.md").read_text()
    greedy, beam = (line for line in printed.splitlines() if line.startswith("| 9 |"))
    assert greedy.endswith("| 2 of 2 |")
    assert beam.endswith("| a different search |")
    assert "A late token (median of steps 71 to 75) costs" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=ViT-B-32"], "model: 'ViT-B-32' must be coca_ViT-B-32, coca_ViT-B-32:2"),
        (["model=coca_ViT-B-32:0"], "model: 'coca_ViT-B-32:0' must be"),
        (["tokens=[5]"], "tokens: [5] must be at least 7"),
        (["beams=[]"], "beams: [] must be at least 1"),
        (["rounds=0"], "rounds: 0 must be at least 1"),
        (["peer=/no/python"], "peer: /no/python cannot be run (No such file or directory); give the path of a Python"),
        (["peer=true"], "peer: true ended without an answer (what it said stands above); it needs torch"),
    ],
)
def test_mistakes(command, words, message):
    assert command(bench, "generation", "peer=true", *words).mistake.startswith(message)
