"""A source without some of its examples, such as those that an evaluation split has too."""

from pathlib import Path

import numpy as np

from mmlm.core.errors import UserError
from mmlm.core.wording import listed
from mmlm.data.chosen import Chosen
from mmlm.data.sources import Source, texts_of
from mmlm.data.text_files import numbered_lines


class Without(Chosen):
    """The examples of ``source``, but for those whose ids a file lists, one a line.

    ``python -m mmlm.lint`` writes such a file. The order of the others is kept.

    Args:
        source: all examples.
        ids: the file.

    Raises:
        UserError: a missing file, one that is not UTF-8, an id that the source lacks, or no example that is left.
    """

    def __init__(self, source: Source, ids: str | Path) -> None:
        path = Path(ids)
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; write the ids to leave out, one a line")
        dropped = {line.rstrip("\r\n") for _, line in numbered_lines(path) if line.strip()}
        unknown = set(dropped)
        kept = np.ones(len(source), dtype=bool)
        for index, example in enumerate(texts_of(source)):
            if example.id in dropped:
                kept[index] = False
                unknown.discard(example.id)
        if unknown:
            raise UserError(f"{path}: {listed(sorted(unknown), 3)} is no example of the source; remove the line")
        if not kept.any():
            raise UserError(f"{path}: leaves no example; remove some lines")
        super().__init__(source, np.flatnonzero(kept))
