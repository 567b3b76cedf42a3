"""Writes the model of a run as a folder in Hugging Face layout."""

import sys
from pathlib import Path
from shutil import rmtree

import torch

from mmlm.cli.arguments import ExportArguments
from mmlm.cli.runs import chosen_run
from mmlm.core.errors import PROGRAM, UserError
from mmlm.experiment.saved_run import load_run
from mmlm.optim.lora import merge_adapters
from mmlm.pretrained.card import model_card
from mmlm.pretrained.model import MmlmModel
from mmlm.reports.run_folder import read_run_folder


def export_run(arguments: ExportArguments) -> int:
    """Writes the folder completely or not at all, and returns the exit status. Raises UserError."""
    to = Path(arguments.to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"to: {to} is there already and not an empty folder; give a new one")
    run = load_run(str(chosen_run(arguments.run)), torch.device("cpu"), arguments.plugins)
    merge_adapters(run.model)  # the loader of the folder builds the model without adapters
    card = model_card(read_run_folder(run.folder, _tell), run.config, run.step, arguments.license)
    model = MmlmModel.from_run(run, card)
    # Written beside ``to`` and renamed at the end: whoever finds ``to`` finds a whole folder.
    saving = to.with_name(f".saving-{to.name}")
    try:
        model.save_pretrained(saving)
        if to.exists():
            to.rmdir()
        saving.rename(to)
    except OSError as error:
        raise UserError(f"to: {to} cannot be written ({error.strerror}); give another folder") from error
    finally:
        rmtree(saving, ignore_errors=True)
    size = sum(file.stat().st_size for file in to.rglob("*") if file.is_file())
    print(f"{run.folder} at step {run.step} -> {to} ({size / 1e6:.1f} MB)")
    print(f"load it: from mmlm.pretrained import from_pretrained; model = from_pretrained({str(to)!r})")
    return 0


def _tell(line: str) -> None:
    print(f"{PROGRAM}: {line}", file=sys.stderr)
