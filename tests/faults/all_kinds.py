"""All kinds of faults, in the order of the table."""

from tests.faults.file_kinds import FILE_KINDS
from tests.faults.kinds import PROCESS_KINDS
from tests.faults.surrounding_kinds import SURROUNDING_KINDS

KINDS = (*PROCESS_KINDS, *FILE_KINDS, *SURROUNDING_KINDS)
"""All of them; the names are unique."""
