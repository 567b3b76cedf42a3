"""Writes the tables and the page of a study, and checks the tables that stand in pages."""

from collections.abc import Sequence
from pathlib import Path

from mmlm.core.errors import UserError
from mmlm.record.folder import write_whole, write_whole_bytes
from mmlm.studies.contrast_table import latex_table
from mmlm.studies.contrasts import compare_all
from mmlm.studies.page import study_page
from mmlm.studies.place import LATEX, PAGE, REPORT, SCORES, Place
from mmlm.studies.record import StudyRecord, all_arrays, with_record
from mmlm.studies.scores import ScoredRun, scores_table
from mmlm.studies.shown import tell
from mmlm.studies.table import study_report
from mmlm.studies.verify import as_parquet, check_page, put_into


def write_report(
    record: StudyRecord, scored: Sequence[ScoredRun], place: Place, into: str | None, unlike: bool
) -> None:
    """Writes what is known of the runs that are done into the study's folder, and into the page ``into``.

    Raises UserError where validation data or protocols differ among the runs, unless ``unlike`` allows it.
    """
    if record.unlike and not unlike:
        raise UserError(
            f"{record.name}: {'; '.join(record.unlike)}; evaluate the runs alike, or give unlike=true to see them all"
        )
    rows = with_record(scores_table(scored), record)
    arrays = all_arrays(record, rows)
    compared = compare_all(arrays, record.baseline)
    tables, folder = study_report(record, arrays, compared), place.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_whole_bytes(folder / SCORES, as_parquet(rows))
    write_whole(folder / REPORT, tables)
    write_whole(folder / LATEX, latex_table(record.name, compared))
    write_whole(folder / PAGE, study_page(record, arrays, compared, {one.run.label: one.folder for one in scored}))
    tell(tables)
    if into is not None:
        tell(f"written into {into}; what it is made of: {put_into(Path(into), record, rows)}")
    tell(f"page: {folder / PAGE}; tables: {folder / REPORT}, {folder / LATEX}; every score: {folder / SCORES}")


def verify_pages(pages: Sequence[str]) -> int:
    """Checks the tables of studies in pages; returns 0 if all are right, else 1. Raises UserError."""
    status = 0
    for page in pages:
        checked = check_page(Path(page))
        wrong = [one for one in checked if one.difference is not None]
        for one in wrong:
            tell(f"{page}: the table of {one.record} is not what its record says: {one.difference}")
            status = 1
        if not wrong:
            tell(f"{page}: {len(checked)} stud{'y' if len(checked) == 1 else 'ies'}, as recorded")
    return status
