"""prepare_emoji: drawings land on white, names find their icons, and a rebuild is told from a changed one."""

import base64
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from mmlm.data import npm_packages, prepare_emoji
from mmlm.data.emoji import FOLDER, LANGUAGES
from mmlm.data.emoji_tools.compare import content_digest, decode_pixels, differences
from mmlm.data.emoji_tools.drawings import (
    Concept,
    IconSet,
    concept_key,
    datasource_drawings,
    icon_set_drawings,
    openmoji_drawings,
    render,
    slug,
)
from mmlm.data.emoji_tools.sheet import CELL, LABEL_WIDTH, contact_sheet
from mmlm.data.emoji_tools.sources import (
    DERIVED_NAMES_PACKAGE,
    HANDS,
    NAMES_PACKAGE,
    packages,
)
from tests.data.npm import tarball

PIZZA = Concept("1f355", "pizza", "SLICE OF PIZZA", "Food & Drink", "food-prepared")
DRESS = Concept("1f45a", "woman’s clothes", "WOMANS CLOTHES", "Objects", "clothing")
HEART = Concept("2764", "red heart", "HEAVY BLACK HEART", "Smileys & Emotion", "heart")
CONCEPTS = (PIZZA, DRESS, HEART)


def svg(color: str, x: int = 0) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{body(color, x)}</svg>'


def body(color: str, x: int = 0) -> str:
    return f'<rect x="{x}" y="4" width="8" height="8" fill="{color}"/>'


def png(color: str, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def icon_tarball(path: Path, icons: dict, aliases: dict | None = None, chars: dict | None = None) -> Path:
    icon_set = {"width": 16, "height": 16, "icons": {name: {"body": text} for name, text in icons.items()}}
    files = {"icons.json": json.dumps(icon_set | {"aliases": aliases or {}})}
    return tarball(path, files | ({} if chars is None else {"chars.json": json.dumps(chars)}))


def test_concept_key_drops_variation_selectors():
    assert concept_key("1F468-200D-2764-FE0F-200D-1F468") == "1f468-200d-2764-200d-1f468"
    assert concept_key("0023-FE0F-20E3") == "0023-20e3"


def test_slug_is_how_icon_sets_file_a_name():
    assert slug("Woman’s clothes") == "womans-clothes"
    assert slug("piñata") == "pinata"
    assert slug("flag: Côte d’Ivoire") == "flag-cote-divoire"
    assert slug("O button (blood type)") == "o-button-blood-type"


def test_transparency_becomes_white():
    assert render(png("#ff000000")).getpixel((5, 5)) == (255, 255, 255)
    half = render(png("#ff000080")).getpixel((5, 5))
    assert half[0] == 255
    assert half[1] == half[2] == pytest.approx(127, abs=1)


def test_hidden_colour_does_not_bleed_into_the_outline():
    image = Image.new("RGBA", (256, 256), (0, 0, 0, 0))  # transparent black around a white square
    image.paste((255, 255, 255, 255), (64, 64, 192, 192))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert render(buffer.getvalue()).getextrema() == ((255, 255),) * 3


def test_a_drawing_that_is_not_square_is_centred_and_keeps_its_shape():
    pixels = np.asarray(render(png("blue", (256, 128))))
    assert pixels.shape == (64, 64, 3)
    blue = pixels[:, :, 0] < 128
    assert blue[:, 32].sum() == 32
    assert blue[16:48].all()


def test_svg_is_rendered_on_white():
    pytest.importorskip("resvg_py")
    image = render(svg("#00ff00"))
    assert image.size == (64, 64)
    assert image.getpixel((10, 32)) == (0, 255, 0)
    assert image.getpixel((50, 32)) == (255, 255, 255)


def test_files_are_found_by_code_points(tmp_path):
    files = {
        "img/google/64/1f355.png": png("red"),
        "img/google/64/2764-fe0f.png": png("blue"),
        "img/google/64/1f4a9.png": png("green"),
        "img/google/sheets/64.png": b"",
    }
    drawings = datasource_drawings("google")(tarball(tmp_path / "a.tgz", files), CONCEPTS)
    assert drawings == {"1f355": png("red"), "2764": png("blue")}
    svgs = tarball(tmp_path / "b.tgz", {"color/svg/2764-FE0F.svg": svg("red"), "black/svg/1F355.svg": svg("red")})
    assert openmoji_drawings()(svgs, CONCEPTS) == {"2764": svg("red")}


def test_icons_are_found_by_correction_then_code_points_then_name(tmp_path):
    icons = {"pizza": body("red"), "by-code": body("green"), "womans-clothes": body("blue"), "corrected": body("black")}
    path = icon_tarball(tmp_path / "i.tgz", icons, chars={"1F45A": "by-code"})

    def names(concept: Concept) -> list[str]:
        return [slug(concept.name)]

    drawings = icon_set_drawings(names)(path, CONCEPTS)
    assert drawings.keys() == {"1f355", "1f45a"}  # nothing is called "red-heart"
    assert body("red") in drawings["1f355"]
    assert body("green") in drawings["1f45a"]
    corrected = icon_set_drawings(names, {"1f45a": "corrected"})(path, CONCEPTS)
    assert body("black") in corrected["1f45a"]


def test_an_alias_may_mirror_its_parent(tmp_path):
    pytest.importorskip("resvg_py")
    aliases = {"right": {"parent": "left", "hFlip": True}, "again": {"parent": "right", "hFlip": True}}
    icons = IconSet(icon_tarball(tmp_path / "i.tgz", {"left": body("#ff0000")}, aliases))
    left, right, again = (np.asarray(render(icons.svg(name))) for name in ("left", "right", "again"))
    assert np.array_equal(right, left[:, ::-1])
    assert np.array_equal(again, left)


def test_an_alias_that_turns_is_refused(tmp_path):
    icons = IconSet(icon_tarball(tmp_path / "i.tgz", {"up": body("red")}, {"down": {"parent": "up", "rotate": 2}}))
    with pytest.raises(ValueError, match="rotate"):
        icons.svg("down")


def test_every_package_is_pinned():
    assert len({package.tarball for package in packages()}) == len(packages()) == 9
    for package in packages():
        assert len(base64.b64decode(package.integrity.removeprefix("sha512-"))) == 64


def test_known_errors_and_what_is_not_open_are_left_out():
    noto, three_d = (next(hand for hand in HANDS if hand.name == name) for name in ("noto", "fluent_3d"))
    drawings = {"1f355": b"", "1f1e8-1f1f6": b"", "1f1e9-1f1ea": b""}
    assert prepare_emoji.choose_drawings(noto, drawings, {"1f355"}).keys() == {"1f355", "1f1e9-1f1ea"}
    assert prepare_emoji.choose_drawings(three_d, drawings, {"1f355"}).keys() == {"1f355"}


@pytest.fixture
def downloads(tmp_path, monkeypatch) -> Path:
    """Nine small packages in the real ones' shape: four emoji (one a skin tone), each hand with its own colour."""
    monkeypatch.setattr(npm_packages, "verify", lambda package, path: None)
    folder = tmp_path / "downloads"
    folder.mkdir()
    entries = [
        {"unified": c.code_points.upper(), "name": c.unicode_name, "category": c.group, "subcategory": c.subgroup}
        for c in CONCEPTS
    ] + [{"unified": "1F3FB", "name": "TYPE-1-2", "category": "Component", "subcategory": "skin-tone"}]
    listed = json.dumps([entry | {"sort_order": 9 - order} for order, entry in enumerate(entries)])
    by_hand = {hand.name: folder / hand.package.tarball for hand in HANDS}
    for name, prefix in (("noto", "google"), ("twemoji", "twitter")):
        images = {f"img/{prefix}/64/{c.code_points}.png": png("red") for c in CONCEPTS}
        tarball(by_hand[name], {"emoji.json": listed, **images})
    tarball(by_hand["openmoji"], {f"color/svg/{c.code_points.upper()}.svg": svg("blue") for c in CONCEPTS})
    tarball(by_hand["fluent_3d"], {f"assets/{c.code_points}.webp": png("green", (256, 256)) for c in CONCEPTS})
    icon_tarball(by_hand["fluent_flat"], {"pizza": body("black"), "heart": body("red")}, chars={"2764": "heart"})
    icon_tarball(by_hand["noto_v1"], {"womans-clothes": body("black")})
    icon_tarball(by_hand["fxemoji"], {"sliceofpizza": body("black")})
    for package, key, kept in (
        (NAMES_PACKAGE, "annotations", CONCEPTS[:2]),
        (DERIVED_NAMES_PACKAGE, "annotationsDerived", CONCEPTS[2:]),
    ):
        files = {}
        for language in LANGUAGES:
            texts = {
                "".join(chr(int(part, 16)) for part in c.code_points.split("-")) + "\ufe0f": {
                    "default": [language, "word"],
                    "tts": [f"{c.name} {language}" if language != "en" else c.name],
                }
                for c in kept
            }
            files[f"{key}/{language}/annotations.json"] = json.dumps({key: {"annotations": texts}})
        tarball(folder / package.tarball, files)
    return folder


def run(downloads: Path, folder: Path, *flags: str) -> int:
    return prepare_emoji.main(["--downloads", str(downloads), "--folder", str(folder), *flags])


def test_a_whole_build(downloads, tmp_path, capsys):
    pytest.importorskip("resvg_py")
    folder = tmp_path / "emoji"
    assert run(downloads, folder) == 0
    noto = pq.read_table(folder / "noto.parquet").to_pylist()
    assert [row["concept"] for row in noto] == ["2764", "1f45a", "1f355"]  # Unicode's order, no skin tone
    assert noto[2]["image"]["path"] == "noto/1f355.webp"
    assert noto[2]["style"] == "noto"
    assert noto[2]["captions"] == {language: "pizza" + f" {language}" * (language != "en") for language in LANGUAGES}
    assert (noto[2]["group"], noto[2]["subgroup"]) == ("Food & Drink", "food-prepared")
    assert np.abs(decode_pixels(noto[2]["image"]["bytes"]).astype(int) - [255, 0, 0]).max() < 5
    names = pq.read_table(folder / "cldr.parquet").to_pylist()
    assert names[0]["keywords"]["hi"] == ["hi", "word"]
    drawn = {hand.name: pq.read_table(folder / f"{hand.name}.parquet")["concept"].to_pylist() for hand in HANDS}
    assert drawn["noto_v1"] == ["1f45a"]
    assert drawn["fxemoji"] == ["1f355"]
    assert drawn["fluent_flat"] == drawn["fluent_3d"] == ["2764", "1f355"]  # 3D: only what the open set has
    assert drawn["openmoji"] == ["2764", "1f45a", "1f355"]
    sums = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for digest, name in sums)
    assert len(sums) == 8
    assert not list(folder.glob("*.partial"))
    assert "8 files" in capsys.readouterr().out


def test_check_finds_a_change_and_writes_nothing(downloads, tmp_path, capsys):
    pytest.importorskip("resvg_py")
    folder = tmp_path / "emoji"
    assert run(downloads, folder, "--check") == 2
    assert "no such file" in capsys.readouterr().err
    assert run(downloads, folder) == 0
    assert run(downloads, folder, "--check") == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    images = {f"img/twitter/64/{c.code_points}.png": png("yellow" if c is PIZZA else "red") for c in CONCEPTS}
    tarball(downloads / "emoji-datasource-twitter-16.0.0.tgz", images)
    capsys.readouterr()
    assert run(downloads, folder, "--check") == 1
    output = capsys.readouterr().out
    assert "1f355: the pixels differ" in output
    assert "2764" not in output
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_users_error_ends_with_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(npm_packages.shutil, "which", lambda name: None)
    assert run(tmp_path, tmp_path) == 2
    assert "npm: not found" in capsys.readouterr().err


def test_an_image_is_stored_in_the_smaller_encoding():
    flat = Image.new("RGB", (64, 64), "red")
    assert np.array_equal(decode_pixels(prepare_emoji.encode_webp(flat)), np.asarray(flat))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    lossless = io.BytesIO()
    Image.fromarray(noise).save(lossless, "WEBP", lossless=True)
    assert len(prepare_emoji.encode_webp(Image.fromarray(noise))) < len(lossless.getvalue())


def test_content_is_compared_not_bytes():
    concepts, annotations = (PIZZA, HEART), annotate(PIZZA, HEART)
    drawings = {"1f355": png("red"), "2764": png("blue")}
    table = prepare_emoji.make_table(HANDS[0], concepts, drawings, annotations, Console(quiet=True))
    rows = table.to_pylist()
    for row in rows:  # the same pixels, other bytes
        buffer = io.BytesIO()
        Image.fromarray(decode_pixels(row["image"]["bytes"])).save(buffer, "PNG")
        row["image"]["bytes"] = buffer.getvalue()
    recoded = table.from_pylist(rows, table.schema)
    assert recoded != table
    assert differences(recoded, table) == []
    assert content_digest(recoded) == content_digest(table)
    # text, rows, pixels and sizes are told apart
    renamed = prepare_emoji.make_table(
        HANDS[0], (replace(PIZZA, group="x"), HEART), drawings, annotations, Console(quiet=True)
    )
    assert differences(renamed, table) == ["1f355: the text differs"]
    assert content_digest(renamed) != content_digest(table)
    assert differences(table.slice(1), table) == ["1f355: only in the committed file"]
    assert differences(table, table.slice(1)) == ["1f355: not in the committed file"]
    rows[0]["image"]["bytes"] = png("red", (32, 32))
    assert differences(table.from_pylist(rows, table.schema), table) == [
        "1f355: the pixels differ by inf of 255 on average"
    ]


def test_the_contact_sheet_has_a_row_for_each_hand():
    concepts, annotations = (PIZZA, HEART), annotate(PIZZA, HEART)
    tables = {
        name: prepare_emoji.make_table(HANDS[0], concepts, {"1f355": png(name)}, annotations, Console(quiet=True))
        for name in ("red", "blue")
    }
    tables["cldr"] = prepare_emoji.make_names_table(concepts, annotations)
    sheet = contact_sheet(tables, ("1f355", "2764"))
    assert sheet.size == (LABEL_WIDTH + 2 * CELL, 2 * CELL)
    middle = LABEL_WIDTH + CELL // 2
    assert sheet.getpixel((middle, CELL // 2))[0] > 250 > 5 > sheet.getpixel((middle, CELL // 2))[2]
    assert sheet.getpixel((middle, CELL + CELL // 2))[2] > 250
    assert sheet.getpixel((middle + CELL, CELL // 2)) == (211, 211, 211)  # missing


def annotate(*concepts: Concept) -> dict[str, dict[str, prepare_emoji.Annotation]]:
    return {
        language: {c.code_points: prepare_emoji.Annotation(f"{c.name} {language}", ("word",)) for c in concepts}
        for language in LANGUAGES
    }


def test_the_committed_digests_are_those_of_the_committed_files():
    contents = json.loads((FOLDER / "content.json").read_text())
    for name in ("cldr", "fxemoji"):
        assert content_digest(pq.read_table(FOLDER / f"{name}.parquet")) == contents[name]["sha256"]
