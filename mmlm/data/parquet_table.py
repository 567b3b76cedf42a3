"""Parquet files in the Hugging Face image convention."""

from collections.abc import Sequence
from pathlib import Path

from mmlm.data.image_rows import ImageRows
from mmlm.data.parquet_files import expand
from mmlm.data.parquet_parts import ParquetParts
from mmlm.data.table_parts import Columns, caption_columns


class ParquetTable(ImageRows):
    """Parquet files in the Hugging Face image convention: an image column of struct<bytes, path> (or plain binary).

    The caption column holds strings or lists of strings; of several caption columns, each is a kind of caption by its
    name. An image without bytes is read from its ``path``, relative to
    the folder of its Parquet file. A row with a null image is text only; a null caption is no caption. Rows of one id
    are one example, at the place of the first of them, with the captions of all: a table may give each caption of an
    image a row.

    Rows are read by row group, and only the columns that are used. A process keeps the groups that it has read most
    recently, up to ``KEPT_IMAGES`` and ``KEPT_TEXTS`` bytes (``mmlm/data/image_rows.py``), so that a small table is
    read once. Of a larger one, an order by windows (``data.shuffle_window``, in row groups) reads each group once an
    epoch and data worker; if any row may follow any other, a whole group is read for each image.

    A file that vanishes, is cut off or is replaced while a run goes on makes its images a ``CorruptImage`` each.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        image_column: str = "image",
        caption_column: str | Sequence[str] = "caption",
        concept_column: str | None = None,
        id_column: str | None = None,
        language: str | None = None,
        outside: bool = False,
        language_column: str | None = None,
        folder: str | Path | None = None,
        kind_column: str | None = None,
    ) -> None:
        """Reads what the ends of the files tell, and the ids. ``files`` is one or several paths, URLs
        (``s3://bucket/*.parquet``) or patterns; ``language`` is that of captions that name none in ``language_column``,
        which holds a string for all captions of a row or a list of one for each; ``kind_column`` holds their kinds in
        the same way.

        Without ``id_column``, or where it is null, an example's id is the name of its file and its row:
        ``train.parquet/17``; where two files have one name, their paths are told apart: ``2023/train.parquet/17``.
        ``outside`` allows images by paths that lead out of the folder of the file. ``folder`` is where ``files`` begin,
        if they are not given with their whole path; null is the working folder. Raises UserError for a missing or
        unreadable file, a missing column, a column of another type, such a path that is not allowed, two images or
        two concepts of one id, or no rows; ArgumentError for no caption column, or one that is named twice.
        """
        captions = caption_columns(caption_column)
        columns = Columns(image_column, captions, concept_column, id_column, language_column, kind_column)
        parts = ParquetParts(expand(files, folder), columns.all, image_column)
        super().__init__(parts, columns, language, outside)
