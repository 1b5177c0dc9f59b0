"""The small JSON reports that steps hand to one another, and nothing larger than that.

A report is a frozen dataclass that also inherits from `Report`.  It holds URLs, digests and
counts; the data stays in the store.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from pathlib import Path
from typing import Any, Self


class ReportError(ValueError):
    """A file that is not the report it should be; the message names both."""


class Report:
    """Base of every report: JSON in and out, and a flat summary for people and for metadata.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class PackReport(Report):
        shards: int
    """

    __slots__ = ()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, whole or not at all; makes the folder when missing."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temp = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            temp.write_text(self.to_json() + "\n", encoding="utf-8")
            temp.rename(target)
        finally:
            temp.unlink(missing_ok=True)

    def to_json(self) -> str:
        """The whole report as a JSON object, keys sorted: equal reports, equal bytes."""
        return json.dumps(_fields(self), indent=2, sort_keys=True, ensure_ascii=False)

    def summary(self) -> dict[str, str | int | float]:
        """The scalar fields by name; `counts={"a": 1}` becomes `counts.a`, lists are left out."""
        flat: dict[str, str | int | float] = {}
        for name, value in _fields(self).items():
            pairs = (
                [(f"{name}.{key}", item) for key, item in value.items()]
                if isinstance(value, dict)
                else [(name, value)]
            )
            flat.update((key, item) for key, item in pairs if isinstance(item, str | int | float))
        return flat

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read back what `write` wrote.  Tuples come back as lists.

        Raises:
            FileNotFoundError: There is no such file.
            ReportError: It is not a report of this class.
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8"), where=os.fspath(path))

    @classmethod
    def from_json(cls, text: str, *, where: str = "report") -> Self:
        """Parse `to_json`'s output; `where` names it in errors.

        Raises:
            ReportError: Not JSON, or not the fields of this class.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ReportError(f"{where}: {error}, expected the JSON of a {cls.__name__}") from error
        wanted = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        optional = {
            name
            for name, field in wanted.items()
            if field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        }
        found = set(values) if isinstance(values, dict) else set()
        if not set(wanted) - optional <= found <= set(wanted):
            raise ReportError(
                f"{where}: found the fields {sorted(found)}, expected a {cls.__name__} with "
                f"{sorted(wanted)}; run the step that writes it again"
            )
        return cls(**values)


def _fields(report: Report) -> dict[str, Any]:
    return dataclasses.asdict(report)  # type: ignore[call-overload, no-any-return]
