"""The books of an import: what became of every row that was read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from meter_agent.cli.printing import counted

__all__ = ["ImportLedger"]


@dataclass(frozen=True)
class ImportLedger:
    """Counts of rows and events; two of them can be added.

    `rows == recorded + rejected + repeated`, and
    `recorded == delivered + dead_lettered + uncertain + not_sent`.
    """

    rows: int = 0
    """Rows read."""
    recorded: int = 0
    """Events made of them."""
    delivered: int = 0
    """Events that Stripe received."""
    dead_lettered: int = 0
    """Events that Stripe refused; they are in the file of rejected rows."""
    uncertain: int = 0
    """Events that Stripe may have."""
    not_sent: int = 0
    """Events that Stripe does not have, because the import ended before."""
    rejected: int = 0
    """Rows that cannot be billed; they are in the file of rejected rows."""
    repeated: int = 0
    """Rows that say once more what an earlier one said under the same identifier."""

    def __add__(self, other: ImportLedger) -> ImportLedger:
        names = [each.name for each in fields(self)]
        return ImportLedger(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def balanced(self) -> bool:
        """Whether both equations hold."""
        ended = self.delivered + self.dead_lettered + self.uncertain + self.not_sent
        return self.rows == self.recorded + self.rejected + self.repeated and self.recorded == ended

    @property
    def complete(self) -> bool:
        """Whether every row is billed."""
        return self.delivered == self.recorded and not self.rejected

    def to_document(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return asdict(self)

    def to_line(self) -> str:
        """Return it for people."""
        return (
            f"{counted(self.rows, 'row')}: {self.recorded} recorded, {self.rejected} rejected, "
            f"{self.repeated} repeated; {self.delivered} delivered, "
            f"{self.dead_lettered} dead-lettered, {self.uncertain} uncertain, "
            f"{self.not_sent} not sent"
        )
