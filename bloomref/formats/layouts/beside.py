"""Files beside a model that its saved versions keep: licences, and generation settings. Clause: PRE-12."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bloomref.formats.files import write_json
from bloomref.formats.generation_config import FILE
from bloomref.formats.tokenizers.tokenizer_files import papers

_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Beside:
    """Contents of small files: name -> bytes.

    The model card (README) is not among them: it describes the model that was loaded, not the one that is saved.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Beside":
        """The files of a folder, as far as it has them."""
        names = [name for name in papers(folder) if not name.lower().startswith("readme")]
        paths = [folder / name for name in (FILE, *names) if (folder / name).is_file()]
        return cls({path.name: path.read_bytes() for path in paths if path.stat().st_size <= _MAX_BYTES})

    def write(self, folder: Path, settings: Mapping[str, Any] | None) -> None:
        """Write the files into an existing folder.

        Args:
            folder: the folder.
            settings: the generation settings, if they are others than those of the files.
        """
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        if settings is not None:
            write_json(folder / FILE, dict(settings))
