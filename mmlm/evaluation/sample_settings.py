"""How many samples a report shows. Imports no torch, as all settings of a config."""

from dataclasses import dataclass

from mmlm.core.ranges import check_at_least


@dataclass
class SampleSettings:
    """How many samples of each split the report shows."""

    examples: int = 24
    """Images with their captions, evenly spaced over the split."""
    queries: int = 8
    """Captions with the images retrieved for them, evenly spaced over the split's texts."""
    attention: int = 8
    """How many of the examples also show the decoder's attention, if the decoder can record it."""

    def __post_init__(self) -> None:
        check_at_least(self, {"examples": 0, "queries": 0, "attention": 0})
