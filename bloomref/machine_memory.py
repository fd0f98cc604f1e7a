"""The memory of this machine, and the check that a request can fit into it before anything is allocated."""

import os
import sys
from functools import cache
from pathlib import Path

from bloomref.errors import Unsupported

if sys.platform != "win32":
    import resource

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files in which Linux states the limit of a container."""


@cache
def machine_bytes() -> int:
    """Bytes of memory of the machine, or of the container or this process if they may have less.

    2^63 - 1 where the system does not say.
    """
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError, AttributeError):  # no such value, or Windows
        limits = [2**63 - 1]
    if sys.platform != "win32":
        limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])  # -1: none
    for name in _LIMITS:
        try:
            limits.append(int(Path(name).read_text()))
        except (OSError, ValueError):  # no container, or one without a limit
            continue
    return min(limit for limit in limits if limit > 0)


def check_memory(what: str, needed: int, hint: str = "") -> None:
    """Refuse what cannot fit into this machine at all.

    Args:
        what: the arrays, for the message: "the weights".
        needed: their size in bytes.
        hint: how to need less.

    Raises:
        Unsupported: with both numbers.
    """
    if needed > machine_bytes():
        message = f"{what}: expected at most {_size(machine_bytes())}, the memory of this machine, got {_size(needed)}"
        raise Unsupported(message + (f"; {hint}" if hint else ""))


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count < 10**24 else "more than 10^15 GB"
