"""Rows that belong together: which rows each group has, in arrays of numbers."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Groups:
    """The rows of each group, in their order; groups in the order of their first rows."""

    rows: np.ndarray
    """int64[rows]: those of the first group, then those of the second, ..."""
    starts: np.ndarray
    """int64[groups + 1]: where each begins in ``rows``, and the end."""

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.starts) - 1

    def of(self, group: int) -> np.ndarray:
        """int64[K]: the rows of one group."""
        return self.rows[self.starts[group] : self.starts[group + 1]]

    def first_rows(self) -> np.ndarray:
        """int64[groups]: the first row of each."""
        return self.rows[self.starts[:-1]]

    def firsts_of_rows(self) -> np.ndarray:
        """int64[rows]: for each of ``rows``, the first row of its group."""
        return np.repeat(self.first_rows(), np.diff(self.starts))


def grouped(codes: np.ndarray) -> Groups:
    """The groups of the rows that have one code each, of int64[rows] codes."""
    order = np.argsort(codes, kind="stable")
    in_order = codes[order]
    begins = np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1]])) if len(codes) else codes
    sizes = np.diff(np.append(begins, len(codes)))
    by_first = np.argsort(order[begins])
    begins, sizes = begins[by_first], sizes[by_first]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    places = np.repeat(begins - starts[:-1], sizes) + np.arange(len(codes))
    return Groups(order[places], starts)
