"""``python -m mmlm.bench parts``: a table of what every part costs."""

from mmlm.bench import parts
from mmlm.cli import report_user_errors
from mmlm.errors import UserError

USAGE = "python -m mmlm.bench parts [key=value ...]"


def main(argv: list[str]) -> int:
    """Runs the benchmark that the first word names; returns the exit status."""
    if argv[:1] in (["--help"], ["-h"]):
        print(
            f"{USAGE}\nparts: parameters, FLOPs, memory and step time of every part; parts --help lists its settings."
        )
        return 0
    if argv[:1] != ["parts"]:
        raise UserError(f"{argv[0] if argv else 'no benchmark'}: name a benchmark; usage: {USAGE}")
    return parts.main(argv[1:])


if __name__ == "__main__":
    report_user_errors(main)
