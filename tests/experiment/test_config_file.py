"""What a run's own file gives back, and what is said of a damaged one."""

import pytest

from mmlm.core.errors import UserError
from mmlm.core.precision import Precision
from mmlm.experiment.config_file import config_values, load_config, recorded_config, save_config
from mmlm.experiment.run_identity import differences, identity
from mmlm.record.manifest import DamagedFileError, accept


def test_a_saved_config_comes_back(tiny_config, tmp_path):
    logger = ("logger=wandb", "logger.wandb.tags=[x,y]")
    config = tiny_config("name=a", "train.ema_decay=0.9", *logger, "init_from.run=some/run")
    save_config(config, tmp_path / "config.yaml")
    loaded = load_config(tmp_path / "config.yaml")
    assert config_values(loaded) == config_values(config)
    assert (identity(loaded), differences(loaded, config)) == (identity(config), [])
    assert loaded.train.precision is Precision.fp32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps: 3", "stepz: 3"), "train.stepz: no such setting; did you mean train.steps?"),
        (("steps: 3", "steps: many"), "train.steps: 'many' is not an int"),
        (("steps: 3", "steps: [3"), "line "),
        (("patch_size", "patch_sice"), "encoder.patch_sice: TimmVit takes no 'patch_sice'; did you mean 'patch_size'?"),
    ],
)
def test_a_damaged_file_of_a_run_is_told_in_one_line(tiny_config, tmp_path, change, message):
    file = tmp_path / "config.yaml"
    save_config(tiny_config(), file)
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change))
    with pytest.raises(DamagedFileError, match=r"verify run=\S+ accept=\[config\.yaml\]$"):
        load_config(file)
    accept(tmp_path, file.name)
    with pytest.raises(UserError) as refused:
        load_config(file)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_of_a_run(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml: there is no such file; give a run's folder"):
        load_config(tmp_path / "config.yaml")


def test_a_folder_that_is_opened_gets_nothing_of_the_environment(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "xyzzy")
    file = tmp_path / "config.yaml"
    save_config(tiny_config(), file)
    text = file.read_text()
    for asked in ("${oc.env:SECRET}", "a ${oc.env:SECRET,none} b", "${oc.decode:${oc.env:SECRET}}"):
        file.write_text(text.replace("experiment: caption_base", f"experiment: {asked!r}"))
        accept(tmp_path, file.name)
        for read in (load_config, recorded_config):
            with pytest.raises(UserError, match=r"experiment: '.*' asks for something outside") as refused:
                read(file)
            assert "xyzzy" not in str(refused.value)
    file.write_text(text.replace("embedding_width: 16", "embedding_width: ${model.width}"))
    accept(tmp_path, file.name)
    assert load_config(file).model.embedding_width == 32, "a config may refer to itself"


def test_a_folder_s_own_word_allows_no_plug_in(tiny_config, tmp_path):
    file = tmp_path / "config.yaml"
    config = tiny_config()
    config.plugins = ["os", "my.parts"]
    config.bridge = {"_target_": "my.parts.Bridge"}
    save_config(config, file)
    with pytest.raises(UserError) as refused:
        load_config(file)
    assert str(refused.value) == (
        f"{file}: bridge asks for the plug-in 'my.parts' (my.parts.Bridge); if you trust that package to run code, "
        "allow it: plugins=[my.parts]"
    )
    with pytest.raises(UserError, match="there is no module 'my'"):
        load_config(file, ["my.parts"])
    assert recorded_config(file).bridge == config.bridge, "compared, and not built"
    config.bridge = tiny_config().bridge
    save_config(config, file)
    assert load_config(file, ["another"]).plugins == ["another"]
