"""Whether files are there, for a million names: a folder is listed once, not asked for each of its files."""

import os
from itertools import islice

LIST_AFTER = 8
"""Files of a folder that are asked for one by one before it is listed: of a large folder, a set may name a few."""
MOST_LISTED = 2**20
"""Names that are kept over all folders, about 100 MB; whatever is beyond them is asked for one by one."""


class ExistingFiles:
    """Answers as ``os.path.isfile`` does, from lists of folders, taken when their first files were asked for."""

    def __init__(self, list_after: int = LIST_AFTER, most_listed: int = MOST_LISTED) -> None:
        self._list_after, self._room = list_after, most_listed
        self._asked: dict[str, int] = {}
        """How many files of each folder were asked for before it was listed."""
        self._names: dict[str, frozenset[str]] = {}
        """The files of each folder that is listed; none of one that cannot be."""

    def has(self, path: str) -> bool:
        """Whether ``path`` is a file, or a link to one."""
        folder, _, name = path.rpartition(os.sep)
        names = self._names.get(folder)
        if names is None:
            asked = self._asked[folder] = self._asked.get(folder, 0) + 1
            if asked <= self._list_after:
                return os.path.isfile(path)
            names = self._names[folder] = self._listed(folder)
        # A name that is not in the list may still lead to a file: where upper and lower case are the same, say.
        return name in names or os.path.isfile(path)

    def _listed(self, folder: str) -> frozenset[str]:
        """The files of a folder, as many as there is room for; none if it cannot be listed."""
        try:
            with os.scandir(folder or os.sep) as entries:
                found = frozenset(entry.name for entry in islice(entries, self._room) if entry.is_file())
        except OSError:
            return frozenset()
        self._room -= len(found)
        return found
