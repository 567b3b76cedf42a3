"""prepare_wordnet: WordNet's lines are read, glosses are cut in two, and families of words stay together."""

import pyarrow.parquet as pq
import pytest

from mmlm.data import npm_packages, prepare_wordnet
from mmlm.data.wordnet import FILE
from mmlm.data.wordnet_tools.database import split_gloss
from mmlm.data.wordnet_tools.families import split_of
from tests.data.npm import tarball

LICENCE = "  1 A licence, each line of which begins with two blanks.\n"
NOUNS = (
    '00000001 05 n 02 runner 0 race_horse 1 001 + 00000001 v 0101 | one that runs; "the runner fell"; "two runners"  ',
    "00000002 44 n 01 Paris 0 000 | the capital of France  ",
    "00000003 15 n 01 city_of_light 0 000 | the capital of France  ",
)
VERBS = ('00000001 38 v 01 run 0 001 + 00000001 n 0101 01 + 02 00 | move "fast"  ',)
ADJECTIVES = ("00000001 00 s 01 running(a) 0 001 + 00000001 v 0101 | in motion  ",)
ADVERBS = ("00000001 02 r 01 runningly 0 001 \\ 00000001 s 0101 | by running  ",)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """``build(verbs=..., arguments)``: the status of the command on a package of six meanings."""
    monkeypatch.setattr(npm_packages, "verify", lambda package, path: None)

    def run(*arguments: str, verbs: tuple[str, ...] = VERBS) -> int:
        files = {"data.noun": NOUNS, "data.verb": verbs, "data.adj": ADJECTIVES, "data.adv": ADVERBS}
        texts = {f"dict/{name}": LICENCE + "".join(f"{line}\n" for line in lines) for name, lines in files.items()}
        tarball(tmp_path / prepare_wordnet.PACKAGE.tarball, texts)
        at = ["--downloads", str(tmp_path), "--folder", str(tmp_path / "built")]
        return prepare_wordnet.main([*at, *arguments])

    return run


def test_a_row_for_each_meaning(build, tmp_path, capsys):
    assert build() == 0
    assert "wrote 6 meanings" in capsys.readouterr().out
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "built" / FILE).to_pylist()}
    assert rows["n00000001"] == {
        "id": "n00000001",
        "pos": "n",
        "topic": "noun.animal",
        "words": ["runner", "race horse"],
        "definition": "one that runs",
        "examples": ["the runner fell", "two runners"],
        "family": "run",
        "split": split_of("run"),
    }
    assert rows["v00000001"]["definition"] == 'move "fast"'
    assert rows["a00000001"]["words"] == ["running"]
    families = {key: row["family"] for key, row in rows.items()}
    assert {families[key] for key in ("n00000001", "v00000001", "a00000001", "r00000001")} == {"run"}
    assert families["n00000002"] == families["n00000003"] == "city of light"
    assert build("--check") == 0
    assert f"{FILE}: equal" in capsys.readouterr().out


def test_a_changed_file_is_told(build, capsys):
    assert build() == 0
    assert build("--check", verbs=(VERBS[0].replace("fast", "quickly"),)) == 1
    assert f"{FILE}: 1 rows differ\n    v00000001" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["00000001 38 v 01 run", "00000001 99 v 01 run 0 000 | move", "x y z w | move"])
def test_a_line_that_is_no_synset_is_named(build, capsys, line):
    assert build(verbs=(line,)) == 2
    assert "error: data.verb:2: is no synset of WordNet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gloss", "parts"),
    [
        ('a thing; "one"; "two or more" - Somebody', ("a thing", ("one", "two or more"))),
        ('a cow: "`moo-cow\' is a word"', ("a cow", ("`moo-cow' is a word",))),
        ('as in "carrot and stick"', ('as in "carrot and stick"', ())),
        ("a thing; or another  ", ("a thing; or another", ())),
        ('a thing; "', ("a thing", ())),
    ],
)
def test_a_gloss_is_a_definition_and_examples(gloss, parts):
    assert split_gloss(gloss) == parts
