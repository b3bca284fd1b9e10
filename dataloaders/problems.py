"""What is wrong with a data set, file by file: what ``check_dataset.py`` lists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from errors import DataError

# The broken files by what they hold; then what is wrong with a table, with what it names, or with a whole split.
KINDS = ("audio", "rgb", "depth", "table", "missing file", "repeated row", "shared file", "split")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a file, or with a row of one.

    Attributes:
        kind: one of ``KINDS``.
        file: which one, relative to the data set's folder, as are all names here.
        text: what is wrong, and what to do.
        table: the table that names the file; None for one that no table names, or for a table itself.
        row: of the table; None if it is no matter of one row.
    """

    kind: str
    file: str
    text: str
    table: str | None = None
    row: int | None = None

    @classmethod
    def of(
        cls, error: DataError, kind: str, root: str, file: str, row: int | None = None, table: str | None = None
    ) -> Problem:
        """Take an error's text apart: the place that it names is ``file``, ``table`` and ``row``, named in full."""

        def inside(text: str) -> str:
            return re.sub(rf"(?<![^\s('\"]){re.escape(root)}/", "", text)

        text = inside(str(error)).replace(f" ({inside(f'{table}')}, row {row})", "")
        if table is not None and Path(table).is_dir():  # what a folder lists has no row
            table = row = None
        named = None if table in (None, file) else inside(f"{table}")
        file = inside(file)
        text = text.removeprefix(f"{file}, row {row}:").removeprefix(file).lstrip(" :")
        return cls(kind, file, text, named, row)

    def __str__(self) -> str:
        """Return the problem as one line, whatever the file is called."""
        place = [*filter(None, [self.table]), *([] if self.row is None else [f"row {self.row}"])]
        where = f" ({', '.join(place)})" if place else ""
        return " ".join(f"{self.file}{where}: {self.text}".split())
