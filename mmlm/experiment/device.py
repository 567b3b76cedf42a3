"""The device of a run, and the seeds of all generators."""

import random

import numpy as np
import torch

from mmlm.core.errors import UserError


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch. Data order and augmentation are keyed by the seed on their own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` to a device, the ``local_rank``-th of this machine if there are several.

    Raises UserError for a device that is not there. Under SLURM a rank may see its own accelerator only.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"device: '{name}' is not one of auto, cpu, cuda")
    if name == "cuda" and not available:
        raise UserError("device: cuda was asked for and torch finds no CUDA device; use device=cpu or device=auto")
    return torch.device("cpu") if name == "cpu" else torch.device("cuda", local_rank % torch.cuda.device_count())
