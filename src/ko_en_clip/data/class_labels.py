"""Classes that a classifier is taught: a column of their numbers, checked before anything is learned from it."""

from dataclasses import dataclass
from typing import Any

from .pairs import PairRow, PairSet


@dataclass(frozen=True, kw_only=True)
class ClassColumn:
    """A column of class numbers."""

    column: str
    num_classes: int
    """The numbers are integers from 0 to one less."""

    def number(self, row: PairRow) -> int:
        """The class of a row.

        Raises:
            ValueError: it has none, or something else; the message names the row and the column.
        """
        cell = row.cell(self.column)
        if not self._is_class(cell):
            raise self._error(cell, row.settings.path, row.key())
        return cell

    def check(self, pairs: PairSet) -> None:
        """Check all rows at once.

        Raises:
            ValueError: as `number`.
        """
        for number, cell in enumerate(pairs.cells(self.column)):
            if not self._is_class(cell):
                raise self._error(cell, pairs.settings.path, pairs.key(number))

    def _is_class(self, cell: Any) -> bool:
        return isinstance(cell, int) and not isinstance(cell, bool) and 0 <= cell < self.num_classes

    def _error(self, cell: Any, path: str, key: str) -> ValueError:
        return ValueError(
            f"column {self.column!r} of {path} holds {cell!r} in {key}; a class is an integer from 0 to "
            f"{self.num_classes - 1}. Mend the cell, leave the row out with data.where, or give every class a name in "
            "labels.names."
        )
