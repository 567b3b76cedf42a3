"""What a run says about data and steps that it could not use."""

from collections.abc import Sequence

from mmlm.core.distributed import gather_objects, world_size
from mmlm.core.errors import UserError
from mmlm.core.wording import listed
from mmlm.data.unreadable import Unreadable
from mmlm.training.agreement import MadeStep

_MOST_IDS = 8
_MOST_IMAGES = 10


class NonFiniteLoss(UserError):  # noqa: N818 - named after what happened
    """Losses or gradients were infinite or not a number once too often; the state without their updates is saved."""


class TooManyUnreadable(UserError):  # noqa: N818 - named after what happened
    """More examples cannot be read than the run bears with; its state is saved."""


def describe_skipped(made: MadeStep) -> str:
    """One line about a step whose loss or gradient is not finite: its terms, norm and batch. All ranks call it.

    With several ranks it is about the share of the first one whose own loss is not finite, or of rank 0.
    """
    terms = ", ".join(f"{name} {term.value.item():g}" for name, term in made.loss.terms.items())
    shares = gather_objects((bool(made.loss.total.isfinite()), terms, made.norm.item(), name_ids(made.ids)))
    number = next((number for number, share in enumerate(shares) if not share[0]), 0)
    _, terms, norm, ids = shares[number]
    where = f" of rank {number}" if world_size() > 1 else ""
    return f"step {made.step}: the loss is not finite ({terms}, gradient norm {norm:g}) on the batch{where} {ids}"


def name_ids(ids: Sequence[str]) -> str:
    """The first of the ids of a batch, and how many more there are."""
    return listed(ids, _MOST_IDS)


def describe_corrupt(where: str, corrupt: Unreadable) -> str:
    """One line with the number and the first ten of the images that could not be decoded.

    Where there are more than those, it says how many for each reason too.
    """
    total, names = len(corrupt), sorted(corrupt.names)[:_MOST_IMAGES]
    count = "1 image" if total == 1 else f"{total:,} images"
    more = f"; and {total - len(names):,} more (in all {corrupt.by_reason()})" if total > len(names) else ""
    return f"{where}: {count} could not be decoded: {'; '.join(names)}{more}"
