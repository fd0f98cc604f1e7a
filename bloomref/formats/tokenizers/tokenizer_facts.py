"""Files beside a vocabulary: tokenizer_config.json, special_tokens_map.json and chat templates. Clause: PRE-12.

Every key is carried from load to save, known or not. Chat templates have two places: the key `chat_template` of
tokenizer_config.json, or the files chat_template.jinja (the default one) and additional_chat_templates/NAME.jinja,
which win. They are written where they were read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bloomref.errors import BadWeights, describe, invalid
from bloomref.formats.files import read_json, regular_file, write_json

CONFIG = "tokenizer_config.json"
SPECIALS = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
TEMPLATES = "additional_chat_templates"
_DEFAULT = "default"
_MAX_TEMPLATE_BYTES = 10_000_000


@dataclass(frozen=True)
class TokenizerFacts:
    """The contents of these files, as plain values that can be pickled.

    Args:
        config: the object in tokenizer_config.json.
        specials: the object in special_tokens_map.json.
        templates: name -> chat template; the one that is used without a name is "default".
        in_files: True: the templates have files.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    specials: Mapping[str, Any] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    in_files: bool = False

    @classmethod
    def read(cls, folder: Path) -> "TokenizerFacts":
        """The facts of a folder; all of its files may be missing.

        Raises:
            BadWeights: when a file is damaged.
        """
        config, specials = (read_json(folder / n) if (folder / n).is_file() else {} for n in (CONFIG, SPECIALS))
        files = {path.stem: path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
        if (folder / TEMPLATE).is_file():
            files[_DEFAULT] = folder / TEMPLATE
        templates = {name: _read_template(path) for name, path in files.items()} or _stored(config.get("chat_template"))
        return cls(config, specials, templates, bool(files))

    def named(self, role: str) -> str | None:
        """The special token of a role such as "bos_token"; None if no file names it. tokenizer_config.json wins.

        Raises:
            BadWeights: for a token that is no valid Unicode.
        """
        for file, source in (("tokenizer_config.json", self.config), ("special_tokens_map.json", self.specials)):
            value = source.get(role)
            token = value.get("content") if isinstance(value, dict) else value
            if isinstance(token, str):
                if any("\ud800" <= character <= "\udfff" for character in token):
                    raise BadWeights(describe(f"{file}: {role}", "valid Unicode", repr(token)))
                return token
        return None

    def with_templates(self, templates: object) -> "TokenizerFacts":
        """These facts with other chat templates: one text, name -> text, or None.

        Raises:
            InvalidInput: for anything else, and for a name that is not a plain file name.
        """
        named = {_DEFAULT: templates} if isinstance(templates, str) else {} if templates is None else templates
        if not isinstance(named, Mapping) or not all(isinstance(t, str) for item in named.items() for t in item):
            raise invalid("chat_template", "a text, a dictionary {name: text}, or None", templates)
        for name in named:
            if not name or Path(name).name != name or "\\" in name:
                raise invalid("chat_template", "names of templates that are plain file names", repr(name))
        return replace(self, templates=dict(named), in_files=self.in_files or "chat_template" not in self.config)

    def write(self, folder: Path, special: Mapping[str, str]) -> None:
        """Write the files into an existing folder.

        Args:
            folder: the folder to write.
            special: role -> token of the vocabulary, for the roles that the files do not name.
        """
        config = {"tokenizer_class": "BloomTokenizerFast", "padding_side": "left", "add_prefix_space": False}
        config |= {**special, **self.config}
        if "chat_template" in config:
            config["chat_template"] = self._as_stored()
        write_json(folder / CONFIG, config)
        write_json(folder / SPECIALS, {**special, **self.specials})
        if self.in_files:
            for name, text in self.templates.items():
                path = folder / TEMPLATE if name == _DEFAULT else folder / TEMPLATES / f"{name}.jinja"
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, "utf-8", newline="")

    def _as_stored(self) -> Any:
        """The templates as tokenizer_config.json has them."""
        if set(self.templates) <= {_DEFAULT}:
            return self.templates.get(_DEFAULT)
        return [{"name": name, "template": text} for name, text in self.templates.items()]


def _stored(value: Any) -> dict[str, str]:
    """The templates of a tokenizer_config.json: a text, or a list of objects with a name and a template."""
    try:
        items = {_DEFAULT: value} if isinstance(value, str) else {t["name"]: t["template"] for t in value or ()}
    except (TypeError, KeyError):
        items = {_DEFAULT: value}
    if not all(isinstance(text, str) for item in items.items() for text in item):
        raise BadWeights(describe(f"{CONFIG}: chat_template", "a text, or a list of names and templates", value))
    return items


def _read_template(path: Path) -> str:
    if regular_file(path).stat().st_size > _MAX_TEMPLATE_BYTES:
        raise BadWeights(describe(path.name, f"at most {_MAX_TEMPLATE_BYTES} bytes", f"{path.stat().st_size} bytes"))
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadWeights(f"{path.name}: expected a template in UTF-8, got {error}") from None
