"""Numbers of settings that have to lie in a range, checked where the settings are declared."""

from collections.abc import Mapping

from mmlm.core.errors import ArgumentError


def check_above_zero(settings: object, *names: str) -> None:
    """ArgumentError for the first of these fields that is a number not above 0, or not a number at all (nan)."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ArgumentError(f"{name}: {value} must be above 0")


def check_at_least(settings: object, least: Mapping[str, int]) -> None:
    """ArgumentError for the first field that is below its number in ``least``."""
    for name, number in least.items():
        if getattr(settings, name) < number:
            raise ArgumentError(f"{name}: {getattr(settings, name)} must be at least {number}")
