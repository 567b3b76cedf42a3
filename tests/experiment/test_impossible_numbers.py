"""Numbers that no run can have: each is refused in one line that names it, before data is read or anything is built.

The numbers are those of the configs: every numeric setting of every option of every slot, and of every group of
settings, gets 0, -1, nan, infinity and, where heads share a width, a number that does not divide it. What is accepted
has been put together by the check, with a pass of each part (``check_compatible``); what is not ends in a UserError,
never in another exception.
"""

import copy
import math
from collections.abc import Callable, Iterator

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.cli import hydra_config
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.ranges import check_counts, check_heads, check_library_settings, check_positive, check_ratio
from mmlm.experiment.build import build_launcher, unfitted_tokenizer
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.config import CONFIG_DIR
from mmlm.experiment.config_checks import check_config
from tests.conftest import TINY

SLOTS = (
    "encoder",
    "bridge",
    "text_encoder",
    "decoder",
    "objective",
    "freeze",
    "optim",
    "schedule",
    "parallel",
    "launcher",
    "tokenizer",
    "transform",
    "evaluators",
)
GROUPS = ("model", "data", "train", "samples", "ranks")
ELSEWHERE = {
    # options that name files or packages of other people
    *("encoder=hugging_face", "encoder=efficientnet_lite0", "text_encoder=hugging_face", "text_encoder=clip"),
    *("text_encoder=minilm", "decoder=hugging_face", "decoder=hugging_face_gated", "tokenizer=hugging_face"),
    *("tokenizer=minilm", "tokenizer=open_clip", "tokenizer=siglip"),
    # options without a part
    *("bridge=none", "decoder=none", "text_encoder=own", "launcher=none"),
    # a class and numbers that another option has too
    *("decoder=gru", "decoder=prefix", "decoder=llama_tiny_gated", "decoder=qwen_tiny_gated", "freeze=bridge_only"),
    *("decoder=smollm_tiny_gated", "bridge=patches", "bridge=linear", "bridge=pooler_parallel", "objective=coca"),
    *(
        "bridge=pooler_cascaded",
        "tokenizer=byte_pair_keywords",
        "transform=drawings",
        "tokenizer=byte_pair_multilingual",
        "encoder=vit_small_images",
    ),
    *(
        "objective=coca_sigmoid",
        "objective=coca_cappa",
        "evaluators=captioning",
        "evaluators=chair",
        "evaluators=clip_score",
        "evaluators=copied",
        "evaluators=scenes",
        "objective=captioning",
    ),
    *("objective=contrastive", "freeze=lit", "freeze=lm_frozen", "freeze=text_locked"),
}
BESIDE = {
    "encoder=vit": ("encoder.patch_size=8", "encoder.width=32", "encoder.depth=1", "encoder.num_heads=2"),
    "freeze=lora": ("decoder=gpt2_tiny",),
    "objective=coca_distillation": ("teacher.ema=true", "train.ema_decay=0.9"),
    "objective=coca_self_distillation": ("teacher.ema=true", "train.ema_decay=0.9", "train.steps=2000"),
}
"""What goes with an option."""
ANY_SIGN = ("bias", "seed")
"""Names of numbers that may be below 0."""


def options() -> list[str]:
    """``slot=option`` of all options that are tried."""
    found = [f"{slot}={file.stem}" for slot in SLOTS for file in sorted((CONFIG_DIR / slot).glob("*.yaml"))]
    assert set(found) >= ELSEWHERE
    return [option for option in found if option not in ELSEWHERE]


def numbers(node: object, key: str) -> Iterator[tuple[str, object]]:
    """(key, value) of every number, and of every null that may be one."""
    if isinstance(node, DictConfig):
        for name in node:
            if not OmegaConf.is_missing(node, name) and name != "_target_":
                yield from numbers(node[name], f"{key}.{name}")
    elif isinstance(node, ListConfig):
        for place, value in enumerate(node):
            yield from numbers(value, f"{key}.{place}")
    elif node is None or (isinstance(node, int | float) and not isinstance(node, bool)):
        yield key, node


def tried(key: str, value: object) -> list[float]:
    """What a number is replaced by."""
    name = key.rpartition(".")[2]
    odd = [7] if "heads" in name or "head" in name else []
    if isinstance(value, float):
        return [0.0, -1.0, math.nan, math.inf]
    return [0, -1, *odd]


def problem(cfg: DictConfig, key: str, value: float, check: Callable[[DictConfig], None]) -> str | None:
    """What is wrong with how ``value`` at ``key`` is met; None if nothing is."""
    changed = copy.deepcopy(cfg)
    OmegaConf.set_struct(changed, False)
    try:
        OmegaConf.update(changed, key, value)
    except OmegaConfBaseException:
        return None  # another type: told as such, in one line, when the config is composed
    if isinstance(OmegaConf.select(changed, key), str):
        return None
    try:
        check(changed)
    except UserError as error:
        said = str(error)
        parent, _, name = key.rstrip("0123456789").rstrip(".").rpartition(".")  # of a number in a list: the list
        if "\n" in said:
            return f"{key}={value}: several lines: {said}"
        names_it = name in said or said.startswith((f"{parent}:", f"{parent}."))
        return None if names_it else f"{key}={value}: told as: {said}"
    except Exception as error:
        return f"{key}={value}: {type(error).__name__}: {error}"
    if not math.isfinite(value) or (value < 0 and not key.endswith(ANY_SIGN)):
        return f"{key}={value}: accepted"
    return None


def check_parts(cfg: DictConfig) -> None:
    """What is checked before the data is read, and what is built first after that."""
    config = check_config(cfg)
    check_compatible(config)
    unfitted_tokenizer(config)
    if config.launcher is not None:
        build_launcher(config)


@pytest.mark.slow  # hundreds of models
@pytest.mark.usefixtures("built_once")
@pytest.mark.parametrize("option", options())
def test_impossible_numbers_of_a_part(option):
    slot = option.partition("=")[0]
    plain = [token for token in TINY if not token.startswith((f"{slot}.", f"{slot}="))]
    plain += ["data.train.folder=.", "data.validation.validation.folder=."]
    cfg = hydra_config.compose([*plain, option, *BESIDE.get(option, ())])
    check_parts(copy.deepcopy(cfg))
    found = list(numbers(cfg[slot], slot))
    told = [problem(cfg, key, value, check_parts) for key, usual in found for value in tried(key, usual)]
    assert [one for one in told if one is not None] == []


@pytest.fixture(scope="module")
def tiny_cfg() -> DictConfig:
    folders = ("data.train.folder=.", "data.validation.validation.folder=.")
    return hydra_config.compose([*TINY, *folders, "train.ema_decay=0.9"])


@pytest.mark.parametrize("group", GROUPS)
def test_impossible_numbers_of_settings(tiny_cfg, group):
    found = list(numbers(tiny_cfg[group], group))
    told = [problem(tiny_cfg, key, value, check_parts) for key, usual in found for value in tried(key, usual)]
    assert [one for one in told if one is not None] == []


def test_rules_in_words():
    refused = [
        (lambda: check_counts({"a": None, "b": 1, "c": 0}), "c: 0 must be at least 1"),
        (lambda: check_positive("rate", math.inf), "rate: inf must be above 0 and finite"),
        (lambda: check_positive("rate", math.nan), "rate: nan must be above 0"),
        (lambda: check_heads(0, 2), "width: 0 must be at least 1"),
        (lambda: check_heads(8, 3), "num_heads: 3 does not divide the width 8; choose one that does"),
        (lambda: check_ratio("mlp_ratio", 0.0, 8), "mlp_ratio: 0.0 leaves no hidden units; use one above 0, "),
        (lambda: check_ratio("mlp_ratio", math.nan, 8), "mlp_ratio: nan must be above 0 and at most 1000"),
        (lambda: check_ratio("mlp_ratio", 0.1, 8), "mlp_ratio: 0.1 leaves no hidden units"),
        (lambda: check_library_settings({"n_layer": 0}, {}), "settings.n_layer: 0 must be at least 1"),
        (lambda: check_library_settings({"dims": [8, 0]}, {}), "settings.dims: 0 must be at least 1"),
        (lambda: check_library_settings({"every": 0}, {"every": 4}), "settings.every: 0 must be at least 1"),
        (lambda: check_library_settings({"attn_pdrop": 1.0}, {}), "settings.attn_pdrop: 1.0 must be in [0, 1)"),
        (lambda: check_library_settings({"eps": math.nan}, {}), "settings.eps: nan must be finite"),
        (lambda: check_library_settings({"mlp_ratio": 0}, {}), "settings.mlp_ratio: 0 must be above 0"),
        (lambda: check_library_settings({"shift": -1}, {"shift": 0}), "settings.shift: -1 must be at least 0"),
    ]
    for check, message in refused:
        with pytest.raises(ArgumentError) as caught:
            check()
        assert str(caught.value).startswith(message)
    check_counts({"a": None, "b": 0}, least=0)
    check_positive("rate", None)
    check_heads(8, 2)
    check_ratio("mlp_ratio", 4.0, 8)
    check_library_settings({"shift": -1, "bias": True, "name": "x", "none": None}, {"shift": -100})
