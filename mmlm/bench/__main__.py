"""``python -m mmlm.bench``: tables of what parts, losses, data, captions and ranks cost, of which parts learn, and
of whether the statistics are right."""

import importlib
from dataclasses import dataclass

from mmlm.bench.settings import (
    DataSettings,
    GenerationBenchSettings,
    LearnsSettings,
    LossesSettings,
    PartsSettings,
    RetrievalSettings,
    SourcesSettings,
    StatisticsSettings,
)
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values
from mmlm.core.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """A word that the command takes, and where its work is."""

    about: str
    settings: type
    module: str
    """Imported once the settings are in order: it brings torch."""
    function: str
    """Called with the settings and the words that they were made of; returns the exit status."""


BENCHMARKS = {
    "parts": Benchmark(
        "parameters, FLOPs, memory and step time of every part", PartsSettings, "parts", "measure_parts"
    ),
    "learns": Benchmark(
        "trains every part for a few hundred steps and says whether it learns",
        LearnsSettings,
        "learns",
        "train_parts",
    ),
    "losses": Benchmark(
        "time and memory of the losses against those of open_clip", LossesSettings, "losses", "measure_losses"
    ),
    "sources": Benchmark(
        "how long a million rows take to open, and what they cost a data worker",
        SourcesSettings,
        "source_memory",
        "measure_sources",
    ),
    "data": Benchmark("time of tar shards by their index, and of crops", DataSettings, "data", "measure_data"),
    "generation": Benchmark(
        "time of captions against open_clip's CoCa.generate",
        GenerationBenchSettings,
        "generation",
        "measure_generation",
    ),
    "retrieval": Benchmark(
        "time and memory of ranks against a sort", RetrievalSettings, "retrieval", "measure_retrieval"
    ),
    "statistics": Benchmark(
        "how often tests, intervals and forecasts of power are right",
        StatisticsSettings,
        "statistics",
        "measure_statistics",
    ),
}
USAGE = f"python -m mmlm.bench {'|'.join(BENCHMARKS)} [key=value ...]"


def main(argv: list[str]) -> int:
    """Runs the benchmark that the first word names; returns the exit status. Raises UserError."""
    if argv[:1] in (["--help"], ["-h"]):
        print("\n".join([USAGE, *(f"  {word:<11} {one.about}" for word, one in BENCHMARKS.items())]))
        print("python -m mmlm.bench WORD --help lists its settings")
        return 0
    if not argv or argv[0] not in BENCHMARKS:
        raise UserError(f"{argv[0] if argv else 'no benchmark'}: name a benchmark; usage: {USAGE}")
    chosen, words = BENCHMARKS[argv[0]], argv[1:]
    settings: object = parse_key_values(words, chosen.settings)[0]
    with quick_imports():
        work = importlib.import_module(f"mmlm.bench.{chosen.module}")
    status: int = getattr(work, chosen.function)(settings, words)
    return status


if __name__ == "__main__":
    report_user_errors(main)
