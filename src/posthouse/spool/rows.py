"""Rows in few statements: multi-row INSERTs of fixed sizes.

sqlite3 gives the interpreter lock away once a row; many rows in one statement starve less beside a busy loop than
executemany does. Fixed sizes keep the statement cache small.
"""

import sqlite3
from collections.abc import Iterable, Sequence

_SIZES = (64, 16, 4, 1)


class MultiInsert:
    """`INSERT INTO table(columns)` of any number of rows."""

    def __init__(self, table: str, columns: str, *, conflict: str = "") -> None:
        width = columns.count(",") + 1
        row = f"({','.join('?' * width)})"
        # The names are constants of this package, never input.
        self._texts = {
            size: f"INSERT INTO {table}({columns}) VALUES {','.join([row] * size)} {conflict}"  # noqa: S608
            for size in _SIZES
        }

    def run(self, connection: sqlite3.Connection, rows: Sequence[tuple[object, ...]]) -> None:
        """Inserts all rows, in order."""
        at, left = 0, len(rows)
        for size in _SIZES:
            while left >= size:
                values: list[object] = []
                for row in rows[at : at + size]:
                    values += row
                connection.execute(self._texts[size], values)
                at += size
                left -= size


def id_list(ids: Sequence[int]) -> str:
    """Ids as one parameter for `json_each(?)`: a literal IN list would fill the statement cache with unique texts."""
    return f"[{','.join(map(str, ids))}]"


def key_list(keys: Iterable[tuple[int, int]]) -> str:
    """Recipients (message, n) as one parameter for `json_each(?)`."""
    return f"[{','.join([f'[{message},{n}]' for message, n in keys])}]"
