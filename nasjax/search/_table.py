"""CSV files with a row for each architecture."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasjax.core.architecture import Arch
from nasjax.core.errors import NasjaxError, did_you_mean
from nasjax.search.errors import OracleError

Cell = int | float | str
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class TableKey:
    """By which columns, and which values in them, a table knows an architecture.

    Attributes:
      columns: names of the columns that tell the rows apart.
      of: ``arch -> {column: value}``, a value for each of these columns.

    Example:
      >>> key = TableKey(("width",), lambda arch: {"width": arch["embed_dim"]})
      >>> key.columns, key.cells({"embed_dim": 8}) == key.cells({"embed_dim": 8.0})
      (('width',), True)

    Raises:
      OracleError: if there is no column, or one is named twice.
    """

    columns: tuple[str, ...]
    of: Callable[[Arch], Mapping[str, Any]]

    def __post_init__(self) -> None:
        columns = (self.columns,) if isinstance(self.columns, str) else tuple(self.columns)
        object.__setattr__(self, "columns", columns)
        if not columns or len(set(columns)) != len(columns):
            raise OracleError(
                f"TableKey's columns are {columns}, but at least one name, and each once, is "
                "expected: name the columns that tell the architectures apart."
            )

    @classmethod
    def by_column(cls, columns: Mapping[str, Callable[[Arch], Any]]) -> TableKey:
        """The key of a space that says for each column what it holds (``Supernet.columns``)."""
        return cls(tuple(columns), lambda arch: {name: of(arch) for name, of in columns.items()})

    def cells(self, arch: Arch) -> tuple[Cell, ...]:
        """What the key columns hold in the row of ``arch``.

        Raises:
          OracleError: if ``of`` cannot use the architecture, or gives other columns.
        """
        try:
            row = dict(self.of(arch))
        except NasjaxError:
            raise
        except (LookupError, TypeError, ValueError) as error:
            raise OracleError(
                f"TableKey's function fails with {type(error).__name__} ({error}) on the "
                f"architecture {arch!r}: give an architecture of the space that it was written for."
            ) from error
        if set(row) != set(self.columns):
            raise OracleError(
                f"TableKey's function gives the columns {', '.join(row) or 'none'}, but its "
                f"columns are {', '.join(self.columns)}: let it give a value for each of them."
            )
        return tuple(cell(row[column]) for column in self.columns)


def cell(value: Any) -> Cell:
    """A value as a CSV file writes it; a number where that is one, so that 8 equals 8.0."""
    text = "" if value is None else str(value).strip()
    if not _NUMBER.fullmatch(text):
        return text
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def read_columns(
    file: Path, key: Sequence[str], accuracy: str
) -> Iterator[tuple[int, tuple[Cell, ...], Cell]]:
    """Yield ``(line number, cells of the key columns, cell of the accuracy)`` of each row.

    Raises:
      OracleError: if the file is absent or no CSV file, or lacks one of the columns.
    """
    if not file.is_file():
        raise OracleError(f"There is no file {file}: give the path of a CSV file with a header.")
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, skipinitialspace=True, strict=True)
            header = [name.strip() for name in next(reader, [])]
            places = [_place(file, header, n, "TableKey's columns name") for n in key]
            target = _place(file, header, accuracy, "accuracy= names")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise OracleError(
                        f"line {reader.line_num} of {file} has {len(row)} values, but the header "
                        f"has {len(header)} columns: give each row a value for each column."
                    )
                yield reader.line_num, tuple(cell(row[p]) for p in places), cell(row[target])
    except (csv.Error, UnicodeDecodeError) as error:
        raise OracleError(
            f"{file} cannot be read as CSV ({error}): write it as UTF-8 text with commas."
        ) from error


def _place(file: Path, header: Sequence[str], name: str, who: str) -> int:
    if not header:
        raise OracleError(f"{file} is empty: a header and a row per architecture are expected.")
    count = header.count(name)
    if count == 0:
        raise OracleError(
            f"{file} has no column {name!r}, which {who}; {did_you_mean(name, header)}"
        )
    if count > 1:
        raise OracleError(f"{file} has {count} columns called {name!r}: give each its own name.")
    return header.index(name)
