"""The README pages: commands are accepted, options and files all have their row, numbers and links are right."""

import importlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmlm import evaluate, train
from mmlm.experiment.build import build_freeze, build_model
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.config import CONFIG_DIR, Config
from mmlm.experiment.config_checks import check_config
from mmlm.model.model import parameter_counts
from tests.test_floors import FLOOR_OF

ROOT = CONFIG_DIR.parent
README, PARTS, HOUSE = ROOT / "README.md", CONFIG_DIR / "README.md", ROOT / "mmlm" / "README.md"
CLUSTER, TESTS = ROOT / "slurm" / "README.md", ROOT / "tests" / "README.md"
STUDIES = sorted((ROOT / "experiments").rglob("README.md"))
"""Their commands are those of the commits that they name, and are not tried here."""
CARDS = [ROOT / "mmlm" / "data" / name / "README.md" for name in ("emoji", "wordnet")]
TODAY = (README, PARTS, HOUSE, CLUSTER, TESTS, *CARDS)
"""Pages whose commands work as the code is now."""
TRAIN = "python -m mmlm.train "
VOCABULARY = 2000
"""Tokens of caption_base's tokenizer."""
NOT_HERE = {
    "MODEL": "stands for a name of the reader's own",
    "text_encoder=clip": "is downloaded",
    "init_from.run=RUN": "is tried by tests/cli/test_fine_tune.py",
    **{f"data={name}": "is tried by tests/test_bring_your_own.py" for name in ("pairs", "classes", "lines", "tabs")},
    "data=parquet": "is tried by tests/test_bring_your_own.py",
    "data=photos": "is tried by tests/cli/test_fine_tune.py, or below",
    "teacher.run=DIR": "has to be trained first",
    "plugins=[mean_bridge]": "is tried by a test of its own",
    "logger=trackio": "needs a package that is not among the development tools",
    "-m": "is several commands",
}
"""Words of commands that are not tried, and why: the value of an override, or a whole argument."""


def commands() -> list[str]:
    """What follows ``python -m mmlm.train`` in the code of the pages, without quotes and the spaces in them."""
    texts = [page.read_text(encoding="utf-8").replace("\\\n", " ") for page in TODAY]
    lines = [line for text in texts for line in re.findall(TRAIN + "([^`\n]*)", text)]
    found = [" ".join(token.replace(" ", "") for token in shlex.split(line, comments=True)) for line in lines]
    return list(dict.fromkeys(line for line in found if not line.startswith("--")))


def words_of(command: str) -> set[str]:
    """Its arguments, and their values."""
    return {word for token in command.split() for word in (token, token.partition("=")[2])}


def is_tried(command: str) -> bool:
    """Whether nothing in a command is listed in NOT_HERE."""
    return words_of(command).isdisjoint(NOT_HERE)


def rows() -> list[tuple[str, str, str, str]]:
    """(slot, option, command, parameters) of the tables of one slot each."""
    found, slot = [], ""
    for line in PARTS.read_text(encoding="utf-8").splitlines():
        slot = line.removeprefix("## ") if line.startswith("## ") else slot
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found.append((slot, cells[0], cells[3], cells[4]))
    return found


COMMANDS = commands()
COUNTED = [row for row in rows() if row[2].startswith(TRAIN) and re.fullmatch(r"[\d,]+", row[3])]


@pytest.fixture
def config_of(compose: Callable[..., object]) -> Callable[[str], Config]:
    """``config_of(command)``: the checked config of what follows ``python -m mmlm.train``."""
    return lambda command: check_config(compose(*command.split()))


def test_every_option_is_documented():
    listed = re.findall(r"^\| (\w+) \| `(\w+)` \|", PARTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {(slot, option) for slot, option, *_ in rows()} | set(listed)
    files = {(file.parent.name, file.stem) for file in CONFIG_DIR.glob("*/*.yaml")}
    assert named == {(slot, option) for slot, option in files if slot not in ("experiment", "study")}


def test_a_row_has_the_command_of_its_option():
    for slot, option, command, _ in rows():
        assert command == "see there" or f"{slot}={option}" in command.split(), option


def test_there_are_commands_to_try():
    assert "experiment=caption_base bridge=perceiver decoder=gpt2_tiny freeze=lm_frozen" in COMMANDS
    assert len(COUNTED) > 30
    assert set(NOT_HERE) <= set().union(*map(words_of, COMMANDS)), "what is left out is there"


@pytest.mark.parametrize("command", [command for command in COMMANDS if is_tried(command)])
def test_a_command_is_accepted(config_of, command):
    check_compatible(config_of(command))


@pytest.mark.parametrize(("slot", "option", "command", "parameters"), COUNTED)
def test_the_number_of_parameters_is_right(config_of, slot, option, command, parameters):
    config = config_of(command.removeprefix(TRAIN))
    plan = build_freeze(config)
    with torch.device("meta"):
        model = build_model(config, VOCABULARY, load_weights=False)
        plan.add_adapters(model)
    counted = parameter_counts(model).get(slot, 0)
    if slot == "freeze":
        frozen = plan.frozen_parameters(model, 0)
        counted = sum(p.numel() for p in model.parameters() if p.requires_grad and p not in frozen)
    assert parameters == f"{counted:,}"


def test_the_part_of_ones_own_works_as_it_is_written(config_of, monkeypatch, tmp_path):
    text = PARTS.read_text(encoding="utf-8").partition("## A part of your own")[2]
    blocks = {name: text.partition(f"```{name}\n")[2].partition("```")[0] for name in ("python", "yaml", "bash")}
    (tmp_path / "mean_bridge.py").write_text(blocks["python"], encoding="utf-8")
    option = tmp_path / "my_configs" / "bridge" / "mean.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(blocks["yaml"], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = config_of(" ".join(shlex.split(blocks["bash"].removeprefix(TRAIN).replace("$PWD", str(tmp_path)))))
    check_compatible(config)
    model = build_model(config, VOCABULARY)
    images = torch.zeros(2, 3, config.data.image_size, config.data.image_size, dtype=torch.uint8)
    tokens = model.encoder(images).tokens
    assert model.bridge(tokens).memory.shape == (2, 1, config.model.width)
    assert torch.allclose(model.bridge.patch_attention(tokens).sum(dim=-1), torch.ones(2, 1))


def test_the_evaluator_of_ones_own_works_as_it_is_written(trained, command, monkeypatch, tmp_path):
    text = PARTS.read_text(encoding="utf-8").partition("### Numbers of your own")[2]
    blocks = {name: text.partition(f"```{name}\n")[2].partition("```")[0] for name in ("python", "yaml", "bash")}
    folder = trained("evaluators=retrieval")
    (tmp_path / "zero_shot.py").write_text(blocks["python"], encoding="utf-8")
    option = tmp_path / "my_configs" / "evaluators" / "named.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(blocks["yaml"], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = blocks["bash"].replace("runs/caption_base", str(folder)).replace("my_configs", str(option.parents[1]))
    outcome = command(evaluate, *shlex.split(words.removeprefix("python -m mmlm.evaluate ")))
    assert (outcome.status, outcome.err) == (0, "")
    assert "zero_shot/accuracy" in outcome.out
    assert "are named right" in (folder / "report.html").read_text()


def test_the_commands_for_ones_own_images_work_as_they_are_written(trained, command, shapes, monkeypatch, tmp_path):
    text = README.read_text(encoding="utf-8").partition("## Use it on your own images")[2].partition("\n## ")[0]
    lines = re.findall(r"^python -m mmlm\.(\w+) +(.*)$", text, flags=re.MULTILINE)
    assert {name for name, _ in lines} == {"caption", "search", "classify", "evaluate", "train"}
    trained()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(("red_square.png", "blue_circle.png"), start=1):
        (photos / f"{number}.png").write_bytes((shapes / name).read_bytes())
    (photos / "captions.jsonl").write_text('{"image": "1.png", "caption": "a"}\n{"image": "2.png", "caption": "b"}\n')
    Path("table.csv").write_text("image,caption\nphotos/1.png,a red square\nphotos/2.png,a blue circle\n")
    Path("labels.txt").write_text("a red square\na blue circle\n")
    for name, arguments in lines:
        words = shlex.split(arguments, comments=True)
        if name == "train":  # a few more images, so that some can be held out
            shutil.copytree(shapes, photos, dirs_exist_ok=True)
            words += ["train.steps=2", "device=cpu"]
        outcome = command(importlib.import_module(f"mmlm.{name}"), *words)
        assert outcome.status == 0, outcome
    names: dict[str, object] = {}
    exec(code_of(text), names)
    assert len(names["found"]) == len(list(photos.glob("*.png"))) == 10
    # And the calls of the library, on the folder that it writes.
    names["model"].save_pretrained("my_model")
    for number in (1, 2):
        Path(f"{number}.png").write_bytes((photos / f"{number}.png").read_bytes())
    exec(code_of(HOUSE.read_text(encoding="utf-8").partition("## As a library")[2]), names)
    assert (names["images"].shape, names["text"].shape) == ((2, 16), (1, 16))
    assert (len(names["labels"]), len(names["found"])) == (2, 10)


def code_of(text: str) -> str:
    """The first block of Python in a page."""
    return text.partition("```python\n")[2].partition("```")[0]


# The house


def table_paths(text: str) -> list[str]:
    """The first cells, in code, of all tables."""
    return re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)


def test_every_file_has_one_row_in_the_file_map():
    """By its full path; a folder with a row of its own stands for all of its files."""
    rows_of_map = table_paths(HOUSE.read_text(encoding="utf-8").partition("## Every file")[2])
    folders = [row for row in rows_of_map if row.endswith("/")]
    files = {str(file.relative_to(ROOT)) for file in (ROOT / "mmlm").rglob("*.py") if file.name != "__init__.py"}
    wanted = {file for file in files if not file.startswith(tuple(folders))} | set(folders)
    assert wanted - set(rows_of_map) == set(), "a row is missing"
    assert set(rows_of_map) - wanted == set(), "a row has no file"
    assert len(rows_of_map) == len(wanted), "a file has two rows"


def test_every_package_stands_on_its_floor():
    drawn = re.findall(r"^\| (\d) \| \[`(\w+)/`\]", HOUSE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {package: int(floor) for floor, package in drawn} == FLOOR_OF


# Files and links


@pytest.mark.parametrize("page", TODAY, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page):
    named = re.findall(r"`((?:mmlm|tests|configs|slurm|experiments)/[\w./-]*)`", page.read_text(encoding="utf-8"))
    of_the_reader = {"configs/launcher/my_cluster.yaml"}
    assert [name for name in named if not (ROOT / name).exists() and name not in of_the_reader] == []


def test_every_test_that_the_cluster_page_names_exists():
    functions = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests" / "slurm").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", CLUSTER.read_text(encoding="utf-8"))
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in functions] == []


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them: lower case, spaces as hyphens, punctuation left out."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*TODAY, *STUDIES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_study_has_its_row():
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"^\| \[(\w+)\]\((\w+)/README\.md\)", text, flags=re.MULTILINE)
    studies = {page.parent.name for page in STUDIES} - {"experiments"}
    assert sorted(linked) == sorted((study, study) for study in studies)


def test_every_promise_is_guarded_by_tests_that_exist():
    """The table of tests/README.md: a promise, and the files or folders of tests that would notice."""
    table = TESTS.read_text(encoding="utf-8").partition("| promise | guarded by |\n|---|---|\n")[2].partition("\n\n")[0]
    lines = table.splitlines()
    assert len(lines) > 10
    for line in lines:
        _, promise, guards, _ = re.split(r"(?<!\\)\|", line)
        named = [ROOT / name for name in re.findall(r"`([^`]+)`", guards)]
        assert named, promise
        for place in named:
            assert place.is_dir() or re.fullmatch(r"test_\w+\.py", place.name), place
            assert place.is_file() or any(place.rglob("test_*.py")), place


def git(*words: str) -> str:
    """What git says of this repository; nothing if it is none, or not whole."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


@pytest.mark.skipif(git("rev-parse", "--is-shallow-repository") != "false", reason="the history is not here")
def test_every_commit_that_a_record_names_is_in_the_history_or_told_to_be_missing():
    told = re.search(
        r"commits that the pages name \(([^)]*)\) are not in the history",
        " ".join((ROOT / "experiments" / "README.md").read_text(encoding="utf-8").split()),
    )
    missing = set(re.findall(r"`([0-9a-f]{7})`", told.group(1)))
    for page in (README, TESTS, *STUDIES):
        for commit in set(re.findall(r"`([0-9a-f]{7})`", page.read_text(encoding="utf-8"))):
            assert (git("cat-file", "-t", commit) == "commit") != (commit in missing), (page, commit)


# What fits


def test_the_front_page_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_help_fits_a_screen_and_lists_every_option(command):
    """The list stands in config.yaml, since Hydra's own has lines of any length."""
    lines = command(train, "--help").out.splitlines()
    listed, slot = set(), ""
    for line in lines[next(number for number, line in enumerate(lines) if "slot=option" in line) + 1 :]:
        if not line.startswith("  "):
            break
        slot = line[2:15].strip() or slot
        listed |= {(slot, option) for option in re.findall(r"\w+", line[15:])}
    files = [file for file in CONFIG_DIR.glob("*/*.yaml") if file.parent.name != "study"]  # no option of a training
    there = {(file.parent.name, file.stem) for file in files}
    assert there - listed == set(), "an option is missing in the list of configs/config.yaml"
    assert listed - there == set(), "configs/config.yaml lists an option that has no file"
    assert len(lines) <= 50
    assert [line for line in lines if len(line) > 100] == []


def test_the_lines_of_help_are_aligned(command):
    text = command(train, "--help").out
    tried = text.partition("Try, ")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(tried) > 3
    assert {re.fullmatch(r"  (\S.*?)  +(\S.*)", line).start(2) for line in tried} == {31}
