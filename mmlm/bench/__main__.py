"""``python -m mmlm.bench``: tables of the cost of every part (``parts``), of whether it learns (``learns``), and of the
cost of losses (``losses``) and of retrieval's ranks (``retrieval``)."""

from mmlm.bench.settings import LearnsSettings, LossesSettings, PartsSettings, RetrievalSettings
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values
from mmlm.core.errors import UserError

USAGE = "python -m mmlm.bench parts|learns|losses|retrieval [key=value ...]"


def main(argv: list[str]) -> int:
    """Runs the benchmark that the first word names; returns the exit status. Raises UserError."""
    if argv[:1] in (["--help"], ["-h"]):
        print(
            f"{USAGE}\n"
            "parts: parameters, FLOPs, memory and step time of every part; parts --help lists its settings.\n"
            "learns: trains every part for a few hundred steps and says whether it learns; learns --help lists its "
            "settings.\n"
            "losses: time and memory of the losses against those of open_clip; losses --help lists its settings.\n"
            "retrieval: time and memory of ranks against a sort; retrieval --help lists its settings."
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


def _retrieval(argv: list[str]) -> int:
    settings, _ = parse_key_values(argv, RetrievalSettings)
    with quick_imports():
        from mmlm.bench.retrieval import measure_retrieval

    return measure_retrieval(settings, argv)


BENCHMARKS = {"parts": _parts, "learns": _learns, "losses": _losses, "retrieval": _retrieval}


if __name__ == "__main__":
    report_user_errors(main)
