"""A source without some of its examples, such as those that an evaluation split has too."""

from collections.abc import Iterator
from pathlib import Path

import torch

from mmlm.core.batch import Caption, Example, ExampleTexts
from mmlm.core.errors import UserError
from mmlm.core.wording import listed
from mmlm.data.sources import Source, texts_of
from mmlm.data.text_files import numbered_lines


class Without:
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
        names = [example.id for example in texts_of(source)]
        unknown = sorted(dropped - set(names))
        if unknown:
            raise UserError(f"{path}: {listed(unknown, 3)} is no example of the source; remove the line")
        kept = [index for index, name in enumerate(names) if name not in dropped]
        if not kept:
            raise UserError(f"{path}: leaves no example; remove some lines")
        self._source, self._kept, self._dropped = source, torch.tensor(kept), dropped

    def __len__(self) -> int:
        """Number of examples that are left."""
        return len(self._kept)

    def __getitem__(self, index: int) -> Example:
        """See ``Source``."""
        return self._source[int(self._kept[index])]

    def captions(self) -> Iterator[Caption]:
        """See ``Source``."""
        return (caption for texts in self.texts() for caption in texts.captions)

    def texts(self) -> Iterator[ExampleTexts]:
        """See ``ListsTexts``."""
        return (texts for texts in texts_of(self._source) if texts.id not in self._dropped)
