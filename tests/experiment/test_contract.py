"""A part that breaks the protocol of its slot is refused by name; every good one, shipped or not, is let through."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.errors import UserError
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.contract import check_bridge, check_decoder, check_encoder, check_text_encoder
from mmlm.experiment.trial import tried
from mmlm.model.decoders.recurrent import RecurrentDecoder
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.protocols import (
    BridgeInputs,
    BridgeOutput,
    DecoderInputs,
    EncoderInputs,
    EncoderOutput,
    TextEncoderInputs,
)

IMAGES = EncoderInputs(image_size=8, load_weights=False)
PATCHES = BridgeInputs(patch_width=6, grid=(2, 2), num_prefix_tokens=1, drops_patches=False, pool=True)
TEXTS = TextEncoderInputs(vocab_size=20, max_tokens=7, load_weights=False)
MEMORY = DecoderInputs(vocab_size=20, memory_width=8, num_memory=1, max_tokens=7, load_weights=False, embeds_text=True)


class Squares(nn.Module):
    """An encoder of 4 x 4 patches that pools by the mean."""

    width, grid, num_prefix_tokens, pooled_width = 6, (2, 2), 0, 6
    drops_patches = sees_some = False

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, 6, 4, stride=4)

    def forward(self, images: Tensor) -> EncoderOutput:
        tokens = self.projection(images.float()).flatten(2).transpose(1, 2)
        return EncoderOutput(tokens, tokens.mean(dim=1))


class Mean(nn.Module):
    """The bridge that ``configs/README.md`` has as its example."""

    memory_width, num_memory, pooled_width = 8, 1, 8

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.projection = nn.Linear(6, width)

    def forward(self, patches: Tensor) -> BridgeOutput:
        memory = self.projection(patches.mean(dim=1, keepdim=True))
        return BridgeOutput(memory, memory[:, 0])

    def patch_attention(self, patches: Tensor) -> Tensor:
        return torch.full((len(patches), 1, patches.shape[1]), 1 / patches.shape[1], device=patches.device)


class Bag(nn.Module):
    """A text encoder: the mean of the embeddings of all places."""

    width, vocabulary = 6, None

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.embedding(tokens).mean(dim=1)


class Writer(TransformerDecoder):
    """A decoder of our own, to be broken."""

    def __init__(self) -> None:
        super().__init__(20, 8, 7, width=8, num_heads=2)


def broken(kind: type[nn.Module], **attributes: object) -> nn.Module:
    """A part of a subclass of ``kind``, called MyPart, with other attributes."""
    made: type[nn.Module] = type("MyPart", (kind,), {key: a for key, a in attributes.items() if callable(a)})
    with torch.device("meta"):
        part = made()
    for key, value in attributes.items():
        if not callable(value):
            setattr(part, key, value)
    return part


def without(kind: type[nn.Module], name: str) -> nn.Module:
    """A part like ``kind`` but without an attribute or a method."""
    own = {key: value for key, value in vars(kind).items() if key not in (name, "__dict__", "__weakref__")}
    made = type("MyPart", (nn.Module,), own)
    made.__init__ = lambda self: nn.Module.__init__(self)  # type: ignore[misc]
    return made()


CHECKS: Mapping[str, tuple[Callable[..., None], object]] = {
    "encoder": (check_encoder, IMAGES),
    "bridge": (check_bridge, PATCHES),
    "text_encoder": (check_text_encoder, TEXTS),
    "decoder": (check_decoder, MEMORY),
}


def check(slot: str, part: nn.Module, run: bool = True) -> None:
    function, given = CHECKS[slot]
    function(part, given, run)


@pytest.mark.parametrize(
    ("slot", "kind"), [("encoder", Squares), ("bridge", Mean), ("text_encoder", Bag), ("decoder", Writer)]
)
def test_a_good_part_is_let_through(slot, kind):
    check(slot, broken(kind))
    check(slot, kind())


NO_POOL = lambda self, images: EncoderOutput(Squares.forward(self, images).tokens)  # noqa: E731
WIDE = lambda self, patches: BridgeOutput(torch.zeros(2, 1, 9), torch.zeros(2, 8))  # noqa: E731


@pytest.mark.parametrize(
    ("slot", "part", "message"),
    [
        ("encoder", broken(Squares, width=7), "says width 7 and makes tokens of width 6; make them equal"),
        (
            "encoder",
            broken(Squares, grid=(2, 3)),
            "says grid 2 x 3 and num_prefix_tokens 0, which are 6 tokens, and makes 4; make them equal",
        ),
        (
            "encoder",
            broken(Squares, num_prefix_tokens=1),
            "says grid 2 x 2 and num_prefix_tokens 1, which are 5 tokens, and makes 4; make them equal",
        ),
        (
            "encoder",
            broken(Squares, pooled_width=5),
            "says pooled_width 5 and makes a pooled vector of width 6; make them equal",
        ),
        (
            "encoder",
            broken(Squares, forward=NO_POOL),
            "says pooled_width 6 and makes none; make both None, or neither",
        ),
        (
            "encoder",
            broken(Squares, drops_patches=True),
            "has no num_kept, which Encoder in mmlm/model/protocols.py asks for; add it",
        ),
        (
            "encoder",
            broken(Squares, forward=lambda self, images: images),
            "returns a Tensor; make it return EncoderOutput",
        ),
        ("bridge", broken(Mean, forward=WIDE), "says memory_width 8 and makes memory of width 9; make them equal"),
        ("bridge", broken(Mean, memory_width=9), "says memory_width 9 and makes memory of width 8; make them equal"),
        (
            "bridge",
            broken(Mean, num_memory=3),
            "says num_memory 3 and makes 1 memory tokens; make them equal",
        ),
        (
            "bridge",
            broken(Mean, pooled_width=9),
            "says pooled_width 9 and makes a pooled vector of width 8; make them equal",
        ),
        (
            "bridge",
            broken(Mean, pooled_width=None),
            "says pooled_width None and was told pool=True; give it a width, since the encoder does not pool",
        ),
        (
            "bridge",
            without(Mean, "patch_attention"),
            "has no patch_attention, which Bridge in mmlm/model/protocols.py asks for; add it",
        ),
        (
            "bridge",
            broken(Mean, patch_attention=lambda self, patches: torch.zeros(2, 5, 1, device=patches.device)),
            "makes patch_attention of shape [2, 5, 1]; make it [2, 1, 5]",
        ),
        (
            "bridge",
            broken(Mean, forward=lambda self, patches: BridgeOutput(patches.mean(dim=1))),
            "makes memory of shape [2, 6]; make it [2, M, Dm]",
        ),
        (
            "bridge",
            broken(Mean, forward=lambda self, patches: self.projection(patches[..., :5])),
            "fails in a pass of its own (RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        ),
        ("text_encoder", broken(Bag, width=7), "says width 7 and makes vectors of width 6; make them equal"),
        (
            "text_encoder",
            broken(Bag, forward=lambda self, tokens, lengths: self.embedding(tokens)),
            "makes vectors of shape [3, 5, 6]; make it [3, D]",
        ),
        ("text_encoder", without(Bag, "vocabulary"), "has no vocabulary, which TextEncoder in"),
        (
            "decoder",
            broken(Writer, width=7),
            "makes head_weight of shape [20, 8]; make it [20, 7]",
        ),
        ("decoder", broken(Writer, text_width=5), "says text_width 5 and makes text(...).pooled of width 8"),
        (
            "decoder",
            broken(Writer, hidden=lambda self, *given, **named: torch.zeros(9, 5)),
            "says width 8 and makes hidden(...) of width 5; make them equal",
        ),
        (
            "decoder",
            broken(Writer, decode=lambda self, tokens, cache: torch.zeros(2, 20)),
            "makes logits of decode(...) of shape [2, 20]; make it [2, 1, 20]",
        ),
        (
            "decoder",
            broken(Writer, multimodal=lambda self, *given, **named: torch.zeros(9, 8)),
            "says records_attention and records nothing in hidden(record=...); say false",
        ),
    ],
)
def test_a_part_that_breaks_its_protocol_is_named(slot, part, message):
    with pytest.raises(UserError) as refused:
        check(slot, part)
    assert str(refused.value).startswith(f"{slot}: MyPart ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("method", ["hidden", "text", "start_decoding", "decode", "hidden_by"])
def test_a_decoder_without_a_method_is_named(method):
    class Shy(nn.Module):
        """A decoder whose class lacks one method."""

        fusion, vocabulary, width, text_width, vocab_size = "prefix", None, 8, 8, 20
        records_attention, takes_patterns = False, True
        head_weight = torch.zeros(20, 8)

    for name in {"hidden", "text", "start_decoding", "decode", "hidden_by"} - {method}:
        setattr(Shy, name, lambda self: None)
    with pytest.raises(UserError, match=f"^decoder: Shy has no {method}, which Decoder in mmlm/model/protocols.py"):
        check_decoder(Shy(), MEMORY)
    if method == "text":
        Shy.text_width = None
        check_decoder(Shy(), replace(MEMORY, embeds_text=False))
    if method == "hidden_by":
        Shy.takes_patterns = False
        check_decoder(Shy(), MEMORY)


def test_states_are_counted_where_lengths_are_known():
    """A packed decoder skips padding; on the CPU its states are counted, one for each token that has a next one."""
    with torch.device("meta"):
        part = RecurrentDecoder(20, 8, width=8)
    check("decoder", part)

    class Longer(RecurrentDecoder):
        def hidden(self, *given: object, **named: object) -> Tensor:
            states = super().hidden(*given, **named)
            return torch.cat([states, states])

    with torch.device("meta"):
        part = Longer(20, 8, width=8)
    with pytest.raises(UserError, match=r"^decoder: Longer makes hidden\(...\) of shape \[18, 8\]; make it \[9, D\]"):
        check("decoder", part)


# Parts that cannot be tried are not refused


class Reads(nn.Module):
    """Its shapes depend on values, which the meta device does not have."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x[x == self.scale.sum()]


def run(device: torch.device) -> Callable[[nn.Module], Tensor]:
    return lambda part: part(torch.zeros(4, device=device))


def test_a_part_that_reads_values_is_run_on_zeros():
    with torch.device("meta"):
        part = Reads()
    made = tried(part, "bridge: Reads", run)
    assert made.shape == (4,)
    assert part.scale.is_meta, "the part itself is as it was"
    assert part.training


def test_a_large_part_that_reads_values_is_not_refused():
    with torch.device("meta"):
        part = Reads(size=40_000_000)
    assert tried(part, "bridge: Reads", run) is None


@pytest.mark.parametrize(
    "error", [NotImplementedError("no kernel"), RuntimeError("no CUDA device"), RuntimeError("a meta tensor")]
)
def test_a_part_that_this_device_cannot_run_is_not_refused(error):
    class Elsewhere(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    assert tried(Elsewhere(), "bridge: Elsewhere", run) is None


def test_a_part_that_fails_is_told_by_its_error():
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.nothing

    with pytest.raises(UserError, match=r"^bridge: Fails fails in a pass of its own \(AttributeError: 'Tensor' object"):
        tried(Fails(), "bridge: Fails", run)


# From the config


BRIDGE = """
import torch
from torch import nn
from mmlm.model.protocols import BridgeOutput

class MyBridge(nn.Module):
    def __init__(self, patch_width, pool):
        super().__init__()
        self.memory_width, self.num_memory, self.pooled_width = 64, 1, 32 if pool else None
        self.projection = nn.Linear(patch_width, 32)
    def forward(self, patches):
        memory = self.projection(patches.mean(dim=1, keepdim=True))
        return BridgeOutput(memory, memory[:, 0])
    def patch_attention(self, patches):
        return torch.ones(len(patches), 1, patches.shape[1])
"""


def test_a_bridge_of_the_user_s_own_is_refused_before_anything_is_built(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "my_bridges.py").write_text(BRIDGE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bridge").mkdir()
    (tmp_path / "bridge" / "mine.yaml").write_text("_target_: my_bridges.MyBridge\n", encoding="utf-8")
    kept = ("plugins=[my_bridges]", f"hydra.searchpath=[file://{tmp_path}]", "bridge=mine")
    config = tiny_config(*kept)
    with pytest.raises(UserError) as refused:
        check_compatible(config)
    assert str(refused.value) == ("bridge: MyBridge says memory_width 64 and makes memory of width 32; make them equal")


def test_the_own_parts_of_the_tests_are_let_through(tiny_config, two_towers, own_parts):
    check_compatible(tiny_config(*two_towers))
    check_compatible(tiny_config(*own_parts, "decoder=own_shy"))
