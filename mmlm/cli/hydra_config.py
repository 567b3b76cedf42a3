"""Composes configs with Hydra from ``configs/`` and the schema, and puts Hydra's errors into words of ours.

Only this file and ``hydra_command`` import Hydra, and this one only when it composes: everything that reads a finished
config does without it. Neither imports torch: a mistake in a key is answered at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmlm.cli.fine_tune import option_name, options_of
from mmlm.core.errors import UserError
from mmlm.experiment.config import CONFIG_DIR, CONFIG_NAME, Config
from mmlm.experiment.config_errors import explain

if TYPE_CHECKING:
    from hydra.errors import MissingConfigException, OverrideParseException

GROUP = "evaluators"
"""The folder of the options of evaluators."""


def store_schema() -> None:
    """Tells Hydra the schema that ``configs/config.yaml`` is composed on."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


@contextmanager
def run_as_option(brought: DictConfig | None) -> Iterator[list[str]]:
    """Tells Hydra, inside of the block, what a run brings (``fine_tune``); yields the override that chooses it, if any.

    Hydra keeps options for the whole process; what is left there would be an option of every later command.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.errors import MissingConfigException

    if brought is None:
        yield []
        return
    name = option_name(brought)
    options = options_of(brought, name)
    store = ConfigStore.instance()
    for group, package, node in options:
        store.store(name=name, node=OmegaConf.create(node), group=group, package=package)
    try:
        yield [f"experiment={name}"]
    except MissingConfigException as error:
        error.options = [option for option in error.options or () if option != name]  # nobody can choose it
        raise
    finally:
        for group, _, _ in options:
            del store.repo[group][f"{name}.yaml"]


def compose(overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    """The config of a command line, composed by us rather than by Hydra's own command; incomplete, perhaps, and
    not checked. Also in the middle of such a command, whose state of Hydra stays as it is.

    ``with_hydra`` adds Hydra's own node, which knows the option that was chosen of each group. Raises UserError.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    store_schema()
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return hydra.compose(CONFIG_NAME, list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(explain_composing(error, CONFIG_DIR, overrides)) from None
    finally:
        GlobalHydra.instance().hydra = outer


def evaluators_of(option: str) -> dict[str, Any]:
    """The evaluators of an option of ``configs/evaluators``, or of a user's own file ``evaluators/NAME.yaml``, by name.

    Interpolations are left as they are written: they refer to the config of the run that is evaluated. Raises
    UserError.
    """
    overrides = [f"evaluators={option}"]
    if option.endswith((".yaml", ".yml")):
        file = Path(option).resolve()
        if not file.is_file():
            raise UserError(
                f"evaluators: there is no file {option}; give an option's name, or a file evaluators/NAME.yaml"
            )
        if file.parent.name != GROUP:
            raise UserError(f"evaluators: {option} must lie in a folder called {GROUP}, as an option does")
        if (CONFIG_DIR / GROUP / file.name).exists() and file.parent != CONFIG_DIR / GROUP:
            raise UserError(f"evaluators: {option} has the name of an option of mmlm; give it another one")
        folder = str(file.parent.parent).replace('"', '\\"')
        overrides = [f"evaluators={file.stem}", f'hydra.searchpath=["file://{folder}"]']
    return cast(dict[str, Any], OmegaConf.to_container(compose(overrides)[GROUP]))


def chosen_options(overrides: Sequence[str], slots: Sequence[str]) -> dict[str, str]:
    """The option that a command line chooses for each slot. Raises UserError."""
    choices = compose(overrides, with_hydra=True).hydra.runtime.choices
    return {slot: str(choices[slot]) for slot in slots}


def explain_composing(error: Exception, config_dir: Path, overrides: Sequence[str]) -> str:
    """One line about an exception that Hydra, OmegaConf or YAML raised while composing a config.

    ``config_dir`` and ``overrides`` (the command line) are what the config was composed from.
    """
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    if isinstance(error, OverrideParseException):
        return _unreadable_override(error)
    return explain(error, config_dir, overrides)


def _missing_config(error: "MissingConfigException") -> str:
    """The message for an option that has no file in its group."""
    group, _, name = (error.missing_cfg_file or "").strip("/").rpartition("/")
    options = ", ".join(sorted(error.options or ()))
    return f"unknown {group or 'config'} '{name}'" + (f"; there are: {options}" if options else "")


def _unreadable_override(error: "OverrideParseException") -> str:
    """The message for an argument that Hydra's grammar cannot read."""
    if "=" not in error.override:
        return f"'{error.override}' is not a setting; write key=value"
    lines = [line for line in str(error).splitlines() if not line.startswith(("Error parsing", "See http"))]
    return f"cannot read '{error.override}': {' '.join(lines)}; a value with special characters needs '\"quotes\"'"
