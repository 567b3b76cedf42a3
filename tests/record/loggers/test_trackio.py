"""The copy in trackio: one curve, pictures with captions, the report; nothing is printed, nothing goes elsewhere.

trackio wants an older Pillow than the rest of the tests have, so it is not among the development tools. The logger is
tested against a stand-in with the names that it uses; where trackio is installed, the same test runs against trackio.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmlm.core.errors import UserError
from mmlm.record import logger as loggers
from mmlm.record.logger import Copies, LoggedRun
from mmlm.record.loggers.trackio import Trackio
from mmlm.record.metrics import MetricLog, read_metrics
from tests.record.loggers.interrupted import PAGE, PICTURES, curves, interrupted_run

ROOT = Path(__file__).parents[3]


class StandIn:
    """What the logger uses of trackio: runs of projects, by name. A run that begins takes nobody's place."""

    def __init__(self) -> None:
        self.projects: dict[str, list[SimpleNamespace]] = {}
        self.current: SimpleNamespace | None = None

    def init(self, project, name, config, embed, auto_log_gpu, auto_log_cpu):
        print(f"* Trackio project initialized: {project}")
        run = SimpleNamespace(
            name=name, config=config, rows=[], log=lambda values, step: run.rows.append((step, values))
        )
        run.delete = lambda: self.projects[project].remove(run)
        self.projects.setdefault(project, []).append(run)
        self.current = run
        return run

    def finish(self):
        print("* Run finished.")
        assert self.current is not None
        self.current = None

    def Api(self):  # noqa: N802 - trackio's name
        def runs(project):
            if project not in self.projects:
                raise ValueError(f"Project '{project}' does not exist")
            return list(self.projects[project])

        return SimpleNamespace(runs=runs)

    def Image(self, image, caption):  # noqa: N802
        return ("image", image.size, caption)

    def Html(self, page, inject):  # noqa: N802
        return ("html", page.name)


@pytest.fixture
def stand_in(monkeypatch):
    """trackio's stand-in."""
    found = StandIn()
    monkeypatch.setitem(sys.modules, "trackio", found)
    find = importlib.util.find_spec
    origin = SimpleNamespace(origin="stand-in")
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: origin if name == "trackio" else find(name))
    return found


def test_a_run_that_is_interrupted_three_times_is_one_curve(stand_in, tmp_path, capsys):
    rows = interrupted_run(tmp_path, lambda: Trackio("tests"), killed=False)
    (run,) = stand_in.projects["tests"]
    assert run.name == f"study/abc/seed=0-{(tmp_path / 'logger_id').read_text()}"
    assert run.config == {"optim": {"lr": 0.1}}
    logged = [{"step": step, **values} for step, values in run.rows]
    assert logged[:-2] == rows
    assert logged[-2:] == [
        {"step": 9, "samples val/01": ("image", (8, 6), PICTURES[0].caption)},
        {"step": 9, "report": ("html", "report.html")},
    ]
    assert capsys.readouterr() == ("", "")


def test_the_runs_of_others_stay(stand_in, tmp_path):
    for folder in (tmp_path / "one", tmp_path / "other"):
        with MetricLog(folder, Copies(LoggedRun(folder, "a", {}), {"trackio": Trackio("tests")})) as log:
            log.resume_from(None)
            log.log(1, 8, 0.5, {"loss": 1.0})
    assert [len(run.rows) for run in stand_in.projects["tests"]] == [1, 1]


@pytest.mark.parametrize("name", ["TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"])
def test_another_machine_is_refused(stand_in, monkeypatch, name):
    monkeypatch.setenv(name, "somewhere")
    with pytest.raises(UserError, match=f"^logger: trackio is used on this machine only; unset {name}, and publish"):
        Trackio("tests")


def test_a_missing_library_is_told_with_its_command(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^logger: trackio is not installed; pip install 'mmlm\[trackio\]'$"):
        Trackio("tests")


REAL_RUN = """
import json
import sys
from pathlib import Path
from mmlm.record.loggers.trackio import Trackio
from tests.record.loggers.interrupted import interrupted_run

interrupted_run(Path(sys.argv[1]), lambda: Trackio("tests"), killed=False)
import trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("tests")
print(json.dumps(SQLiteStorage.get_logs("tests", run.name, run_id=run.id)))
"""

if importlib.util.find_spec("trackio") is not None:

    @pytest.mark.slow
    def test_the_real_trackio_has_one_curve_too(tmp_path, monkeypatch):
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        command = [sys.executable, "-c", REAL_RUN, str(tmp_path / "run")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert (done.returncode, done.stderr) == (0, "")
        logs = json.loads(done.stdout)
        numbers = [{name: v for name, v in row.items() if isinstance(v, int | float)} for row in logs]
        assert curves(numbers) == curves(read_metrics(tmp_path / "run" / "metrics.jsonl"))
        pictures = [row["samples val/01"]["caption"] for row in logs if "samples val/01" in row]
        assert pictures == [PICTURES[0].caption]
        (page,) = (tmp_path / "trackio").rglob("*.html")
        assert page.read_text() == PAGE
