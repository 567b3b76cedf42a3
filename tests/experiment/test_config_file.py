"""What a run's own file gives back, and what is said of a damaged one."""

import pytest

from mmlm.core.errors import UserError
from mmlm.core.precision import Precision
from mmlm.experiment.config_file import config_values, load_config, save_config
from mmlm.experiment.run_identity import differences, identity


def test_a_saved_config_comes_back(tiny_config, tmp_path):
    config = tiny_config("name=a", "train.ema_decay=0.9", "metrics.tags=[x,y]", "init_from.run=some/run")
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
    with pytest.raises(UserError) as refused:
        load_config(file)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_of_a_run(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml: there is no such file; give a run's folder"):
        load_config(tmp_path / "config.yaml")
