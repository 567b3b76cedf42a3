"""Ways to share a step among ranks x parts x objectives: which cells there are, and the step of each.

Everything that can be chosen is read from the folder of configs.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mmlm.check.batch import Shares, whole_batch
from mmlm.check.tiny import SMALLER
from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.views import CAPTION, PatchView, TextView
from mmlm.experiment.build import build_objective
from mmlm.experiment.config import CONFIG_DIR, Config
from mmlm.objectives.objective import FusionObjective
from tests.covering import Covering, Option, Row, Together, covering, together
from tests.model.grid import cells
from tests.model.grid.cells import POOLED, Cell, composed

SLOTS = ("bridge", "encoder", "text_encoder", "decoder")
YES_OR_NO = ("false", "true")
QUICK_FIRST = ("decoder", "encoder", "text_encoder")
"""Slots whose options stand in more cells than they have to."""
QUICK = ("transformer", "vit_small_images", f"vit_small_images{POOLED}", "own")
"""The options that take the least time: the others stand in no more cells than they have to."""
PATTERNS = ("transformer", "prefix", "mammut", "genlip")
"""Decoders that read captions by other masks than the causal one."""
IMAGES = 4
SHARES: Mapping[str, Shares] = {"unequal": (3, 1), "one without images": (4, 0)}
"""Images of each of two ranks. One of the images has no caption: in micro-batches of one, one has no captions."""
MICRO_BATCHES = ("4", "1")
"""Images a pass: one pass, or several."""


def files(folder: str) -> list[str]:
    """The options of a folder of configs."""
    return sorted(file.stem for file in (CONFIG_DIR / folder).glob("*.yaml"))


def overrides(factor: str, option: str) -> tuple[str, ...]:
    """What chooses an option of a folder of configs, and makes it small."""
    name = f"{factor}={option.removesuffix(POOLED)}"
    return (name, *SMALLER.get(name, ()), *(("encoder.pool=mean",) if option.endswith(POOLED) else ()))


@functools.cache
def configs() -> Mapping[Option, Config]:
    """A config with each option of the folders in it: composing takes long, so that several are composed at once."""
    options = {name: files(name) for name in ("objective", "parallel")} | {slot: cells.options(slot) for slot in SLOTS}
    found = {}
    for chosen in itertools.zip_longest(*options.values()):
        together = [(factor, option) for factor, option in zip(options, chosen, strict=True) if option is not None]
        config = composed(*(token for factor, option in together for token in overrides(factor, option)))
        found |= dict.fromkeys(together, config)
    return found


@functools.cache
def ways() -> Mapping[str, Mapping[str, Any]]:
    """How ranks share a step, as nodes: each option, and each of its switches the other way round."""
    found = {}
    for name in files("parallel"):
        node = configs()["parallel", name].parallel
        found[name] = node
        found |= {f"{name}, {key} {not on}": {**node, key: not on} for key, on in node.items() if isinstance(on, bool)}
    return found


def factors() -> Mapping[str, Sequence[str]]:
    """What a cell is made of; last, what need not stand in a pair with every other factor."""
    return {
        "objective": files("objective"),
        "bridge": cells.options("bridge"),
        "parallel": tuple(ways()),
        "diagnosed": YES_OR_NO,
        "activation_checkpointing": YES_OR_NO,
        "micro_batch": MICRO_BATCHES,
        "shares": tuple(SHARES),
        **{slot: sorted(cells.options(slot), key=lambda name: name not in QUICK) for slot in QUICK_FIRST},
    }


@functools.cache
def wanted() -> tuple[Together, ...]:
    """What has to stand together in a cell, if it can.

    Every pair of options; but of the parts only bridge and objective, as ``tests/model/grid`` has the others. And
    whatever is diagnosed or not under each way to share a step: a diagnosis has passes of its own.
    """
    parts = ("objective", *SLOTS)
    pairs = [
        names
        for names in itertools.combinations(factors(), 2)
        if not set(names) <= set(parts) or set(names) == {"objective", "bridge"}
    ]
    diagnosed = [(name, "parallel", "diagnosed") for name in factors() if name not in ("parallel", "diagnosed")]
    return tuple(one for names in (*pairs, *diagnosed) for one in together(factors(), names))


@dataclasses.dataclass(frozen=True)
class Needs:
    """What an objective needs of the parts."""

    decoder: bool
    patterns: bool
    patches: bool
    average: bool


@functools.cache
def needs(objective: str) -> Needs:
    """Of an option of objectives."""
    parts = build_objective(configs()["objective", objective]).named_parts().values()
    views = {view for part in parts for view in part.views}
    texts = {view for view in views if isinstance(view, TextView)}
    return Needs(
        decoder=bool(texts) or any(isinstance(part, FusionObjective) for part in parts),
        patterns=bool(texts - {CAPTION}),
        patches=any(isinstance(view, PatchView) for view in views),
        average=any(part.needs_average for part in parts),
    )


def refused(row: Row) -> bool:
    """Whether a cell, of which some is chosen, is refused already."""
    if "objective" in row:
        needed = needs(row["objective"])
        if needed.decoder and "none" in (row.get("decoder"), row.get("bridge")):
            return True
        if needed.patterns and row.get("decoder", "transformer") not in PATTERNS:
            return True
        if needed.patches and not row.get("encoder", "vit").startswith(("vit", "timm")):
            return True
        if needed.average and row.get("parallel", "").startswith("fsdp"):
            return True
    if row.keys() >= set(SLOTS):
        return cells.refusal(Cell(**{slot: row[slot] for slot in SLOTS}, freeze="none")) is not None
    return False


@functools.cache
def covered() -> Covering:
    """The cells."""
    return covering(factors(), refused, wanted())


def config_of(row: Row) -> Config:
    """The config of a cell; whatever learns from a teacher learns from a moving average."""
    parts = {name: getattr(configs()[name, row[name]], name) for name in ("objective", *SLOTS)}
    teacher = dataclasses.replace(composed().teacher, ema=True)
    return dataclasses.replace(composed(), parallel=ways()[row["parallel"]], teacher=teacher, **parts)


def batch(pixels: int) -> Batch:
    """Half of the kit's batch: four images, of which one has no caption, and seven captions, two of them text-only."""
    whole = whole_batch(pixels)
    first = len(whole.images) - IMAGES
    return whole._part(range(first, len(whole.images)), (whole.image_index == TEXT_ONLY) | (whole.image_index >= first))
