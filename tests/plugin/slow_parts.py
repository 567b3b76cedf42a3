"""A captioning loss for tests that have to hit a training in a certain moment: slow, with faults at a step to order."""

import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mmlm.core.batch import Batch
from mmlm.core.distributed import rank, world_size
from mmlm.core.loss import Loss
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import StepKey
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.kernels.installed import Kernel
from mmlm.objectives.shared.token_prediction import Captions

ORDER = "MMLM_FAULTS_ORDER"
"""Environment variable: ``crash:STEP``, ``clock:STEP:SECONDS`` or ``vanish:STEP:FOLDER``."""
GONE = ".gone"
"""What a folder that has vanished is called."""


def follow_order(step: int) -> None:
    """Does what is ordered for optimizer step ``step`` (from 0): whenever it is made, or once for what is lasting."""
    fault, _, rest = os.environ.get(ORDER, "").partition(":")
    at, _, how = rest.partition(":")
    if not fault or step != int(at) or rank() < world_size() - 1:
        return
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "clock":
        own = time.time
        time.time = lambda: own() + float(how)
    if fault == "vanish":
        os.rename(how, how + GONE)


class SlowCaptioning(Captioning):
    """Captioning whose every forward pass takes ``sleep_seconds`` longer.

    At optimizer step ``nan_step`` (from 0) its loss is not a number on the last rank; None: it never is.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        captions: Captions = "all",
        kernel: Kernel = "auto",
        chunk_rows: int | None = None,
        sleep_seconds: float = 0.0,
        nan_step: int | None = None,
    ) -> None:
        super().__init__(label_smoothing, captions, kernel, chunk_rows)
        self.sleep_seconds, self.nan_step = sleep_seconds, nan_step

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """See ``Captioning``."""
        time.sleep(self.sleep_seconds)
        follow_order(step_key.step)
        loss = super().forward(output, batch, step_key, counts)
        if step_key.step != self.nan_step or rank() < world_size() - 1:
            return loss
        return replace(
            loss, terms={name: replace(term, local_sum=math.nan * term.local_sum) for name, term in loss.terms.items()}
        )
