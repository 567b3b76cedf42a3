"""The names of the files in a run folder, and finding one."""

from pathlib import Path

from mmlm.core.errors import UserError

SCORES = "scores.json"
SAMPLES = "samples.json"

CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"
ASIDE = ".before-"
"""In the name of a run folder that was moved aside for a new run."""
CONFIG = "config.yaml"


def find_run(path: str) -> Path:
    """The run folder that ``path`` is, or the only one below it. Raises UserError."""
    root = Path(path)
    if (root / CONFIG).is_file():
        return root
    # Not any config.yaml: wandb writes one of its own below the run folder.
    found = sorted(file.parent for file in root.glob(f"**/seed=*/{CONFIG}")) if root.is_dir() else []
    found = [folder for folder in found if ASIDE not in folder.name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"run: {path} holds {len(found)} runs; name one, such as {found[0]}")
    raise UserError(f"run: {path} is no run folder (it has no {CONFIG}); train one with python -m mmlm.train")
