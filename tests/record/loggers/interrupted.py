"""A run that is cut off three times, and each time goes on from an older checkpoint, as loggers see it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from mmlm.record.logger import Copies, LoggedRun, Logger, Sample
from mmlm.record.metrics import MetricLog, read_metrics

SESSIONS = ((None, 5), (4, 7), (2, 6), (6, 9))
"""The step of the checkpoint that a session goes on from, and the last step that it makes; one session is cut off
before it has made again all that was there."""
PICTURES = [Sample(Image.new("RGB", (8, 6), "red"), "a red square (true: a red circle)")]
PAGE = "<html><body>the report</body></html>"


def interrupted_run(folder: Path, make: Callable[[], Logger], killed: bool = True) -> list[dict[str, float]]:
    """Goes through the sessions, each with a logger of its own; returns the rows of ``metrics.jsonl``.

    A row is made of its step, whichever session makes it. Evaluations have a row beside that of the step. Of ``killed``
    sessions nothing is closed before the run has ended.
    """
    said: list[str] = []
    logs: list[MetricLog] = []
    run = LoggedRun(folder, "study/abc/seed=0", {"optim": {"lr": 0.1}})
    for number, (start, last) in enumerate(SESSIONS):
        logs.append(log := MetricLog(folder, Copies(run, {"copy": make()}, said.append)))
        log.resume_from(start)
        for step in range((start or 0) + 1, last + 1):
            log.log(step, 8 * step, 0.5 * step, {"train/loss": 1 / step, "train/lr": 0.1})
            if step % 3 == 0:
                log.log(step, 8 * step, 0.5 * step, {"val/image_to_text/R@1": step / 16})
        if number == len(SESSIONS) - 1:
            page = folder / "report.html"
            page.write_text(PAGE)
            log._copies.samples(last, "val", PICTURES)
            log._copies.report(last, page)
        if not killed or number == len(SESSIONS) - 1:
            log.close()
    for log in logs:
        log.close()
    assert said == [], said
    return read_metrics(folder / "metrics.jsonl")


def curves(rows: list[dict[str, float]]) -> Mapping[str, list[tuple[int, float]]]:
    """(step, value) of every name, in order."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "examples", "seconds"):
                found.setdefault(name, []).append((int(row["step"]), value))
    return found
