"""Tables in pages are written from a record, and told from any that are not what the record says."""

import pyarrow.parquet as pq
import pytest

from mmlm.core.errors import UserError
from mmlm.studies.verify import END, check_page, put_into
from mmlm.study import main
from tests.studies.recorded import study
from tests.test_docs import README, STUDIES


@pytest.fixture
def page(tmp_path):
    """A page with a study's tables between two sentences."""
    file = tmp_path / "README.md"
    file.write_text(f"# Bridges\n\nBefore.\n\n<!-- study: small.parquet -->\nold\n{END}\n\nAfter.\n")
    record, rows = study({"pooler": 0.3})
    assert put_into(file, record, rows) == tmp_path / "small.parquet"
    return file


def test_what_is_written_is_as_recorded(page, capsys):
    text = page.read_text()
    assert text.startswith("# Bridges\n\nBefore.\n\n<!-- study: small.parquet -->\n| cell |")
    assert text.endswith(f"{END}\n\nAfter.\n")
    assert "old" not in text
    assert [(one.record, one.difference) for one in check_page(page)] == [("small.parquet", None)]
    assert main(["verify", str(page)]) == 0
    assert f"{page}: 1 study, as recorded" in capsys.readouterr().out
    kept = pq.read_table(page.parent / "small.parquet")
    assert set(kept["figure"].to_pylist()) == {"R@1", "loss"}, "only what the tables show is kept"
    again, rows = study({"pooler": 0.3})
    put_into(page, again, rows)
    assert page.read_text() == text


@pytest.mark.parametrize("page", [README, *STUDIES], ids=lambda page: page.parent.name)
def test_tables_of_the_repository_are_as_recorded(page):
    assert [one for one in check_page(page) if one.difference is not None] == []


def test_a_page_that_is_not_there_is_begun(tmp_path):
    record, rows = study({})
    put_into(tmp_path / "new" / "README.md", record, rows)
    text = (tmp_path / "new" / "README.md").read_text()
    assert text.startswith("# small\n\nWhich <bridge>?\n\n<!-- study: small.parquet -->\n")
    assert check_page(tmp_path / "new" / "README.md")[0].difference is None


@pytest.mark.parametrize(("old", "new"), [("| pooler | 8", "| pooler | 9"), ("- Code: aaa", "- Code: bbb")])
def test_a_number_that_was_changed_is_told(page, capsys, old, new):
    text = page.read_text()
    assert old in text
    page.write_text(text.replace(old, new))
    assert main(["verify", str(page)]) == 1
    told = capsys.readouterr().out
    assert "the table of small.parquet is not what its record says: line " in told
    assert new in told
    assert old in told


def test_a_page_without_studies_is_right_and_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "a.md").write_text("nothing\n")
    assert main(["verify", str(tmp_path / "a.md")]) == 0
    assert "0 studies, as recorded" in capsys.readouterr().out
    (tmp_path / "a.md").write_text(f"<!-- study: gone.parquet -->\n{END}\n")
    with pytest.raises(UserError, match=r"gone\.parquet: cannot be read"):
        main(["verify", str(tmp_path / "a.md")])
    with pytest.raises(UserError, match=r"missing\.md: cannot be read"):
        main(["verify", str(tmp_path / "missing.md")])
    with pytest.raises(UserError, match="verify: no page is named"):
        main(["verify"])
    _, rows = study({})
    pq.write_table(rows.replace_schema_metadata({}), tmp_path / "gone.parquet")
    with pytest.raises(UserError, match=r"gone\.parquet: is no record of a study"):
        main(["verify", str(tmp_path / "a.md")])
