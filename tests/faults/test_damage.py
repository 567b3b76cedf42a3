"""Bits flipped and bytes cut at random in every file of a run: each is found out in one line, or does no harm."""

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from mmlm import export, train
from mmlm.checkpoints.checkpoint import best_checkpoint, load_checkpoint, save_checkpoint
from mmlm.checkpoints.files import checksum, sha256, write_json
from mmlm.cli import hydra_config
from mmlm.cli.hydra_command import hydra_override
from mmlm.core.errors import UserError
from mmlm.experiment.build import unfitted_tokenizer
from mmlm.experiment.config import Config
from mmlm.experiment.config_file import config_values, load_config
from mmlm.experiment.saved_run import exported_weights, restore_tokenizer
from mmlm.pretrained.files import read_config
from mmlm.record.folder import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    LOCK,
    MANIFEST,
    METRICS,
    OVERLAP,
    PER_ITEM,
    REPORT,
    TOKENIZER,
    WATCHED,
)
from mmlm.record.manifest import check_files, fault_of, read_manifest, read_recorded
from mmlm.record.watched import WatchedRow, add_watched
from mmlm.reports.paired import read_items
from mmlm.reports.run_folder import RunFolder, read_run_folder
from mmlm.run.data_record import recorded_data
from tests.conftest import TINY, write_shapes
from tests.equality import assert_same

TRIALS = 1000
TEXTS = ("a red square", "ein grüner Kreis")


def sharded_checkpoint(root: Path) -> None:
    """A checkpoint as FSDP2 leaves it, by one rank in this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        module = nn.Linear(4, 3)
        fully_shard(module, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
        save_checkpoint(root, 7, {"model": module.state_dict()}, {"momentum": module.weight, "step": 7})
    finally:
        dist.destroy_process_group()


def tokens(folder: Path, config: Config) -> Any:
    tokenizer = unfitted_tokenizer(config)
    restore_tokenizer(tokenizer, folder)
    ids = [tokenizer.encode(text, None, 24) for text in TEXTS]
    return ids, [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]


def report_page(run: Path) -> bytes:
    """People read it; whether it is whole is what ``mmlm.verify`` tells them."""
    reason = fault_of(run, REPORT, read_manifest(run))
    if reason is not None:
        raise UserError(reason)
    return (run / REPORT).read_bytes()


def items(run: Path) -> Any:
    """What two runs are compared by."""
    return {key: tuple(np.asarray(part).tolist() for part in astuple(of)) for key, of in read_items(run).items()}


def checkpoints(root: Path) -> Any:
    loaded = {folder.name: load_checkpoint(folder) for folder in sorted(root.glob("step=*"))}
    return {name: (c.step, dict(c.weights), dict(c.state)) for name, c in loaded.items()}


def exported_folder(folder: Path) -> Any:
    """What ``from_pretrained`` reads, before it builds the model of it."""
    check_files(folder, spared=["README.md"])
    config = read_config(folder).to_dict()
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return config, {name: content for name, content in files.items() if name not in (MANIFEST, "README.md")}


def readers_of(run: Path, exported: Path, sharded: Path) -> Mapping[str, tuple[Path, Callable[[], Any]]]:
    """What reads each part of the files: the folder or file that it reads, and what it makes of it."""
    config = load_config(run / CONFIG)
    return {
        "config": (run / CONFIG, lambda: config_values(load_config(run / CONFIG))),
        "tokenizer": (run / TOKENIZER, lambda: tokens(run / TOKENIZER, config)),
        "report": (run, lambda: read_run_folder(run)),
        "data": (run / DATA, lambda: recorded_data(run)),
        "page": (run / REPORT, lambda: report_page(run)),
        "items": (run / PER_ITEM, lambda: items(run)),
        "overlap": (run / OVERLAP, lambda: read_recorded(run / OVERLAP)),  # counted anew where it is damaged
        "checkpoints": (run / CHECKPOINTS, lambda: checkpoints(run / CHECKPOINTS)),
        "best": (run / CHECKPOINTS, lambda: best_checkpoint(run / CHECKPOINTS)),
        "weights": (run / CHECKPOINTS, lambda: exported_weights(run, config)),
        "exported": (exported, lambda: exported_folder(exported)),
        "sharded": (sharded, lambda: checkpoints(sharded)),
    }


def readers_of_file(file: Path, readers: Mapping[str, tuple[Path, Callable[[], Any]]]) -> list[str]:
    """Those that read the file; the manifest of a run is read by all that read the run."""
    if file.name == MANIFEST:
        return [name for name, (place, _) in readers.items() if place.is_relative_to(file.parent)]
    below = [name for name, (place, _) in readers.items() if file == place or place in file.parents]
    in_run = file.parent == readers["report"][0] and file.name != REPORT
    return [name for name in below if name != "report" or in_run]


def damage(file: Path, rng: random.Random) -> str:
    """Flips one bit, or cuts the file off; returns what was done."""
    content = bytearray(file.read_bytes())
    if rng.random() < 0.5:
        length = rng.randrange(len(content))
        file.write_bytes(content[:length])
        return f"{file.name} cut to {length} of {len(content)} bytes"
    byte, bit = rng.randrange(len(content)), rng.randrange(8)
    content[byte] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {byte} of {file.name} flipped"


SAVING = ("train.eval_every=1", "train.save_every=2", "train.best_metric=validation/image_to_text/R@1", "name=whole")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a run that was trained to its end, its model exported, and a sharded checkpoint."""
    root = tmp_path_factory.mktemp("made")
    shapes = write_shapes(root / "shapes")
    folders = (f"data.train.folder={shapes}", f"data.validation.validation.folder={shapes}", f"runs={root / 'runs'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmlm.reports.curves_section.draw_chart", lambda *lines, **how: "<svg></svg>")
        assert train.main(hydra_config.compose([hydra_override(token) for token in (*TINY, *folders, *SAVING)])) == 0
    run = root / "runs" / "caption_base" / "whole" / "seed=0"
    add_watched(run / WATCHED, WatchedRow(2, "0" * 16, "0" * 16, "fp32", {"validation/image_to_text/R@1": 0.5}))
    assert export.main([f"run={run}", f"to={root / 'exported'}"]) == 0
    sharded_checkpoint(root / "sharded")
    return root


@pytest.fixture
def folders(made: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Copies of the three, to be damaged."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    return copy / "runs" / "caption_base" / "whole" / "seed=0", copy / "exported", copy / "sharded"


def outcome_of(read: Callable[[], Any], before: Any) -> str:
    """``found out`` or ``harmless``. Any other outcome is an AssertionError, or the exception that it was."""
    try:
        after = read()
    except UserError as error:
        if "\n" in str(error):
            raise AssertionError("more than a line") from error
        return "found out"
    if isinstance(after, RunFolder) and after.figures.damaged:
        return "found out"  # the page is made, with other names, and says so
    assert_same(after, before)
    return "harmless"


def test_every_flipped_bit_and_every_cut_is_found_out_or_harmless(folders):
    readers = readers_of(*folders)
    before = {name: read() for name, (_, read) in readers.items()}
    files = [f for folder in folders for f in sorted(folder.rglob("*")) if f.is_file() and f.stat().st_size]
    files = [file for file in files if file.name not in (LOCK, "README.md")]
    assert {CONFIG, METRICS, WATCHED, MANIFEST, REPORT, "byte_pair.json", "state.pt", "best.json"} <= {
        f.name for f in files
    }
    rng = random.Random(0)
    counts = {"found out": 0, "harmless": 0}
    for _ in range(TRIALS):
        file = rng.choice(files)
        whole = file.read_bytes()
        done = damage(file, rng)
        names = readers_of_file(file, readers)
        assert names, f"{file} has no reader"
        try:
            found = any(outcome_of(readers[name][1], before[name]) == "found out" for name in names)
        except Exception as error:
            raise AssertionError(done) from error
        finally:
            file.write_bytes(whole)
        counts["found out" if found else "harmless"] += 1
    print(counts)
    assert sum(counts.values()) == TRIALS
    assert counts["harmless"] < TRIALS / 10, "in a manifest, white space, or a cut of what no record reaches"


def test_a_run_older_than_the_manifest_has_no_traceback_either(folders):
    """Without checksums not everything is found out, but whatever is, is one line."""
    run, exported, _ = folders
    readers = readers_of(*folders)
    (run / MANIFEST).unlink()
    (exported / MANIFEST).unlink()
    names = (CONFIG, METRICS, "scores.json", "samples.json", "environment.json", "figures.json", "data.json")
    files = [run / name for name in names]
    files += [run / TOKENIZER / "byte_pair.json", exported / "config.json"]
    rng = random.Random(1)
    for _ in range(TRIALS // 10):
        file = rng.choice(files)
        whole = file.read_bytes()
        done, said = damage(file, rng), ""
        try:
            for name in readers_of_file(file, readers):
                readers[name][1]()
        except UserError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(done) from error
        finally:
            file.write_bytes(whole)
        assert "\n" not in said, done


def test_a_pickled_state_is_refused_in_one_line(folders, command):
    """With sums that fit, as somebody who wants his code to run would have made them."""
    run = folders[0]
    newest = max((run / CHECKPOINTS).glob("step=*"))
    written = run / "written"
    torch.save({"state": Touch(written)}, newest / "state.pt")
    state = newest / "state.pt"
    record = json.loads((newest / "manifest.json").read_text())
    record["files"]["state.pt"] = {"bytes": state.stat().st_size, "sha256": sha256(state)}
    del record["checksum"]
    write_json(newest / "manifest.json", record | {"checksum": checksum(record)})
    (run / REPORT).unlink()
    values = load_config(run / CONFIG)
    own = (f"data.train.folder={values.data.train['folder']}", f"runs={run.parents[2]}", *SAVING)
    validation = f"data.validation.validation.folder={values.data.validation['validation']['folder']}"
    mistake = command(train, *TINY, *own, validation).mistake
    assert "state.pt holds more than plain values, or is no such file, and is not read" in mistake
    assert not written.exists()


class Touch:
    """Pickled, it makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mknod, (str(self.file),)
