"""`bloomref backends`: list the backends, and why a backend does not work on this machine."""

import sys
from typing import Any

from bloomref.cli.shared import DEFAULT_PRESET, Json, print_json
from bloomref.dtypes import dtype_policy
from bloomref.errors import Unsupported
from bloomref.runtime import registry


def command(json: Json = False) -> None:
    """List the backends: installed or not, and whether they run the embedded preset in float32 on this machine.

    Example: bloomref backends
    """
    rows = [_row(name) for name in dict.fromkeys([registry.REFERENCE, *registry.INSTALL, *registry.names()])]
    if json:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # plain text: a reason may have brackets, which are markup in a str

    table = Table("backend", "installed", "works here", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        works = "yes" if row["works"] else f"no: {row['reason']}"
        table.add_row(row["backend"], "yes" if row["installed"] else "no", Text(works))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)


def _row(name: str) -> dict[str, Any]:
    """Row of the table. `reason` is None if the backend works; `install` is the command to install a missing one."""
    from bloomref.presets.preset_registry import PRESETS

    installed, install = True, None
    try:
        reason = registry.load(name).unsupported(PRESETS[DEFAULT_PRESET].config, dtype_policy())
    except Unsupported as error:
        reason = str(error).removeprefix(f"backend {name!r}: ")
        installed = name in registry.names() and not isinstance(error.__cause__, ImportError)
        install = None if installed else registry.INSTALL.get(name)
    return {"backend": name, "installed": installed, "works": reason is None, "reason": reason, "install": install}
