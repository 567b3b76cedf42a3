"""``python -m mmlm.bench``: tables of the cost of every part (``parts``), of whether it learns (``learns``), and of the
cost of losses (``losses``), of many rows (``sources``), of reading data (``data``) and of captions (``generation``)."""

from mmlm.bench.settings import (
    DataSettings,
    GenerationBenchSettings,
    LearnsSettings,
    LossesSettings,
    PartsSettings,
    SourcesSettings,
)
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values
from mmlm.core.errors import UserError

USAGE = "python -m mmlm.bench parts|learns|losses|sources|data|generation [key=value ...]"


def main(argv: list[str]) -> int:
    """Runs the benchmark that the first word names; returns the exit status. Raises UserError."""
    if argv[:1] in (["--help"], ["-h"]):
        print(
            f"{USAGE}\n"
            "parts: parameters, FLOPs, memory and step time of every part; parts --help lists its settings.\n"
            "learns: trains every part for a few hundred steps and says whether it learns; learns --help lists its "
            "settings.\n"
            "losses: time and memory of the losses against those of open_clip; losses --help lists its settings.\n"
            "sources: how long a million rows take to open, and what they cost a data worker; sources --help lists its "
            "settings.\n"
            "data: time of reading tar shards by their index; data --help lists its settings.\n"
            "generation: time of captions against open_clip's CoCa.generate; generation --help lists its settings."
        )
        return 0
    if not argv or argv[0] not in BENCHMARKS:
        raise UserError(f"{argv[0] if argv else 'no benchmark'}: name a benchmark; usage: {USAGE}")
    return BENCHMARKS[argv[0]](argv[1:])


def _parts(argv: list[str]) -> int:
    settings, _ = parse_key_values(argv, PartsSettings)
    with quick_imports():
        from mmlm.bench.parts import measure_parts

    return measure_parts(settings, argv)


def _learns(argv: list[str]) -> int:
    settings, _ = parse_key_values(argv, LearnsSettings)
    with quick_imports():
        from mmlm.bench.learns import train_parts

    return train_parts(settings, argv)


def _losses(argv: list[str]) -> int:
    settings, _ = parse_key_values(argv, LossesSettings)
    with quick_imports():
        from mmlm.bench.losses import measure_losses

    return measure_losses(settings, argv)


def _sources(argv: list[str]) -> int:
    settings, _ = parse_key_values(argv, SourcesSettings)
    with quick_imports():
        from mmlm.bench.source_memory import measure_sources

    return measure_sources(settings, argv)


def _data(argv: list[str]) -> int:
    settings, _ = parse_key_values(argv, DataSettings)
    with quick_imports():
        from mmlm.bench.data import measure_data

    return measure_data(settings, argv)


def _generation(argv: list[str]) -> int:
    settings, _ = parse_key_values(argv, GenerationBenchSettings)
    with quick_imports():
        from mmlm.bench.generation import measure_generation

    return measure_generation(settings, argv)


BENCHMARKS = {
    "parts": _parts,
    "learns": _learns,
    "losses": _losses,
    "sources": _sources,
    "data": _data,
    "generation": _generation,
}


if __name__ == "__main__":
    report_user_errors(main)
