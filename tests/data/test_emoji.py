"""emoji: nothing held out is trained on, the card tells the truth, and the source gives what its files hold."""

import hashlib
import itertools
import json
import pickle
import re
from collections import Counter

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

import mmlm.data.emoji as emoji
from mmlm.core.errors import CorruptImage, UserError
from mmlm.data.emoji import FOLDER, LANGUAGES, NAMES, Emoji
from mmlm.data.emoji_splits import SPLITS, TEST_HANDS, TRAIN_HANDS, VAL_HANDS, division_of, family_of

HANDS = (*TRAIN_HANDS, *VAL_HANDS, *TEST_HANDS)


def hand_of(example_id: str) -> str:
    return example_id.split("/")[0]


@pytest.fixture(scope="module")
def splits() -> dict[str, Emoji]:
    return {split: Emoji(split) for split in SPLITS}


@pytest.fixture(scope="module")
def examples(splits):
    return {split: [source[i] for i in range(len(source))] for split, source in splits.items()}


@pytest.mark.parametrize(
    "variants",
    [
        ["1f468", "1f469", "1f9d1", "1f468-200d-1f9b0", "1f9d4-200d-2642-fe0f", "1f471", "1f469-1f3fd-200d-1f9b1"],
        ["1f468-200d-1f4bb", "1f469-200d-1f4bb", "1f9d1-200d-1f4bb", "1f9d1-1f3ff-200d-1f4bb"],
        ["1f6b6", "1f6b6-200d-2642", "1f6b6-200d-2640-200d-27a1", "1f6b6-1f3fb"],
        ["1f550", "1f55b", "1f55c", "1f567"],
        ["1f448", "1f449", "1f446", "1f447", "261d"],
        ["27a1", "2b05", "2b06", "2196", "2195"],
        ["0023-20e3", "0039-20e3", "0039-fe0f-20e3", "1f51f"],
        ["1f46a", "1f468-200d-1f466", "1f469-200d-1f469-200d-1f467-200d-1f466", "1f9d1-200d-1f9d2"],
        ["1f48f", "1f468-200d-2764-200d-1f48b-200d-1f468"],
        ["1f491", "1f469-200d-2764-fe0f-200d-1f469"],
        ["1f46b", "1f46c", "1f46d", "1f9d1-200d-1f91d-200d-1f9d1"],
        ["2764", "1f49a", "1f5a4"],
        ["1f408", "1f408-200d-2b1b"],
        ["1f1eb-1f1f7", "1f1f2-1f1eb"],
        ["1f1ee-1f1e9", "1f1f2-1f1e8"],
    ],
)
def test_variants_of_one_thing_are_one_family(variants):
    assert len({family_of(concept) for concept in variants}) == 1


def test_different_things_are_different_families():
    different = ["1f600", "1f603", "1f431", "1f436", "1f469", "1f467", "1f469-200d-1f4bb", "1f469-200d-1f33e", "1f48b"]
    different += ["1f491", "1f48f", "1f46a", "1f91d", "1f46d", "2640", "2642", "27a1", "1f494", "2764-200d-1f525"]
    different += [
        "1f1e9-1f1ea",
        "1f1eb-1f1f7",
        "1f3f3",
        "1f3f3-200d-1f308",
        "1f570",
        "1f550",
        "1f311",
        "1f43b-200d-2744",
    ]
    families = [family_of(concept) for concept in different]
    assert len(set(families)) == len(families)


def test_divisions_never_change():
    # Pinned: another hash or another family name would silently move held-out concepts into training.
    names = [
        "adult",
        "heart",
        "clock face",
        "keycap",
        "flag de",
        "1f600",
        "1f355",
        "1f9d1-200d-1f4bb",
        "1f436",
        "1f511",
    ]
    assert [division_of(name) for name in names] == [
        "test",
        "val",
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
    ]
    concepts = pq.read_table(FOLDER / f"{NAMES}.parquet", columns=["concept"])["concept"].to_pylist()
    text = "\n".join(f"{concept} {division_of(family_of(concept))}" for concept in sorted(concepts))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "a4a53f01aeb42192993e19fc5f90c2c5c2956b23d1430b148e2c737592a0a2ba"
    )


def test_divisions_are_80_10_10():
    concepts = pq.read_table(FOLDER / f"{NAMES}.parquet", columns=["concept"])["concept"].to_pylist()
    counts = Counter(division_of(family) for family in {family_of(concept) for concept in concepts})
    total = counts.total()
    assert counts["train"] / total == pytest.approx(0.8, abs=0.03)
    assert counts["val"] / total == pytest.approx(0.1, abs=0.02)
    assert counts["test"] / total == pytest.approx(0.1, abs=0.02)


def test_no_family_and_no_hand_leaks(examples):
    assert len(set(HANDS)) == len(HANDS) == 7
    hands = {split: {hand_of(e.id) for e in rows} for split, rows in examples.items()}
    families = {split: {family_of(e.concept) for e in rows} for split, rows in examples.items()}
    for split in ("val_style", "test_style"):
        assert hands[split].isdisjoint(hands["train"]), split
        assert families[split] <= families["train"], split
    for split in ("val_concepts", "test_concepts"):
        assert hands[split] == hands["train"], split
        assert families[split].isdisjoint(families["train"]), split
    assert hands["test_both"].isdisjoint(hands["train"] | hands["val_style"])
    assert families["test_both"].isdisjoint(families["train"] | families["val_concepts"])
    # Test shares no unseen thing with val either: neither a hand nor a family that was tuned on.
    assert hands["test_style"].isdisjoint(hands["val_style"])
    assert families["test_concepts"].isdisjoint(families["val_concepts"])


def test_no_image_is_in_two_splits(examples):
    ids = [example.id for rows in examples.values() for example in rows]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("split", ["val_concepts", "test_concepts"])
def test_no_near_duplicate_of_a_held_out_picture_is_trained_on(examples, split):
    def drawings(name: str) -> torch.Tensor:
        pixels = torch.stack([example.image for example in examples[name]]).float()
        return F.interpolate(pixels, size=(32, 32), mode="area").flatten(1) - 255

    held_out, trained = drawings(split), drawings("train")
    ink = torch.minimum(held_out.norm(dim=1)[:, None], trained.norm(dim=1)[None, :]) + 100
    distance = torch.cdist(held_out, trained) / ink
    row, column = divmod(int(distance.argmin()), distance.shape[1])
    assert distance.min() > 0.07, (examples[split][row].id, examples["train"][column].id)


def test_examples_are_what_the_source_promises(examples):
    for split, rows in examples.items():
        for example in rows:
            assert example.image.shape == (3, 64, 64)
            assert example.image.dtype == torch.uint8
            assert example.id == f"{hand_of(example.id)}/{example.concept}"
            assert hand_of(example.id) in SPLITS[split].hands
            (caption,) = example.captions
            assert caption.language == "en"
            assert caption.text.strip() == caption.text != ""


def test_pictures_are_drawn_on_white(examples):
    corners = torch.stack([e.image[:, ::63, ::63].flatten(1) for e in examples["val_style"]])
    assert (corners.float().mean(dim=(1, 2)) > 250).float().mean() > 0.99
    # A drawing that failed to render would be blank.
    assert min(float(e.image.float().std()) for rows in examples.values() for e in rows) > 1


def test_captions_decode_nothing_and_agree_with_the_examples(splits):
    source = Emoji("val_concepts", languages=("en", "sw"), keywords=True)
    listed = list(source.captions())
    assert source._decoded == {}
    assert listed == list(itertools.chain.from_iterable(source[i].captions for i in range(len(source))))
    assert [c.text for c in splits["val_concepts"].captions()] == [
        source[i].captions[0].text for i in range(len(source))
    ]


def test_languages_and_keywords():
    source = Emoji("train", languages=("de", "en"), keywords=True, hands=["noto"])
    example = next(source[i] for i in range(len(source)) if source[i].concept == "1f355")
    assert example.id == "noto/1f355"
    assert [caption.language for caption in example.captions] == ["de", "en", "de-x-keywords", "en-x-keywords"]
    assert example.captions[0].text == "Pizza"
    assert example.captions[1].text == "pizza"
    assert "cheese" in example.captions[3].text.split(", ")


def test_hands_narrow_a_split():
    assert {hand_of(source_id) for source_id in Emoji("train", hands=["fxemoji"])._ids} == {"fxemoji"}


def test_every_concept_has_its_own_name_in_every_language():
    table = pq.read_table(FOLDER / f"{NAMES}.parquet").to_pylist()
    for language in LANGUAGES:
        names = [row["captions"][language] for row in table]
        assert all(names)
        assert len(set(names)) == len(table) == 1906
        assert all(row["keywords"][language] for row in table)


def test_the_hands_files_repeat_the_names_of_the_names_file():
    columns = ["concept", "captions", "group", "subgroup"]
    rows = {row["concept"]: row for row in pq.read_table(FOLDER / f"{NAMES}.parquet", columns=columns).to_pylist()}
    for hand in HANDS:
        table = pq.read_table(FOLDER / f"{hand}.parquet", columns=[*columns, "style"]).to_pylist()
        assert all(row.pop("style") == hand and row == rows[row["concept"]] for row in table)


def test_decoded_images_are_kept_and_not_sent_to_workers():
    source = Emoji("val_concepts", hands=["fxemoji"])
    first = source[3]
    assert source[3].image is first.image
    copy = pickle.loads(pickle.dumps(source))
    assert copy._decoded == {}
    assert source._decoded.keys() == {3}
    assert len(copy) == len(source)
    assert torch.equal(copy[3].image, first.image)
    assert copy[3].captions == first.captions


def test_index_is_checked(splits):
    with pytest.raises(IndexError):
        splits["test_both"][len(splits["test_both"])]


def test_damaged_bytes_are_named():
    source = Emoji("val_concepts", hands=["fxemoji"])
    source._encoded[2] = source._encoded[2][:40]
    with pytest.raises(CorruptImage, match=re.escape(source._ids[2])):
        source[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "validation"}, ["split: ", "validation", "val_style", "test_both"]),
        ({"split": "train", "languages": ("en", "xx")}, ["languages", "xx", "sw"]),
        ({"split": "train", "languages": "en"}, ["languages", "list"]),
        ({"split": "train", "languages": ()}, ["languages", "one or more"]),
        ({"split": "train", "languages": ("en", "en")}, ["languages", "different"]),
        ({"split": "train", "hands": ["openmoji"]}, ["hands", "openmoji", "train", "noto_v1"]),
    ],
)
def test_bad_choices_are_one_clear_line(arguments, words):
    with pytest.raises(UserError) as caught:
        Emoji(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"noto\.parquet.*prepare_emoji"):
        Emoji("train")


def test_the_files_are_the_committed_ones():
    sums = dict(line.split("  ")[::-1] for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == {f"{name}.parquet" for name in (*HANDS, NAMES)}
    for name, digest in sums.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name
    assert 6e6 < sum((FOLDER / name).stat().st_size for name in sums) < 12e6


def test_every_file_has_its_licence_and_a_place_in_the_notice():
    notice = (FOLDER.parents[2] / "NOTICE").read_text(encoding="utf-8")
    for name in (*HANDS, NAMES):
        assert (FOLDER / f"{name}.LICENSE.txt").stat().st_size > 1000
        assert f"{name}.parquet" in notice


def test_the_data_card_counts_right(splits):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    contents = json.loads((FOLDER / "content.json").read_text())
    for hand in HANDS:
        rows = pq.read_metadata(FOLDER / f"{hand}.parquet").num_rows
        assert contents[hand]["rows"] == rows
        assert re.search(rf"^\| `{hand}\.parquet` \| [^|]+ \| {rows} \|", card, re.MULTILINE), hand
    for split, source in splits.items():
        concepts = set(source._concepts)
        counts = f"{len(source)} | {len(concepts)} | {len({family_of(c) for c in concepts})}"
        hands, division = ", ".join(SPLITS[split].hands), SPLITS[split].division
        assert f"| `{split}` | {hands} | {division} | {counts} |" in card
