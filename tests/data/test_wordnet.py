"""The WordNet texts that ship: what is in the file, and that no family of words is in two splits."""

import hashlib
import itertools
import pickle

import pytest

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError
from mmlm.data.prepare_wordnet import CHECKSUMS
from mmlm.data.wordnet import FILE, FOLDER, SPLITS, WordnetTexts, read_split
from mmlm.data.wordnet_tools.database import TOPICS
from mmlm.data.wordnet_tools.families import split_of


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {split: read_split(split).to_pylist() for split in SPLITS}


def test_the_file_is_whole(rows):
    expected = hashlib.sha256((FOLDER / FILE).read_bytes()).hexdigest()
    assert (FOLDER / CHECKSUMS).read_text() == f"{expected}  {FILE}\n"
    assert {split: len(found) for split, found in rows.items()} == {"train": 105842, "validation": 6086, "test": 5863}
    found = list(itertools.chain(*rows.values()))
    assert len({row["id"] for row in found}) == len(found) == 117791
    assert {row["topic"] for row in found} == set(TOPICS)
    assert all(row["words"] and row["definition"] for row in found)
    dog = next(row for row in found if row["words"][0] == "dog" and row["topic"] == "noun.animal")
    assert dog["words"] == ["dog", "domestic dog", "Canis familiaris"]
    assert dog["definition"].startswith("a member of the genus Canis (probably descended from the common wolf)")
    assert dog["examples"] == ["the dog barked all night"]


def test_what_is_held_out_is_in_no_other_split(rows):
    for one, other in itertools.combinations(SPLITS, 2):
        for kind in ("family", "definition", "words", "examples"):
            of = [{text.lower() for row in rows[split] for text in texts_of(row, kind)} for split in (one, other)]
            assert not of[0] & of[1], (one, other, kind)
    assert all(split_of(row["family"]) == split for split, found in rows.items() for row in found)


def texts_of(row: dict, kind: str) -> list[str]:
    """Of the words, the first: it names the meaning."""
    return {"words": row["words"][:1], "examples": row["examples"]}.get(kind, [row[kind]])


def test_each_definition_and_each_example_is_a_text(rows):
    source = pickle.loads(pickle.dumps(WordnetTexts("test")))
    assert len(source) == sum(1 + len(row["examples"]) for row in rows["test"])
    row = next(row for row in rows["test"] if len(row["examples"]) > 1)
    texts = {text.id: text.captions for text in source.texts()}
    assert texts[f"{row['id']}:0"] == (Caption(row["definition"], "en", "definition"),)
    assert texts[f"{row['id']}:2"] == (Caption(row["examples"][1], "en", "example"),)
    assert texts[f"{row['id']}:2"][0].kind == "example"
    assert len(texts) == len(source)
    example = source[5]
    assert (example.image, example.concept) == (None, None)
    assert (example.captions,) == (texts[example.id],) == ((list(source.captions())[5],),)
    only = WordnetTexts("test", ["example"])
    assert len(only) == len(source) - len(rows["test"])
    assert {caption.kind for caption in only.captions()} == {"example"}


def test_mistakes():
    with pytest.raises(ArgumentError, match="split: 'val' is no split of WordNet; choose one of train, valid"):
        WordnetTexts("val")
    with pytest.raises(ArgumentError, match=r"kinds: \['word'\] must be some of definition, example"):
        WordnetTexts("test", ["word"])
