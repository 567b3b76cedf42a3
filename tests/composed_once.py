"""Hydra composes the options that a command line chooses once a process; the values that it sets come on top each time.

Hydra itself does it in these two steps: which files are merged depends on the chosen options alone, and values are set
in what has been merged. Merging takes most of the time of the tests that build no model.
"""

import copy

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from mmlm.experiment.config import CONFIG_DIR

OWN = {f"file://{CONFIG_DIR}", "pkg://hydra.conf", "structured://"}
"""The places whose files do not change while tests run."""
MERGE = ConfigLoaderImpl._compose_config_from_defaults_list
"""Hydra's own."""


def compose_once(patch: pytest.MonkeyPatch) -> None:
    """Makes Hydra keep what it has composed of the configs of this checkout, for as long as the patch holds."""
    lists: dict[tuple[object, ...], DefaultsList] = {}
    merged: dict[int, DictConfig] = {}
    """By the identity of the list of files; lists are kept."""

    def list_once(
        repo: IConfigRepository,
        config_name: str | None,
        overrides_list: list[Override],
        prepend_hydra: bool,
        skip_missing: bool,
    ) -> DefaultsList:
        values = [one for one in overrides_list if not repo.group_exists(one.key_or_group) or type(one.value()) is dict]
        choices = [one for one in overrides_list if one not in values]
        places = {f"{source.scheme()}://{source.path}" for source in repo.get_sources()}
        if not places <= OWN or any(one.is_sweep_override() for one in overrides_list):
            return create_defaults_list(repo, config_name, overrides_list, prepend_hydra, skip_missing)
        key = (config_name, tuple(one.input_line for one in choices), prepend_hydra, skip_missing)
        if key not in lists:
            lists[key] = create_defaults_list(repo, config_name, choices, prepend_hydra, skip_missing)
        known = lists[key]
        return DefaultsList(known.defaults, known.defaults_tree, values, known.overrides)

    def merge_once(loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        if not any(known.defaults is defaults for known in lists.values()):
            return MERGE(loader, defaults, repo)
        if id(defaults) not in merged:
            merged[id(defaults)] = MERGE(loader, defaults, repo)
        return copy.deepcopy(merged[id(defaults)])

    patch.setattr(config_loader_impl, "create_defaults_list", list_once)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once)
