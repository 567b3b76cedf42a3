"""Commands: every mistake of a user is one line on stderr and exit status 2; bugs keep their traceback."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from mmlm.cli.exits import report_user_errors
from mmlm.cli.hydra_command import run_hydra
from mmlm.cli.key_values import field_docs, parse_key_values
from mmlm.cli.sweep import MORE
from mmlm.core.errors import UserError


class Mode(StrEnum):
    online = "online"
    offline = "offline"


@dataclass
class Optim:
    lr: float = 0.1
    steps: int = 3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    warmup: int | float | None = None
    mode: Mode = Mode.offline


@dataclass
class Config:
    optim: Optim = field(default_factory=Optim)
    encoder: Any = None
    needed: int = MISSING


FILES = {
    "config.yaml": """
defaults:
  - test_cli_schema
  - encoder: vit
  - experiment: null
  - _self_
  - override hydra/job_logging: disabled
  - override hydra/hydra_logging: disabled
needed: 1
hydra: {run: {dir: .}, output_subdir: null, sweep: {dir: sweep, subdir: .}, job: {chdir: false}}
""",
    "encoder/vit.yaml": "_target_: mmlm.model.VitEncoder\nwidth: 3\n",
    "encoder/conv.yaml": "_target_: mmlm.model.ConvEncoder\nwidth: 3\n",
    "experiment/small.yaml": "# @package _global_\noptim: {lr: 0.5}\n",
    "experiment/typo.yaml": "# @package _global_\noptim: {lrr: 0.5}\n",
    "experiment/words.yaml": "# @package _global_\noptim: {lr: fast}\n",
    "experiment/broken.yaml": "# @package _global_\noptim: {lr: 1\nmore: : 3\n",
    "experiment/headless.yaml": "optim: {lr: 0.5}\n",
}


@pytest.fixture
def hydra_command(tmp_path, monkeypatch, capsys):
    """Runs a main under ``run_hydra`` with a command line: returns the exit status, stdout and stderr."""
    ConfigStore.instance().store("test_cli_schema", Config)
    for name, text in FILES.items():
        (tmp_path / "configs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "configs" / name).write_text(text)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # restored after the test

    def run(*arguments, main=lambda cfg: print(f"lr={cfg.optim.lr}")):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        with pytest.raises(SystemExit) as exited:
            run_hydra(main, tmp_path / "configs", "config")
        captured = capsys.readouterr()
        return exited.value.code or 0, captured.out, captured.err

    return run


def test_runs_main_with_the_composed_config_and_leaves_nothing_behind(hydra_command):
    assert hydra_command("experiment=small") == (0, "lr=0.5\n", "")
    assert list(Path.cwd().iterdir()) == []


def test_a_value_may_hold_an_equals_sign(hydra_command):
    """As the name of every run folder does."""
    path = "runs/a/b/seed=0"
    shown = {"main": lambda cfg: print(cfg.encoder.width)}
    assert hydra_command(f"encoder.width={path}", **shown) == (0, f"{path}\n", "")
    assert hydra_command(f"encoder.width='{path}'", **shown) == (0, f"{path}\n", "")
    jobs = [f'job {number} of 2: encoder.width="{one}"\n{one}\n' for number, one in ((1, path), (2, f"{path}1"))]
    assert hydra_command("-m", f"encoder.width={path},{path}1", **shown) == (0, f"{MORE}\n{''.join(jobs)}", "")
    # An equals sign of Hydra's own grammar stays what it is.
    reverse = "+encoder.layers=sort([1,2],reverse=true)"
    assert hydra_command(reverse, main=lambda cfg: print(cfg.encoder.layers)) == (0, "[2, 1]\n", "")


def test_exits_with_the_status_of_main(hydra_command):
    assert hydra_command(main=lambda cfg: 7)[0] == 7


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optim.lrr=1", "optim.lrr: no such setting; did you mean optim.lr?"),
        ("lr=1", "lr: no such setting; did you mean optim.lr?"),
        ("optim.zzz=1", "optim.zzz: no such setting; there are: betas, lr, mode, steps, warmup"),
        ("experimnt=small", "experimnt: no such setting; did you mean experiment?"),
        ("optim={lrr: 1}", "optim.lrr: no such setting; did you mean optim.lr?"),
        ("optim.lr=abc", "optim.lr: 'abc' is not a float"),
        ("optim.lr=null", "optim.lr: null is not allowed here"),
        ("optim.steps=1.5", "optim.steps: 1.5 is not an int"),
        ("optim.mode=cloud", "optim.mode: 'cloud' is not one of online, offline"),
        ("optim.betas=3", "optim.betas: 3 is not a list"),
        ("optim.betas=[a]", "optim.betas[0]: 'a' is not a float"),
        ("optim.warmup=abc", "optim.warmup: 'abc' is not an int or a float or null"),
        ("optim.lr=1,2", "optim.lr: several values; write 'optim.lr=[1,2]' for a list, or add --multirun"),
        ("optim.lr=${nope}", "optim.lr: interpolation key 'nope' not found"),
        ("optim.lr", "'optim.lr' is not a setting; write key=value"),
        ("optim.lr=[1", "cannot read 'optim.lr=[1': no viable alternative at input '[1'"),
        ("=3", "'=3' is not a setting; write key=value"),
        ("needed=???", "needed: required, and not set; write needed=VALUE"),
        ("experiment=foo", "unknown experiment 'foo'; there are: broken, headless, small, typo, words"),
        ("encoder=foo", "unknown encoder 'foo'; there are: conv, vit"),
        ("encoder=3", "unknown encoder '3'; there are: conv, vit"),
        ("encoder=null", "unknown encoder 'null'; there are: conv, vit"),
        ("optim.needed=1", "optim.needed: no such setting; did you mean needed?"),
        ("+experiment=small", "experiment: already chosen in the defaults; write experiment=NAME, without '+'"),
        ("experiment=typo", "optim.lrr: no such setting; did you mean optim.lr? (in experiment/typo.yaml)"),
        ("experiment=words", "optim.lr: 'fast' is not a float (in experiment/words.yaml)"),
        ("experiment=broken", "configs/experiment/broken.yaml, line 3: expected ',' or '}', but got ':'"),
        ("experiment=headless", "experiment/headless.yaml: has to start with the line '# @package _global_'"),
        # A key of a part: its file need not list every argument.
        ("encoder.widht=3", "encoder.widht: no such setting; did you mean encoder.width? (+encoder.widht=VALUE adds"),
        ("encoder.zzz=3", "encoder.zzz: no such setting; there are: width (+encoder.zzz=VALUE adds"),
        # Hydra lets `+` past the schema, and the setting would be ignored.
        ("+optim.lrr=1", "optim.lrr: no such setting; did you mean optim.lr?"),
        ("++zzz=1", "zzz: no such setting; there are: encoder, needed, optim"),
        ("--config-name=foo", "unknown config 'foo'"),
        ("--zzz", "--zzz: no such option; settings are written key=value, see --help"),
        ("--info=zzz", "--info/-i: invalid choice: 'zzz'"),
    ],
)
def test_a_mistake_is_one_line_before_main_starts(hydra_command, argument, message):
    status, out, err = hydra_command(argument)
    assert (status, out) == (2, "")
    assert err.startswith(f"mmlm: {message}")
    assert err.count("\n") == 1


def test_an_argument_that_the_file_of_a_part_does_not_list_can_be_added(hydra_command):
    assert hydra_command("+encoder.depth=3", main=lambda cfg: cfg.encoder.depth) == (3, "", "")


def test_a_mistake_that_main_finds_is_one_line(hydra_command):
    def main(cfg):
        raise UserError("batch_size: 128 is\nlarger than the data")

    assert hydra_command(main=main) == (2, "", "mmlm: batch_size: 128 is larger than the data\n")


def test_a_bug_keeps_its_exception(hydra_command, capsys):
    def fails(cfg):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        hydra_command(main=fails)
    with pytest.raises(AttributeError, match="nope"):
        hydra_command(main=lambda cfg: cfg.optim.nope)
    assert capsys.readouterr().err == ""


def test_an_interrupt_exits_with_130(hydra_command):
    def main(cfg):
        raise KeyboardInterrupt

    assert hydra_command(main=main) == (130, "", "mmlm: interrupted\n")


def test_a_sweep_goes_on_after_a_mistake_and_reports_it(hydra_command):
    def main(cfg):
        if cfg.optim.lr == 1:
            raise UserError("too fast")
        print(f"lr={cfg.optim.lr}")

    status, out, err = hydra_command("--multirun", "encoder.width=8", "optim.lr=1,2,3", main=main)
    assert out == f"{MORE}\njob 1 of 3: optim.lr=1\njob 2 of 3: optim.lr=2\nlr=2.0\njob 3 of 3: optim.lr=3\nlr=3.0\n"
    assert (status, err) == (2, "mmlm: too fast\nmmlm: 1 of 3 jobs failed: optim.lr=1 (status 2)\n")


def test_a_sweep_over_several_settings_names_what_differs(hydra_command):
    status, out, err = hydra_command("-m", "encoder=conv,vit", "optim.lr=1,2", main=lambda cfg: None)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        MORE,
        "job 1 of 4: encoder=conv optim.lr=1",
        "job 2 of 4: encoder=conv optim.lr=2",
        "job 3 of 4: encoder=vit optim.lr=1",
        "job 4 of 4: encoder=vit optim.lr=2",
    ]
    assert hydra_command("-m", "optim.lr=1", main=lambda cfg: None) == (0, "", "")


@pytest.mark.parametrize(("option", "text"), [("--help", "encoder: conv, vit"), ("--cfg=job", "lr: 0.1")])
def test_the_options_of_hydra_work(hydra_command, option, text):
    status, out, err = hydra_command(option)
    assert (status, err) == (0, "")
    assert text in out


@pytest.mark.slow
def test_real_commands(tmp_path):
    """In their own processes: one line and no traceback, and ``--info`` (which writes to Hydra's own log)."""
    (tmp_path / "config.yaml").write_text("lr: 1\n")
    command = (
        "import pathlib, mmlm.cli.hydra_command; mmlm.cli.hydra_command.run_hydra(print, pathlib.Path('.'), 'config')"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HYDRA")}

    def run(argument):
        return subprocess.run(
            [sys.executable, "-c", command, argument],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    done = run("lrr=1")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "mmlm: lrr: no such setting; did you mean lr?\n")
    done = run("--info=searchpath")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"file://{tmp_path}" in done.stdout


# Small commands


@dataclass
class Decoding:
    beams: int = 1
    """Hypotheses kept."""


@dataclass
class Command:
    """Captions images."""

    run: str
    """Folder of the run
    to use."""
    mode: Mode = Mode.offline
    temperature: float | None = None
    splits: list[str] = field(default_factory=list)
    decoding: Decoding = field(default_factory=Decoding)
    folder: Path = Path("here")


def test_reads_settings_and_leaves_the_rest():
    arguments = ["run=007", "a.png", "temperature=1e-3", "mode=online", "splits=[a, b]", "decoding.beams=4", "folder=x"]
    settings, images = parse_key_values([*arguments, "./a=b.png", "p/x=y.png", "--", "--z", "run=1"], Command, "IMAGE")
    assert settings == Command("007", Mode.online, 1e-3, ["a", "b"], Decoding(4), Path("x"))
    assert images == ["a.png", "./a=b.png", "p/x=y.png", "--z", "run=1"]


def test_null_and_text_that_looks_like_something_else():
    settings, _ = parse_key_values(["run=a=b [1", "temperature=null"], Command)
    assert settings.run == "a=b [1"
    assert settings.temperature is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run: required, and not set; write run=VALUE"),
        (["run=a", "mdoe=online"], "mdoe: no such setting; did you mean mode?"),
        (["run=a", "decoding.bems=2"], "decoding.bems: no such setting; did you mean decoding.beams?"),
        (["run=a", "mode=cloud"], "mode: 'cloud' is not one of online, offline"),
        (["run=a", "temperature=hot"], "temperature: 'hot' is not a float"),
        (["run=a", "decoding.beams=two"], "decoding.beams: 'two' is not an int"),
        (["run=a", "decoding=3"], "decoding: 3 is not a group of settings (Decoding)"),
        (["run=a", "splits=[a"], "splits: cannot read '[a'"),
        (["run=${nope}"], "run: interpolation key 'nope' not found"),
        (["run=a", "--fast"], "--fast: no such option; settings are written key=value, see --help"),
        (["run=a", "stray"], "'stray' is not a setting; write key=value, see --help"),
    ],
)
def test_mistakes_of_small_commands(arguments, message):
    with pytest.raises(UserError) as refused:
        parse_key_values(arguments, Command)
    assert str(refused.value) == message


def test_says_how_to_name_a_file_that_looks_like_a_setting():
    with pytest.raises(UserError, match=r"write \./zzz="):
        parse_key_values(["run=a", "zzz=b.png"], Command, "IMAGE")


def test_help_comes_from_the_dataclass(capsys):
    with pytest.raises(SystemExit) as exited:
        parse_key_values(["--help"], Command, "IMAGE")
    assert not exited.value.code
    text = capsys.readouterr().out
    assert text.startswith("Captions images.\n\nsettings: key=value ... IMAGE ...\n")
    assert "  run=...  (required)\n      Folder of the run to use.\n" in text
    assert "  mode=offline\n" in text
    assert "  decoding.beams=1\n      Hypotheses kept.\n" in text
    assert field_docs(Command) == {"run": "Folder of the run to use."}


def test_report_user_errors(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["caption.py", "run=x"])

    def status_of(main):
        with pytest.raises(SystemExit) as exited:
            report_user_errors(main)
        return exited.value.code or 0, capsys.readouterr().err

    def raises(error):
        def main(argv):
            raise error

        return main

    assert status_of(lambda argv: argv != ["run=x"]) == (0, "")
    assert status_of(lambda argv: 3) == (3, "")
    assert status_of(raises(UserError("no such run"))) == (2, "mmlm: no such run\n")
    assert status_of(raises(KeyboardInterrupt())) == (130, "mmlm: interrupted\n")
    with pytest.raises(RuntimeError, match="a bug"):
        report_user_errors(raises(RuntimeError("a bug")))
