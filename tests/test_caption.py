"""``python -m mmlm.caption``: reads what people have, and names what is no image."""

import pytest

from mmlm import caption


def test_reads_what_people_have_and_names_what_is_no_image(trained, command, pictures):
    folder = trained()
    half, *others = pictures.bad
    outcome = command(caption, f"run={folder}", half, *pictures.good, *others)
    assert outcome.status == 2
    printed = dict(line.split("\t") for line in outcome.out.splitlines())
    assert tuple(printed) == pictures.good
    lines = outcome.err.splitlines()
    assert len(lines) == 3
    for line, (path, reason) in zip(lines, pictures.bad.items(), strict=True):
        assert line.startswith(f"mmlm: {path}: {reason}")
    alone = command(caption, f"run={folder}", *pictures.good)
    assert (alone.status, alone.err, alone.out) == (0, "", outcome.out)
    # Transparency is white: the same drawing in three formats is captioned alike.
    assert len({text for path, text in printed.items() if "alpha" in path or "palette" in path}) == 1


def test_several_captions_by_settings(trained, command, shapes):
    folder, paths = trained(), [str(path) for path in sorted(shapes.glob("*.png"))[:2]]
    beam = command(caption, f"run={folder}", "beams=4", "n=3", "prompt=a red", "max_tokens=8", *paths)
    lines = [line.split("\t") for line in beam.out.splitlines()]
    assert [path for path, *_ in lines] == [path for path in paths for _ in range(3)]
    assert all(text.startswith("a red") for _, text, _ in lines)
    for first in (0, 3):
        scores = [float(score) for _, _, score in lines[first : first + 3]]
        assert scores == sorted(scores, reverse=True)
    words = ("temperature=0.8", "top_p=0.9", "n=3", "seed=5")
    samples = command(caption, f"run={folder}", *words, *paths).out.splitlines()
    backwards = command(caption, f"run={folder}", *words, *paths[::-1]).out.splitlines()
    assert samples == backwards[3:] + backwards[:3]


def test_only_files_that_are_no_images(trained, command, pictures):
    outcome = command(caption, f"run={trained()}", *pictures.bad)
    assert (outcome.status, outcome.out, len(outcome.err.splitlines())) == (2, "", 3)


def test_a_run_without_a_decoder_writes_no_captions(trained, two_towers, command, pictures):
    folder = trained(*two_towers)
    mistake = command(caption, f"run={folder}", "plugins=[own_parts]", *pictures.good).mistake
    assert mistake == f"run: {folder} has no decoder to write captions; give a run that was trained with one"


def test_more_images_than_a_batch_are_captioned_in_order(trained, command, shapes, monkeypatch):
    folder = trained()
    monkeypatch.setattr("mmlm.commands.caption.BATCH", 3)
    paths = [str(path) for path in sorted(shapes.glob("*.png"))]
    outcome = command(caption, f"run={folder}", *paths)
    assert [line.split("\t")[0] for line in outcome.out.splitlines()] == paths


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no image given; usage: python -m mmlm.caption run=DIR IMAGE..."),
        (("language=xx", "a.png"), "a caption's language is 'xx'"),
        (("run=nowhere", "a.png"), "nowhere is no run folder"),
        (("beams=2", "temperature=1", "a.png"), "beams: 2 and temperature=1.0 exclude each other"),
        (("n=2", "a.png"), "n: 2 captions need beams=2 or a temperature; greedy writes one"),
        (("beams=many", "a.png"), "beams"),
        (("rum=x", "a.png"), "rum: no such setting; did you mean run?"),
    ],
)
def test_mistakes_of_caption(trained, command, arguments, message):
    assert message in command(caption, f"run={trained()}", *arguments).mistake
