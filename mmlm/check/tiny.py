"""The tiny experiment that a part is put into, and the parts that a command line asks to check."""

import dataclasses
from collections.abc import Mapping, Sequence

from mmlm.check.batch import TOKENS
from mmlm.cli.checked_config import compose_checked
from mmlm.cli.hydra_config import chosen_options
from mmlm.experiment.build import build_objective
from mmlm.experiment.config import Config

TINY = (
    "experiment=caption_base",
    "data=emoji",
    "tokenizer=byte_pair",
    "data.image_size=32",
    f"data.max_tokens={TOKENS + 4}",
    "model.width=32",
    "model.embedding_width=16",
    "device=cpu",
)
"""Overrides that come before those of the user."""
SMALLER: Mapping[str, Sequence[str]] = {
    "tokenizer=byte_pair": ("tokenizer.vocab_size=300",),
    "encoder=vit": ("encoder.depth=2",),
    "encoder=vit_small_images": ("encoder.width=48", "encoder.depth=1"),
    "encoder=timm": ("encoder.settings={depth: 2}",),
    "encoder=hf_vit_tiny": ("encoder.settings.num_hidden_layers=2",),
    "encoder=convnext_small_images": ("encoder.settings.depths=[1,1,1,1]",),
}
"""What makes options of ours smaller: whether a part keeps its rules does not depend on how often a block comes."""


def tiny_config(given: Sequence[str]) -> Config:
    """The checked config of the tiny experiment with the overrides ``given``, of which each has the last word.

    An objective that learns from a teacher gets the moving average of the model, unless a teacher is given. Raises
    UserError.
    """
    chosen = chosen_options([*TINY, *given], ("encoder", "tokenizer"))
    smaller = [token for slot, option in chosen.items() for token in SMALLER.get(f"{slot}={option}", ())]
    config = compose_checked([*TINY, *smaller, *given])
    if build_objective(config).needs_teacher and config.teacher.run is None and not config.teacher.ema:
        config = dataclasses.replace(
            config,
            teacher=dataclasses.replace(config.teacher, ema=True),
            train=dataclasses.replace(config.train, ema_decay=0.999),
        )
    return config


def slots_named(tokens: Sequence[str], slots: Sequence[str]) -> list[str]:
    """Those of ``slots`` that the overrides ``tokens`` choose or change, in their order; without any, all."""
    heads = {token.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0] for token in tokens}
    return [slot for slot in slots if slot in heads] or list(slots)
