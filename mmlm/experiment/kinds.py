"""What each slot accepts: the kind of its parts, and where those of mmlm lie.

A config names classes by ``_target_``, and a config may come from somebody else's folder. So nothing of mmlm may stand
in a slot but the slot's own parts: a class that lies in one of the ``homes`` and keeps the protocol. Only modules below
the homes that define a class of that name are ever imported. A new part needs no entry here; a new slot does.
"""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mmlm.data.sources import Source
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.transforms import Transform
from mmlm.evaluation.evaluators import Evaluator
from mmlm.launch.launcher import Launcher
from mmlm.model.protocols import Bridge, Decoder, Encoder, TextEncoder
from mmlm.objectives.objective import Comparison, FusionObjective, Objective
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.objectives.weights import WeightSchedule
from mmlm.optim.freeze import FreezePlan
from mmlm.optim.optimizers import OptimizerPart
from mmlm.optim.schedules import Schedule
from mmlm.record.logger import Logger
from mmlm.training.parallel import Parallel


@dataclass(frozen=True)
class Kind:
    """What may stand in a slot, or at an argument of another part."""

    protocol: type
    """A Protocol that the class keeps, or a class that it is or derives from."""
    homes: tuple[str, ...]
    """Modules of mmlm that the parts of mmlm lie in, and packages whose own modules they are."""

    @property
    def name(self) -> str:
        """The name of the protocol, for messages."""
        return self.protocol.__name__

    def is_home(self, module: str) -> bool:
        """Whether parts of this kind may lie in ``module``."""
        return module in self.homes or module.rpartition(".")[0] in self.homes

    def accepts(self, found: object) -> bool:
        """Whether ``found`` is a class of mmlm that may be built as such a part."""
        if not inspect.isclass(found) or inspect.isabstract(found) or found in _CONTRACTS:
            return False
        if not self.is_home(found.__module__):
            return False
        if not _is_protocol(self.protocol):
            return issubclass(found, self.protocol)
        # What instances have (a width, say) is looked at once a part has been built (``contract.py``).
        methods = [name for name, value in vars(self.protocol).items() if _is_asked_for(name, value)]
        defined = {name for base in found.__mro__ for name in vars(base)}
        return not _is_protocol(found) and defined.issuperset(methods)


_CONTRACTS: Collection[type] = (Objective, Comparison, FusionObjective)
"""Base classes that are no parts themselves."""


_SELDOM = ("some_tokens", "hidden_by")
"""Methods that a protocol asks for only of some of its classes (``contract.py`` says which)."""


def _is_protocol(kind: type) -> bool:
    return bool(getattr(kind, "_is_protocol", False))  # as ``typing.is_protocol``, which Python 3.11 does not have


def _is_asked_for(name: str, value: object) -> bool:
    """Whether an entry of a Protocol is a method that every class of that kind has."""
    public = not name.startswith("_") or name in ("__call__", "__len__", "__getitem__")
    return public and inspect.isfunction(value) and name not in _SELDOM


_KINDS = (
    Kind(Encoder, ("mmlm.model.encoders",)),
    Kind(Bridge, ("mmlm.model.bridges",)),
    Kind(TextEncoder, ("mmlm.model.text_encoders",)),
    Kind(Decoder, ("mmlm.model.decoders",)),
    Kind(FreezePlan, ("mmlm.optim.freeze",)),
    Kind(WeightedSum, ("mmlm.objectives.weighted_sum",)),
    Kind(Objective, ("mmlm.objectives",)),
    Kind(WeightSchedule, ("mmlm.objectives.weights",)),
    Kind(Tokenizer, ("mmlm.data.tokenizers",)),
    Kind(Transform, ("mmlm.data.transforms", "mmlm.data.crop")),
    Kind(OptimizerPart, ("mmlm.optim.optimizers",)),
    Kind(Schedule, ("mmlm.optim.schedules",)),
    Kind(Launcher, ("mmlm.launch",)),
    Kind(Parallel, ("mmlm.training.parallel",)),
    Kind(Source, ("mmlm.data",)),
    Kind(Evaluator, ("mmlm.evaluation",)),
    Kind(Logger, ("mmlm.record.loggers",)),
)
KINDS: Mapping[type, Kind] = {kind.protocol: kind for kind in _KINDS}
"""Every kind, by its protocol, which is also what a constructor annotates a nested part with."""
NO_KIND = (Kind(type(None), ()),)
"""Of mmlm, nothing."""
_OF_SLOT: Mapping[str, type] = {
    "encoder": Encoder,
    "bridge": Bridge,
    "text_encoder": TextEncoder,
    "decoder": Decoder,
    "freeze": FreezePlan,
    "objective": WeightedSum,
    "tokenizer": Tokenizer,
    "transform": Transform,
    "optim": OptimizerPart,
    "schedule": Schedule,
    "launcher": Launcher,
    "parallel": Parallel,
    "data": Source,
    "evaluators": Evaluator,
    "logger": Logger,
}
"""The protocol of each slot, by the first word of its key."""


def kinds_of_slot(slot: str) -> tuple[Kind, ...]:
    """What the slot with the key ``slot`` (``encoder``, ``data.train``) accepts: one kind.

    Empty for a key that is no slot's, as where Python builds a part outside of a config.
    """
    protocol = _OF_SLOT.get(slot.partition(".")[0])
    return () if protocol is None else (KINDS[protocol],)
