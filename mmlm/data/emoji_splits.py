"""The splits of the emoji data: emoji are held out by family of concepts and by hand (artist).

A *family* has every variant of one thing (gender, skin tone, hair, facing and pointing direction, time shown, colour of
one shape, flags of one design), so that a near-duplicate of a held-out drawing is never trained on. A stable hash of
its name puts a family in one of three divisions: 80% train, 10% val, 10% test. Each hand is in one division too. A
split is the drawings of the hands of one division whose concept's family is in one division, the same or another.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mmlm.core.keyed_random import stable_hash

TRAIN_HANDS = ("noto", "twemoji", "noto_v1", "fxemoji")
VAL_HANDS = ("openmoji",)
TEST_HANDS = ("fluent_flat", "fluent_3d")
"""Held out together: one designer drew both."""


@dataclass(frozen=True)
class Split:
    """The images of ``hands`` whose concept's family is in ``division``."""

    hands: tuple[str, ...]
    division: str


SPLITS: Mapping[str, Split] = {
    "train": Split(TRAIN_HANDS, "train"),
    "val_style": Split(VAL_HANDS, "train"),
    "val_concepts": Split(TRAIN_HANDS, "val"),
    "test_style": Split(TEST_HANDS, "train"),
    "test_concepts": Split(TRAIN_HANDS, "test"),
    "test_both": Split(TEST_HANDS, "test"),
}

_JOINER = "200d"
_SKIN = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
_VARIANT_PIECES = frozenset({"2640", "2642", "27a1", "1f9b0", "1f9b1", "1f9b2", "1f9b3", "2b1b", "1f7e9", "1f7eb"})
"""Code points that follow the thing they vary: female, male, facing right; red, curly, no, white hair; black, green,
brown."""
_ADULTS = frozenset({"1f468", "1f469", "1f9d1"})

_SAME_THING: Mapping[str, str] = {
    "adult": "1f468 1f469 1f9d1 1f9d4 1f471",
    "older adult": "1f474 1f475 1f9d3",
    "child": "1f466 1f467 1f9d2",
    "royalty": "1f934 1f478 1fac5",
    "christmas person": "1f385 1f936 1f9d1-200d-1f384",
    "pregnant": "1f930 1fac3 1fac4",
    "dancing": "1f57a 1f483",
    "formal dress": "1f470 1f935",
    "feeding baby": "1f931 1f9d1-200d-1f37c",
    "holding hands": "1f46b 1f46c 1f46d 1f9d1-200d-1f91d-200d-1f9d1",
    "pointing hand": "261d 1f446 1f447 1f448 1f449 1faf5",
    "fist": "270a 1f44a 1f91b 1f91c",
    "thumb": "1f44d 1f44e",
    "raised palm": "270b 1f91a 1f590",
    "flat hand": "1faf1 1faf2 1faf3 1faf4",
    "pushing hand": "1faf7 1faf8",
    "shaking head": "1f642-200d-2194 1f642-200d-2195",
    "magnifying glass": "1f50d 1f50e",
    "speech bubble": "1f4ac 1f5e8",
    "chart line": "1f4c8 1f4c9 1f4b9",
    "mailbox": "1f4ea 1f4eb 1f4ec 1f4ed",
    "globe": "1f30d 1f30e 1f30f",
    "moon phase": "1f311 1f312 1f313 1f314 1f315 1f316 1f317 1f318",
    "moon face": "1f31a 1f31b 1f31c 1f31d",
    "hourglass": "231b 23f3",
    "clock face": " ".join(f"{code:x}" for code in range(0x1F550, 0x1F568)),
    "speaker": "1f507 1f508 1f509 1f50a",
    "straight arrow": "2b05 2b06 27a1 2b07 2194 2195 2196 2197 2198 2199",
    "curving arrow": "21a9 21aa 2934 2935",
    "circling arrows": "1f503 1f504 1f501 1f502",
    "labelled arrow": "1f519 1f51a 1f51b 1f51c 1f51d",
    "triangle button": "25b6 25c0 23e9 23ea 23eb 23ec 23ed 23ee 23ef 1f53c 1f53d 23cf",
    "small triangle": "1f53a 1f53b",
    "heart": "2764 1fa77 1f9e1 1f49b 1f49a 1f499 1fa75 1f49c 1f90e 1f5a4 1fa76 1f90d 2665",
    "circle": "1f534 1f7e0 1f7e1 1f7e2 1f535 1f7e3 1f7e4 26ab 26aa",
    "square": "1f7e5 1f7e7 1f7e8 1f7e9 1f7e6 1f7ea 1f7eb 2b1b 2b1c 25fc 25fb 25fe 25fd 25aa 25ab",
    "diamond": "1f536 1f537 1f538 1f539",
    "square button": "1f532 1f533",
    "closed book": "1f4d5 1f4d7 1f4d8 1f4d9",
    "plain flag": "1f3f3 1f3f4",
    "padlock": "1f512 1f513",
    "banknote": "1f4b4 1f4b5 1f4b6 1f4b7",
    "numbered medal": "1f947 1f948 1f949",
    "question mark": "2753 2754",
    "exclamation mark": "2755 2757",
    "brightness button": "1f505 1f506",
    "tray": "1f4e4 1f4e5",
    "airplane at the runway": "1f6eb 1f6ec",
    "sun behind cloud": "26c5 1f324 1f325",
    "room sign": "1f6b9 1f6ba",
    "cat face": "1f431 1f63a 1f638",
    "face with horns": "1f608 1f47f",
    "frowning face": "2639 1f641",
    "person displeased": "1f64d 1f64e",
    "snowman": "2603 26c4",
    "six-pointed star": "2721 1f52f",
    "city at sunset": "1f306 1f307",
}
"""Families of concepts whose code points do not show that they belong together: variants that Unicode encodes as
separate characters and, from the cat faces on, concepts that one hand drew almost alike. A person joined to an object
is written with ``1f9d1``.
"""

_FAMILY_OF: Mapping[str, str] = {code: family for family, codes in _SAME_THING.items() for code in codes.split()}

_SAME_FLAG: tuple[str, ...] = (
    "no bv sj",
    "us um",
    "fr mf cp re gp pm wf yt gf bl mq nc",
    "nl bq lu py",
    "io dg",
    "es ea",
    "id mc pl sg",
    "ro td md ad",
    "ie ci",
    "ac ai au fk gs hm ky ms nz pn sh ta tc vg",
    "eh jo ps",
    "eg iq sy ye",
    "hn ni sv",
    "ru si sk",
    "hu tj",
)
"""Flags that some hand draws alike: one design of several regions, or stripes or ensigns that differ in a detail."""

_FLAG_FAMILY: Mapping[str, str] = {code: f"flag {group}" for group in _SAME_FLAG for code in group.split()}

_KEYCAP = "20e3"
_KEYCAP_TEN = "1f51f"
_REGIONAL_A = 0x1F1E6
_REGIONAL_Z = 0x1F1FF


def family_of(concept: str) -> str:
    """The name of the family of ``concept`` (code points such as ``1f9d1-200d-1f4bb``)."""
    parts = [part for part in concept.split("-") if part not in _SKIN and part != "fe0f"]
    if parts[-1] == _KEYCAP or parts == [_KEYCAP_TEN]:
        return "keycap"
    country = _country(parts)
    if country is not None:
        return _FLAG_FAMILY.get(country, f"flag {country}")
    # An emoji is pieces joined by U+200D. What is left without the pieces that only vary it is the core.
    pieces = "-".join(parts).split(f"-{_JOINER}-")
    core = [pieces[0], *(piece for piece in pieces[1:] if piece not in _VARIANT_PIECES)]
    people = sum(piece in _ADULTS or _FAMILY_OF.get(piece) == "child" for piece in core)
    if "1f48b" in core[1:] or core == ["1f48f"]:
        return "kiss"
    if (people >= 2 and "2764" in core) or core == ["1f491"]:
        return "couple with heart"
    if "1f91d" in core[1:]:
        return "holding hands"
    if people >= 2 or core == ["1f46a"]:
        return "family"
    # A man, a woman and a person at one occupation are one family, named by the person.
    neutral = f"-{_JOINER}-".join("1f9d1" if piece in _ADULTS else piece for piece in core)
    return _FAMILY_OF.get(core[0] if len(core) == 1 else neutral, neutral)


def division_of(family: str) -> str:
    """``train`` (80% of families), ``val`` (10%) or ``test`` (10%), by a hash that never changes."""
    bucket = stable_hash(f"emoji family: {family}") % 10
    return {8: "val", 9: "test"}.get(bucket, "train")


def _country(parts: list[str]) -> str | None:
    """``["1f1e9", "1f1ea"]`` -> ``"de"``; None if the code points are no flag of a region."""
    if len(parts) != 2 or not all(re.fullmatch(r"1f1[ef][0-9a-f]", part) for part in parts):
        return None
    points = [int(part, 16) for part in parts]
    if not all(_REGIONAL_A <= point <= _REGIONAL_Z for point in points):
        return None
    return "".join(chr(ord("a") + point - _REGIONAL_A) for point in points)
