"""What tests compose is what Hydra composes without their help."""

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import create_defaults_list
from omegaconf import OmegaConf

from mmlm.cli.hydra_config import compose
from mmlm.core.errors import UserError
from tests.composed_once import MERGE
from tests.conftest import TINY

FOLDERS = ("data.train.folder=a", "data.validation.validation.folder=b")


@pytest.mark.parametrize(
    "line",
    [
        ("experiment=caption_base",),
        (*TINY, *FOLDERS),
        (*TINY, *FOLDERS, "bridge=perceiver", "bridge.num_heads=4", "~tokenizer.languages", "freeze=lora"),
        (*TINY, *FOLDERS, "data.train={_target_: mmlm.data.image_folder.ImageFolder, folder: c}", "+plugins=[x]"),
    ],
)
def test_a_config_is_the_same_as_without_help(line, monkeypatch):
    fast = [compose(line, with_hydra=True), compose(("seed=7", *line), with_hydra=True)]
    monkeypatch.setattr(config_loader_impl, "create_defaults_list", create_defaults_list)
    monkeypatch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", MERGE)
    plain = [compose(line, with_hydra=True), compose(("seed=7", *line), with_hydra=True)]
    assert fast == plain
    for one, other in zip(fast, plain, strict=True):
        assert OmegaConf.to_yaml(one) == OmegaConf.to_yaml(other)
        assert OmegaConf.is_struct(one) is OmegaConf.is_struct(other) is True
        assert one.hydra.runtime.choices == other.hydra.runtime.choices


@pytest.mark.parametrize("line", [("experiment=nothing",), ("experiment=caption_base", "bridge=nothing")])
def test_a_mistake_is_told_as_without_help(line, monkeypatch):
    with pytest.raises(UserError) as fast:
        compose(line)
    monkeypatch.setattr(config_loader_impl, "create_defaults_list", create_defaults_list)
    with pytest.raises(UserError) as plain:
        compose(line)
    assert str(fast.value) == str(plain.value)
