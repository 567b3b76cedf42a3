"""The word of each command, and what is installed where there is no checkout."""

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

import mmlm
from mmlm.__main__ import COMMANDS, module_of
from mmlm.core.errors import UserError
from tests.conftest import TINY

ROOT = Path(mmlm.__file__).parents[1]
SHIPPED = ("mmlm", "configs", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "CHANGELOG.md")
COMPOSE = """
from mmlm.cli.hydra_config import compose
from mmlm.experiment.config import CONFIG_DIR

for file in sorted((CONFIG_DIR / "experiment").glob("*.yaml")):
    compose([f"experiment={file.stem}"])
    print(file.stem)
"""


def test_every_command_has_a_word():
    packages = {file.parent.name for file in Path(mmlm.__file__).parent.glob("*/__main__.py")}
    files = {file.stem for file in Path(mmlm.__file__).parent.glob("[!_]*.py")}
    assert set(COMMANDS) == (files | packages) - {"worker"}, "only launchers start a worker"


def test_words_help_and_version(capsys):
    assert module_of(["train", "experiment=caption_base"]) == "mmlm.train"
    assert module_of([]) is module_of(["--help"]) is None
    assert capsys.readouterr().out.count("  evaluate  score a trained run") == 2
    assert module_of(["--version"]) is None
    assert capsys.readouterr().out == f"mmlm {mmlm.__version__}\n"
    with pytest.raises(UserError, match="trian: no such command; did you mean 'train'"):
        module_of(["trian"])


def test_the_version_is_one():
    assert importlib.metadata.version("mmlm") == mmlm.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == mmlm.__version__


@pytest.mark.slow
def test_a_wheel_of_a_source_distribution_trains(tmp_path, shapes):
    """Installed without the checkout: the configs are inside, and the command ``mmlm`` trains from any folder."""
    source, out, place = tmp_path / "source", tmp_path / "out", tmp_path / "an environment"
    source.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(out), cwd=source)
    shutil.rmtree(source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    (archive,) = out.glob("*.tar.gz")
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(out), str(archive), cwd=tmp_path)
    venv.create(place, with_pip=False)
    python = str(place / "bin" / "python")
    (wheel,) = out.glob("*.whl")
    run(*pip, "--python", python, "install", "--no-deps", str(wheel), cwd=tmp_path)
    # What mmlm stands on is taken from the environment of the tests; what is installed here comes first.
    (site,) = place.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert files_of(site / "mmlm") == files_of(ROOT / "mmlm") | {f"configs/{f}" for f in files_of(ROOT / "configs")}
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(python, "-c", "import mmlm; print(mmlm.__file__)", cwd=empty)
    assert Path(done.strip()).is_relative_to(place)
    experiments = sorted(file.stem for file in (ROOT / "configs" / "experiment").glob("*.yaml"))
    assert run(python, "-c", COMPOSE, cwd=empty).split() == experiments
    folders = (f"data.train.folder={shapes}", f"data.validation.validation.folder={shapes}")
    done = run(str(place / "bin" / "mmlm"), "train", *TINY, *folders, "train.steps=5", cwd=empty)
    assert "report: runs/caption_base/" in done
    assert len(list(empty.glob("runs/caption_base/*/seed=0/report.html"))) == 1


def files_of(folder: Path) -> set[str]:
    """The files below a folder, but for what Python compiles."""
    return {
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"
    }


def run(*command: str, cwd: Path) -> str:
    """What a command prints; asserts that it ends well."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout
