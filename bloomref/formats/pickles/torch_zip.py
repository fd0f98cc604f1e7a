"""Members of the ZIP files that torch writes: their places in the file, without unpacking anything.

torch stores its members uncompressed, so each is a range of the file. Anything else is refused: compressed or
encrypted members, overlapping ranges, names that are repeated or leave the archive. Clause: WGT-31.
"""

import mmap
import struct
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import BinaryIO

from bloomref.errors import BadWeights, describe

MAX_MEMBERS = 100_000
_HEADER = 30  # bytes of a local header before the member's name
_ENCRYPTED = 1


@dataclass(frozen=True)
class Member:
    """Range [start, stop) of a file; `checksum` is its CRC-32, or 0 if torch was told to write none."""

    name: str
    start: int
    stop: int
    checksum: int


def members(file: BinaryIO, content: mmap.mmap, name: str) -> dict[str, Member]:
    """Members of a ZIP file, by their names without the archive's top folder.

    Args:
        file: the open file.
        content: its memory map.
        name: name of the file in error messages.

    Raises:
        BadWeights: when the file is damaged or hostile.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error, OSError) as error:
        raise BadWeights(describe(name, "a whole ZIP file of torch.save", f"{error}; it is cut or damaged")) from error
    if len(infos) > MAX_MEMBERS:
        raise BadWeights(describe(name, f"at most {MAX_MEMBERS} members", f"{len(infos)}"))
    entries = [_member(info, content, name) for info in infos]
    by_name = {member.name: member for member in entries}
    if len(by_name) < len(entries) or len({info.filename.partition("/")[0] for info in infos}) > 1:
        raise BadWeights(f"{name}: expected members of different names in one folder, got others")
    ordered = sorted(entries, key=lambda member: member.start)
    for before, after in pairwise(ordered):
        if after.start < before.stop:
            raise BadWeights(f"{name}: expected separate members, got {before.name!r:.80} and {after.name!r:.80}")
    return by_name


def _member(info: zipfile.ZipInfo, content: mmap.mmap, name: str) -> Member:
    top, _, rest = info.filename.partition("/")
    if not top or not rest or "\\" in rest or ".." in (top, *PurePosixPath(rest).parts) or rest.startswith("/"):
        raise BadWeights(f"{name}: expected members inside one folder, got {info.filename!r:.80}")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
        raise BadWeights(
            f"{name}: {rest!r:.80}: expected a member as torch stores it, got a compressed or encrypted one"
        )
    # a damaged directory makes zipfile count offsets from before the file
    header = content[info.header_offset : info.header_offset + _HEADER] if info.header_offset >= 0 else b""
    if len(header) < _HEADER or header[:4] != b"PK\3\4":
        raise BadWeights(f"{name}: {rest!r:.80}: expected its header at byte {info.header_offset}, got other bytes")
    start = info.header_offset + _HEADER + sum(struct.unpack("<HH", header[26:]))
    stop = start + info.file_size
    if info.file_size != info.compress_size or stop > len(content):
        raise BadWeights(describe(f"{name}: {rest!r:.80}", "a range of the file", f"{info.file_size} bytes at {start}"))
    return Member(rest, start, stop, info.CRC)
