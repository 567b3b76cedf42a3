"""The grid encoder x bridge x text encoder x decoder x freeze plan: its cells, which are refused, and their configs.

Every cell of a model that is trained whole is tried, and of each other freeze plan those in which any two options meet.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmlm.cli.hydra_config import compose
from mmlm.core.errors import UserError
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.config import CONFIG_DIR, Config
from mmlm.experiment.config_checks import check_config

SLOTS = ("encoder", "bridge", "text_encoder", "decoder", "freeze")
NEED_A_PATH = {
    ("encoder", "hugging_face"),
    ("encoder", "efficientnet_lite0"),
    ("text_encoder", "hugging_face"),
    ("text_encoder", "clip"),
    ("text_encoder", "minilm"),
    ("decoder", "hugging_face"),
    ("decoder", "hugging_face_gated"),
}
"""Options of pretrained weights, whose architecture is read from a hub, a folder or a package."""
POOLED = "+pool=mean"
"""Marks an encoder that pools."""
POOLING = ("vit_small_images", "convnext_small_images")
"""Encoders that stand in the grid a second time, pooling."""


@functools.cache
def options(slot: str) -> tuple[str, ...]:
    """The option files of a slot that need no path; an encoder may stand twice."""
    names = sorted(file.stem for file in (CONFIG_DIR / slot).glob("*.yaml") if (slot, file.stem) not in NEED_A_PATH)
    return (*names, *(f"{name}{POOLED}" for name in names if slot == "encoder" and name in POOLING))


@dataclass(frozen=True)
class Cell:
    """One option of each slot."""

    encoder: str
    bridge: str
    text_encoder: str
    decoder: str
    freeze: str

    @property
    def pools(self) -> bool:
        """Whether the encoder pools."""
        return self.encoder.endswith(POOLED)

    @property
    def two_towers(self) -> bool:
        """Whether nothing captions: trained without the captioning loss."""
        return self.decoder == "none"

    @property
    def one_memory_token(self) -> bool:
        """Whether 2 x 2 patches become one token: attention over it has no choice, and no gradient."""
        return self.encoder in ("vit", "timm") and self.bridge in ("pixel_shuffle", "abstractor")

    @property
    def language_model(self) -> bool:
        """Whether the decoder is a Hugging Face language model."""
        return self.decoder.split("_")[0] in ("gpt2", "llama", "qwen", "smollm")


def whole_grid() -> Iterator[Cell]:
    """Every cell."""
    return (Cell(*names) for names in itertools.product(*map(options, SLOTS)))


REFUSALS: Sequence[tuple[str, Callable[[Cell], bool]]] = (
    # The bridge itself.
    (r"bridge.num_queries: null leaves nothing to pool", lambda c: c.bridge == "patches" and c.pools),
    (r"bridge.contrastive: ", lambda c: c.bridge in ("pooler_parallel", "pooler_cascaded") and c.pools),
    # Which parts there are.
    (r"bridge: the decoder needs one to see the image", lambda c: c.bridge == "none" and not c.two_towers),
    (r"bridge: there is no decoder to read its memory", lambda c: c.bridge != "none" and c.two_towers),
    (r"text_encoder: without a decoder there is nothing", lambda c: c.two_towers and c.text_encoder == "own"),
    (r"encoder.pool: without a bridge the encoder has to pool", lambda c: c.bridge == "none" and not c.pools),
    # What the plan names.
    (r"freeze.lora.parts: the model has no 'decoder'", lambda c: c.freeze == "lora" and c.two_towers),
    (
        r"freeze.frozen: the model has no 'text_encoder'",
        lambda c: c.freeze == "text_locked" and c.text_encoder == "own",
    ),
    (r"freeze.frozen: ", lambda c: c.freeze == "lm_frozen" and not c.language_model),
    (r"freeze.trainable: the model has no 'bridge'", lambda c: c.freeze == "bridge_only" and c.bridge == "none"),
)
"""In the order of asking: what the message of a refused cell says, and which cells get it."""


def refusal(cell: Cell) -> str | None:
    """What the message of a cell has to say, or None if it has to be built."""
    return next((message for message, refused in REFUSALS if refused(cell)), None)


def pairwise(cells: Sequence[Cell]) -> list[Cell]:
    """Few of ``cells`` in which every pair of options that stands in some cell stands in one, chosen greedily."""
    left = {pair for cell in cells for pair in _pairs(cell)}
    chosen: list[Cell] = []
    gain: Mapping[Cell, set[tuple[tuple[str, str], ...]]] = {cell: set(_pairs(cell)) for cell in cells}
    while left:
        best = max(cells, key=lambda cell: len(gain[cell] & left))
        chosen.append(best)
        left -= gain[best]
    return chosen


def _pairs(cell: Cell) -> Iterator[tuple[tuple[str, str], ...]]:
    return itertools.combinations([(slot, getattr(cell, slot)) for slot in SLOTS], 2)


VOCABULARY = 300
CELLS = list(whole_grid())
SMALL = ("experiment=caption_base", "data=emoji", "tokenizer=byte_pair", "model.width=32", "model.embedding_width=16")

SHALLOW = {
    "encoder=vit": ("encoder.depth=2",),
    "encoder=vit_small_images": ("encoder.depth=2",),
    "encoder=timm": ("encoder.settings={depth: 2}",),
    "encoder=hf_vit_tiny": ("encoder.settings.num_hidden_layers=2",),
    "encoder=convnext_small_images": ("encoder.settings.depths=[1,1,1,1]",),
}
"""What fits together does not depend on how deep an encoder is, and how long it takes to put LoRA on it does."""


@functools.cache
def composed(*overrides: str) -> Config:
    """The checked config of a small experiment."""
    return check_config(compose([*SMALL, *overrides]))


def config_of(cell: Cell) -> Config:
    """The config of a cell. Each option is composed once and put into a copy of the base."""
    parts = {}
    for slot in SLOTS:
        name = getattr(cell, slot)
        pool = ("encoder.pool=mean",) if name.endswith(POOLED) else ()
        option = f"{slot}={name.removesuffix(POOLED)}"
        parts[slot] = getattr(composed(option, *SHALLOW.get(option, ()), *pool), slot)
    towers = ("objective.weights.captioning=0", "evaluators=retrieval") if cell.two_towers else ()
    return dataclasses.replace(composed(*towers), **parts)


def stands_for_others(cell: Cell) -> bool:
    """Whether a cell has the one encoder and the one text encoder that go, by turns, with its bridge and its decoder.

    In the cells of a freeze plan for which this holds, any two options of the other slots meet: what a plan says of a
    cell is about one part or two.
    """
    bridge, decoder = (options(slot).index(getattr(cell, slot)) for slot in ("bridge", "decoder"))
    encoders, text_encoders = options("encoder"), options("text_encoder")
    return (
        cell.encoder == encoders[(bridge + 2 * decoder) % len(encoders)]
        and cell.text_encoder == text_encoders[(bridge + decoder) % len(text_encoders)]
    )


def check_cells(cells: Sequence[Cell]) -> None:
    """Puts the cells together; asserts that each is built, or refused as expected."""
    assert len(cells) > 100
    for cell in cells:
        expected, said = refusal(cell), None
        try:
            check_compatible(config_of(cell))
        except UserError as error:
            said = str(error)
        if expected is None:
            assert said is None, f"{cell}: {said}"
        else:
            assert said is not None, f"{cell} was built and should have been refused: {expected}"
            assert re.match(expected, said), f"{cell}: {said}"
            assert "\n" not in said
