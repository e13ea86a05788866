"""Tables: one writer, and one way to read the cells that it and other programs write.

Tables are CSV. Very long ones of slides are Parquet.

A spreadsheet runs a cell that begins like a formula, and names of slides come from other people. So the writer puts an
apostrophe before such a text (https://owasp.org/www-community/attacks/CSV_Injection), and the readers remove it again.
Numbers stay numbers.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any

from panda.errors import INSTALL_CLUSTER, ConfigError, ManifestError
from panda.files import write_beside

_DELIMITERS = ",;\t"
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-](\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_SHOWN = 5
_SPOOLED_BYTES = 2**24
"""Bytes of rows that are kept in memory."""
MOST_CSV_ROWS = 100_000
"""Rows of the longest table that is written as CSV."""
PARQUET = ".parquet"
_PARQUET_ROWS = 10_000
"""Rows in memory while Parquet is written or read."""


def write_table(
    path: Path | str, rows: Iterable[Mapping[str, Any] | Sequence[Any]], columns: Sequence[str] | None = None
) -> None:
    """Write rows as a CSV file, whole or not at all; no cell is a formula of a spreadsheet.

    Args:
        path: The final name.
        rows: One a line, each a mapping or the values in the order of `columns`. None becomes an empty field.
        columns: The header. If None, every key of the rows, which are mappings, in the order they first occur.

    Raises:
        ValueError: If a mapping has a key that is no column.
    """
    if columns is None:
        rows = list(rows)
        columns = list(dict.fromkeys(key for row in rows for key in row))
    with write_beside(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        # A carriage return in a field is quoted only if the line end has one, which is then removed.
        lines = SimpleNamespace(write=lambda line: file.write(f"{line[:-2]}\n"))
        writer = csv.writer(lines, lineterminator="\r\n")
        writer.writerow(map(_guard, columns))
        for row in rows:
            if isinstance(row, Mapping) and (unknown := row.keys() - set(columns)):
                raise ValueError(f"{path}: no column {', '.join(map(repr, sorted(unknown)))}")
            values = [row.get(column) for column in columns] if isinstance(row, Mapping) else row
            writer.writerow(map(_guard, values))


class RowSpool:
    """Rows in a temporary file, so that a table of any length is written with little memory.

    Args:
        folder: Folder for the temporary file.

    Attributes:
        columns: Every key of the rows, in the order they first occur, and the types of its values.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.SpooledTemporaryFile(_SPOOLED_BYTES, dir=str(folder))  # noqa: SIM115  (closed by `__exit__`)
        self._rows = 0
        self.columns: dict[str, set[type]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of plain values."""
        for key, value in row.items():
            self.columns.setdefault(key, set()).add(type(value))
        self._file.write(json.dumps(dict(row)).encode() + b"\n")
        self._rows += 1

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._file.seek(0)
        return map(json.loads, self._file)

    def __enter__(self) -> RowSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def write_rows(path: Path, rows: RowSpool, columns: Sequence[str]) -> Path:
    """Write rows as a CSV file, or above `MOST_CSV_ROWS` as Parquet; return the path, and remove the other one.

    Args:
        path: The path of the CSV file; the other one differs in its suffix.
        rows: The rows.
        columns: The columns of a table without rows.
    """
    other, named = path.with_suffix(PARQUET), list(rows.columns) or columns
    if len(rows) > MOST_CSV_ROWS:
        _write_parquet(other, rows)
        path.unlink(missing_ok=True)
        return other
    write_table(path, rows, named)
    other.unlink(missing_ok=True)
    return path


def require_parquet(rows: int) -> None:
    """Refuse a number of rows for which a package is needed that is not installed."""
    if rows > MOST_CSV_ROWS and find_spec("pyarrow") is None:
        raise ConfigError(
            f"a table of more than {MOST_CSV_ROWS:,} slides is written as Parquet, for which pyarrow is not installed: "
            f"{INSTALL_CLUSTER}"
        )


def _write_parquet(path: Path, rows: RowSpool) -> None:
    """Write rows as Parquet, whole or not at all. A column of numbers and texts becomes texts."""
    require_parquet(len(rows))
    import pyarrow  # noqa: PLC0415  (an optional package, and slow to import)
    from pyarrow import parquet  # noqa: PLC0415

    def find_type(kinds: set[type]) -> Any:
        known = kinds - {NoneType}
        if known and known <= {int, float}:
            return pyarrow.int64() if known == {int} else pyarrow.float64()
        return pyarrow.string()

    schema = pyarrow.schema([(name, find_type(kinds)) for name, kinds in rows.columns.items()])
    texts = [name for name, kinds in rows.columns.items() if str in kinds and kinds - {str, NoneType}]
    with write_beside(path) as partial, parquet.ParquetWriter(partial, schema) as writer:
        left = iter(rows)
        while batch := list(itertools.islice(left, _PARQUET_ROWS)):
            plain = [row | {key: str(row[key]) for key in texts if row.get(key) is not None} for row in batch]
            writer.write_table(pyarrow.Table.from_pylist(plain, schema))


def _guard(value: Any) -> Any:
    """Return a value as a cell that is no formula."""
    if value is None or isinstance(value, (int, float)):
        return value
    text = str(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def decode_cell(cell: str) -> str:
    """Return the text that `write_table` was given for a cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


class OutputTable:
    """Rows of a table that this package wrote, as CSV or Parquet, read from the file each time they are iterated.

    There is no row if the file is missing or cannot be read as a table.

    Args:
        path: The path of the CSV file. The Parquet file beside it is read instead if there is one.
    """

    def __init__(self, path: Path) -> None:
        other = path.with_suffix(PARQUET)
        self.path = other if other.is_file() else path

    def __iter__(self) -> Iterator[dict[str, str]]:
        try:
            yield from _read_parquet(self.path) if self.path.suffix == PARQUET else _read_csv(self.path)
        except (OSError, csv.Error):
            return


def read_output_table(path: Path) -> list[dict[str, str]]:
    """Read a table that this package wrote, see `OutputTable`; no row if it cannot be read to its end."""
    try:
        return list(_read_csv(path))
    except (OSError, csv.Error):
        return []


def _read_csv(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        lines = ([decode_cell(cell) for cell in row] for row in csv.reader(file) if row)
        names = next(lines, [])
        for row in lines:
            yield dict.fromkeys(names, "") | dict(zip(names, row, strict=False))


def _read_parquet(path: Path) -> Iterator[dict[str, str]]:
    from pyarrow import lib, parquet  # noqa: PLC0415  (an optional package, and slow to import)

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield {key: "" if value is None else str(value) for key, value in row.items()}
    except lib.ArrowException as error:
        raise OSError(f"{path} is no Parquet file: {error}") from error


def read_user_table(
    path: Path, columns: Sequence[str], one_of: Sequence[str] = (), *, may_be_empty: bool = False
) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV in UTF-8 that a user, a spreadsheet or this package wrote, and refuse a broken one.

    Fields are separated by commas, semicolons or tabs. Blanks around names and values, and columns without a name,
    are ignored.

    Args:
        path: The table, with a header.
        columns: Columns that it must have.
        one_of: Columns of which it must have at least one.
        may_be_empty: Whether a table without rows is allowed.

    Returns:
        Rows as (number of the line in the file on which the row ends, stripped values by column), without blank lines.

    Raises:
        ManifestError: If it cannot be read, a column is missing or occurs twice, a row has another number of fields
            than the header, or it has no rows.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        delimiter = _find_delimiter(text, {*columns, *one_of})
        (_, names), *lines = _split(text, delimiter)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(
            f"{path}: cannot be read as a CSV in UTF-8 ({error}); save it again as CSV in UTF-8"
        ) from error
    while names and not names[-1]:
        names.pop()
    _check_header(path, names, columns, one_of)
    faults = [
        f"row {number} has {len(row)} fields, the header has {len(names)}"
        for number, row in lines
        if len(row) < len(names) or any(row[len(names) :])
    ]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ManifestError(
            f"{path}: {'; '.join(faults[:_SHOWN])}{more}; write an empty field for an empty value, and quote a value "
            f"that has {delimiter!r} in it"
        )
    if not lines and not may_be_empty:
        raise ManifestError(f"{path}: the table has no rows")
    return [(number, {name: value for name, value in zip(names, row, strict=False) if name}) for number, row in lines]


def _find_delimiter(text: str, columns: Collection[str]) -> str:
    """Return the separator with which the header has most of the columns."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(_DELIMITERS, key=lambda one: len({*columns} & {*_split(header, one, strict=False)[0][1]}))


def _split(text: str, delimiter: str, strict: bool = True) -> list[tuple[int, list[str]]]:
    """Return number and stripped cells of each line that is not blank; the first is the header, which may be empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=strict)
    try:
        lines = [(reader.line_num, [decode_cell(cell.strip()) for cell in row]) for row in reader]
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num}: {error}") from error
    return [line for line in lines if any(line[1])] or [(1, [])]


def _check_header(path: Path, names: Sequence[str], columns: Sequence[str], one_of: Sequence[str]) -> None:
    """Refuse a table without a needed column, or with a column that occurs twice."""
    found = ", ".join(map(repr, names)) or "none"
    absent = [repr(column) for column in columns if column not in names]
    if one_of and not set(one_of) & set(names):
        absent.append(" or ".join(map(repr, one_of)))
    if absent:
        raise ManifestError(
            f"{path}: no column {', '.join(absent)}; the columns found are {found}; the first line names the columns, "
            "separated by commas, semicolons or tabs"
        )
    if twice := [repr(name) for name, count in Counter(names).items() if name and count > 1]:
        raise ManifestError(f"{path}: column {', '.join(twice)} occurs twice; remove or rename one of them")
