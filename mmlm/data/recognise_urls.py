"""What lies at a URL of images with captions: tar shards or Parquet files, told by the names that are there."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmlm.core.errors import UserError
from mmlm.core.wording import listed
from mmlm.data.stored import Url, matching_urls, place_of

_PATTERN = re.compile(r"[*?\[{]")
"""What tells a pattern of names from a name."""
_KINDS = (".parquet", ".tar")
"""In the order in which they are looked for in a folder."""
_SPLITS = re.compile(r"(train|training|val|valid|validation|dev|test)/?", re.IGNORECASE)
_SHOWN = 5
"""Names that a message lists."""


@dataclass(frozen=True)
class UrlFiles:
    """Files of one kind."""

    kind: str
    """``.tar`` or ``.parquet``."""
    names: Sequence[str]
    """URLs, or one pattern of them."""
    what: str
    """In words."""


def url_files(url: Url) -> UrlFiles:
    """The files of a URL: a file, a pattern of files (``*``, ``{00000..00099}``), or a folder that holds some.

    Only the names are listed. Raises UserError: nothing there is a tar shard or a Parquet file, there are folders of
    several splits, or the store does not answer.
    """
    kind = next((kind for kind in _KINDS if url.text.lower().endswith(kind)), None)
    if kind is not None:
        one = "Parquet file" if kind == ".parquet" else "tar shard"
        several = _PATTERN.search(url.name) is not None
        return UrlFiles(kind, [url.text], f"the {one}s {url.name}" if several else f"the {one} {url.name}")
    folder = url.text.rstrip("/")
    there = matching_urls(f"{folder}/*")
    for kind in _KINDS:
        found = [name for name in there if name.lower().endswith(kind)]
        if not found and kind == ".parquet":
            found = matching_urls(f"{folder}/data/*{kind}")
        if found:
            one = "Parquet file" if kind == ".parquet" else "tar shard"
            return UrlFiles(kind, found, f"{len(found):,} {one}{'s' * (len(found) > 1)}")
    names = [place_of(name.rstrip("/")).name for name in there]
    splits = [name for name in names if _SPLITS.fullmatch(name)]
    if splits:
        raise UserError(
            f"{url}: holds the folders {listed(splits, _SHOWN)}; give one of them, and train on one and validate on "
            f"another by data=own data.train.path={folder}/{splits[0]} data.train.part=all "
            "data.validation.validation.part=all data.validation.validation.path=URL"
        )
    holds = f"it holds {listed(names, _SHOWN)}" if names else "there is nothing, or nothing that may be listed"
    raise UserError(f"{url}: by a URL, tar shards (.tar) and Parquet files (.parquet) are read; {holds}")
