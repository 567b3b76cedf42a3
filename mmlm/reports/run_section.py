"""What a run is beside its numbers: what it changes of the base, its other seeds, what differs from another run."""

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from mmlm.record.changes import Change, Changes
from mmlm.record.folder import REPORT
from mmlm.reports.differences import differences
from mmlm.reports.run_folder import RunFolder

SEED = re.compile(r"seed=\d+")
"""What the folder of a seed is called: the name is put into an address as it is."""
_PART = "_target_"
_IN_YAML = {"None": "null", "True": "true", "False": "false"}
"""Values as a command line has them."""


def name_beside(run: RunFolder, other: RunFolder) -> str:
    """What ``other`` is called on the page of ``run``: by the first of experiment, name and seed that differs."""
    if other.experiment != run.experiment:
        return other.experiment
    if other.name != run.name:
        return str(other.name)
    return f"seed {other.seed}" if other.seed != run.seed else other.display_path


def unlike(run: RunFolder, other: RunFolder) -> str | None:
    """One line about what besides the experiments differs between two runs; None if nothing does."""
    return differences({"this run": run, name_beside(run, other): other})


def against_note(run: RunFolder, other: RunFolder) -> str:
    """What the values of the other run in the table are, and a warning where the two runs are unlike."""
    name, warning = escape(name_beside(run, other)), unlike(run, other)
    steps = f" at step {other.scores.step:,}" if other.scores else ""
    note = (
        f'<p class="note">Beside each score that of <b>{name}</b> ({escape(other.display_path)}{steps}), and by how '
        "much this run's is higher.</p>"
    )
    return note + (f'<p class="unlike">{escape(warning)}</p>' if warning else "")


def seeds_line(folder: Path) -> str:
    """Links to the reports of the same run with other seeds, as far as they are there; empty without one."""
    own = folder.resolve()
    if not SEED.fullmatch(own.name):
        return ""
    found = [report.parent.name for report in own.parent.glob(f"seed=*/{REPORT}")]
    names = sorted((name for name in found if SEED.fullmatch(name) and name != own.name), key=_number)
    links = ", ".join(f'<a href="../{name}/{REPORT}">seed {_number(name)}</a>' for name in names)
    return f'<p class="seeds">Other seeds: {links}</p>' if links else ""


def _number(name: str) -> int:
    return int(name.removeprefix("seed="))


def changes_section(changes: Changes | None) -> str:
    """A table of the settings that differ from the base experiment's; empty where nobody has written them down."""
    if changes is None:
        return ""
    base = f"<code>experiment={escape(changes.base)}</code>"
    if not changes.changes:
        nothing = f'<p class="note">Nothing: it is {base} as it is.</p>'
        return f'<section id="changes"><h2>What it changes</h2>{nothing}</section>'
    rows = "".join(map(_change, changes.changes))
    return (
        f'<section id="changes"><h2>What it changes</h2><p class="note">Settings that differ from {base} and change '
        'what is computed.</p><div class="scroll"><table class="plain changes"><thead><tr><th>setting</th><td>base</td>'
        f"<td>this run</td></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _change(change: Change) -> str:
    """One row. Of a part, the name of its class is enough; the whole path is in the config."""
    part = change.key.endswith(_PART)
    key = change.key.removesuffix(f".{_PART}") if part else change.key
    before, after = (_value(value, part) for value in (change.base, change.here))
    return f'<tr><th scope="row">{escape(key)}</th><td>{before}</td><td>{after}</td></tr>'


def _value(value: str | None, part: bool) -> str:
    if value is None:
        return "–"
    return escape(value.rpartition(".")[2] if part else _IN_YAML.get(value, value))


def reproduce_section(run: RunFolder) -> str:
    """How the run is done again, with its config, its environment and the versions of packages."""
    command = run.environment.get("command")
    commit = run.environment.get("git_commit")
    lines = [f"git checkout {commit}"] * bool(commit) + ["pip install -e .", str(command)] * bool(command)
    lines += ["", "# this page again", f"python -m mmlm.report run={run.display_path}"]
    dirty = (
        '<p class="note">There were uncommitted changes: the commit alone does not give this run back.</p>'
        if run.environment.get("git_dirty")
        else ""
    )
    config = (
        f"<details><summary>Resolved config</summary><pre>{escape(run.config)}</pre></details>" if run.config else ""
    )
    # The page is passed around, and should not name the folders of a machine.
    shown = _flatten({key: value for key, value in run.environment.items() if key != "working_folder"})
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in shown.items())
    environment = (
        f'<details><summary>Environment and versions</summary><table class="plain">{rows}</table></details>'
        if rows
        else ""
    )
    return (
        f'<section id="reproduce"><h2>Do it again</h2>{dirty}<pre>{escape(chr(10).join(lines).strip())}</pre>'
        f"{config}{environment}</section>"
    )


def _flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """The values of nested objects as text, by dotted name."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat
