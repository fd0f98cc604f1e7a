"""Waivers: known failures in a TOML file, each with a reason. A waiver that is no longer needed is an error.

[[waiver]]
where = "hole"
reason = "it counts positions by the cumulated mask; the specification keeps columns (ALI-4)"
link = "https://..."
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bloomref.conformance.cases import Case
from bloomref.conformance.implementation import Waiver
from bloomref.conformance.tags import tags_of
from bloomref.errors import InvalidInput, invalid
from bloomref.formats.files import regular_file

SHIPPED = Path(__file__).parent / "waivers"


@dataclass(frozen=True)
class Waivers:
    """The waivers of a run."""

    entries: tuple[Waiver, ...] = ()

    def covering(self, name: str, dtype: str, case: Case) -> list[str]:
        """Return the `where` of each waiver that matches a property, a dtype and a case."""
        names = names_of(name, dtype, case)
        return [w.where for w in self.entries if any(fnmatchcase(candidate, w.where) for candidate in names)]

    def stale(self, dtypes: Iterable[str], matched: Mapping[str, int], used: Mapping[str, int]) -> list[str]:
        """Return a sentence for each waiver that is not needed; waivers for other dtypes are ignored.

        Args:
            dtypes: the dtypes of the run.
            matched: waiver -> number of answers that it matched.
            used: waiver -> number of failures that it covered.
        """
        asked = [w.where for w in self.entries if _is_about(w, dtypes)]
        return [
            f"waiver {where!r} matches nothing: correct or remove it" for where in asked if not matched.get(where)
        ] + [
            f"waiver {where!r} is not needed: what it matches passes ({matched[where]} times); remove it"
            for where in asked
            if matched.get(where) and not used.get(where)
        ]


def _is_about(waiver: Waiver, dtypes: Iterable[str]) -> bool:
    dtype = waiver.where.rpartition("@")[2] if "@" in waiver.where else "*"
    return any(fnmatchcase(name, dtype) for name in dtypes)


def names_of(name: str, dtype: str, case: Case) -> list[str]:
    """Names that a waiver's pattern is matched against: `hole`, `hole/long`, `hole@float32`, `hole/long@float32`."""
    plain = [name, *(f"{name}/{tag}" for tag in sorted(tags_of(case)))]
    return plain + [f"{candidate}@{dtype}" for candidate in plain]


def read_waivers(files: Iterable[str]) -> tuple[Waiver, ...]:
    """Read waivers from files.

    Args:
        files: paths of TOML files, or names without `.toml` of files that come with bloomref.

    Raises:
        InvalidInput: a file is missing or not TOML, or a waiver has no reason or an unknown key.
    """
    return tuple(waiver for name in files for waiver in _read(_path(name)))


def _path(name: str) -> Path:
    if name.endswith(".toml"):
        return Path(name)
    known = sorted(path.stem for path in SHIPPED.glob("*.toml"))
    if name not in known:
        raise invalid("waivers", f"a .toml file, or one of {', '.join(known)}", repr(name))
    return SHIPPED / f"{name}.toml"


def _read(path: Path) -> Iterable[Waiver]:
    try:
        data = tomllib.loads(regular_file(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"waivers: expected a TOML file, got {path}; {error}") from None
    if set(data) - {"waiver"}:
        raise invalid(str(path), "only tables [[waiver]]", sorted(data))
    entries = data.get("waiver", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise invalid(str(path), "tables [[waiver]]", entries)
    return [_waiver(path, entry) for entry in entries]


def _waiver(path: Path, entry: dict[str, Any]) -> Waiver:
    unknown = set(entry) - {item.name for item in fields(Waiver)}
    missing = [key for key in ("where", "reason") if not str(entry.get(key, "")).strip()]
    if unknown or missing or not all(isinstance(value, str) for value in entry.values()):
        raise invalid(
            f"{path}: waiver",
            "the texts where and reason, optionally link",
            entry,
            "give the cause of the failure, and who is right",
        )
    return Waiver(**entry)
