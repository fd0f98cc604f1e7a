"""`bloomref backends`: list the backends, and why a backend does not work on this machine."""

import sys
from typing import Any

from bloomref.cli.shared import DEFAULT_PRESET, Json, compile_kernels, print_json
from bloomref.dtypes import POLICIES
from bloomref.errors import BadBackend, Unsupported
from bloomref.runtime import registry


def command(json: Json = False) -> None:
    """List the backends: installed or not, and whether each runs a tiny model on this machine, in float32 if it can.

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
        works = f"no: {row['reason']}" if row["reason"] else f"yes, in {', '.join(row['dtypes'])}"
        table.add_row(row["backend"], "yes" if row["installed"] else "no", Text(works))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)


def _row(name: str) -> dict[str, Any]:
    """Row of the table.

    `reason` is None if the backend works; `install` is the command to install a missing one; `dtypes` are the policies
    in which it says that it runs.
    """
    installed, install = True, None
    dtypes: list[str] = []
    try:
        dtypes, reason = _trial(name)
    except (BadBackend, Unsupported) as error:
        reason = str(error).removeprefix(f"backend {name!r}: ")
        missing = isinstance(error, Unsupported) and isinstance(error.__cause__, ImportError)
        installed = name in registry.names() and not missing
        install = None if installed else registry.INSTALL.get(name)
    row = {"backend": name, "installed": installed, "works": reason is None, "reason": reason, "install": install}
    return row | {"dtypes": dtypes if reason is None else []}


def _trial(name: str) -> tuple[list[str], str | None]:
    """Run a tiny model on a backend in the first policy that it supports.

    Returns:
        The names of the policies that it supports, and the reason if the model does not run.
    """
    from bloomref.presets.preset_registry import PRESETS
    from bloomref.runtime import trial

    backend = registry.load(name)
    config = PRESETS[DEFAULT_PRESET].config.replace(num_layers=1, vocabulary_size=64)
    policies = sorted(POLICIES.values(), key=lambda policy: policy.name != "float32")
    reasons = {policy: registry.reason_of(backend, config, policy) for policy in policies}
    supported = [policy for policy, reason in reasons.items() if reason is None]
    if not supported:
        return [], reasons[policies[0]]
    compile_kernels(backend, supported[0], quiet=False)
    return [policy.name for policy in supported], trial.failure(backend, config, supported[0])
