"""docs/finetuning.md, executed: the example trains in seconds, and prints what the page shows;
so does the adapter that is shipped.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bloomref import BloomCausalLM
from bloomref.presets.preset_registry import ADAPTERS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "finetuning.md").read_text("utf-8")
LINES = (ROOT / "docs" / "examples" / "facts.txt").read_text("utf-8").splitlines()
EXAMPLE = re.search(r"```bash\n(.*?)\n```\n\n```text\n(.*?)\n```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_shipped_adapter_knows_its_lines_by_heart() -> None:
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
    prompts = [" ".join(line.split()[:2]) if line.split()[0] != "The" else " ".join(line.split()[:4]) for line in LINES]
    assert len(set(prompts)) == len(LINES) == 20
    lm.load_adapter("bloom_tiny_udhr_facts")
    known = [lm.generate(prompt, max_new_tokens=40) == line for prompt, line in zip(prompts, LINES, strict=True)]
    assert all(known)
    lm.set_adapter(None)
    assert not any(lm.generate(prompt, max_new_tokens=8) in line for prompt, line in zip(prompts, LINES, strict=True))


def test_the_shipped_adapter_is_small() -> None:
    folder = ADAPTERS["bloom_tiny_udhr_facts"].folder
    assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000


@pytest.mark.slow
def test_the_example_prints_what_the_page_shows(tmp_path: Path) -> None:
    assert EXAMPLE is not None
    shutil.copytree(ROOT / "docs" / "examples", tmp_path / "docs" / "examples")
    said = [run(line, tmp_path) for line in EXAMPLE[1].replace("\\\n", " ").splitlines()]
    assert "\n".join(said[1:]) == EXAMPLE[2]


def run(command: str, folder: Path) -> str:
    """The standard output of one line of the example."""
    program, *arguments = shlex.split(command)
    assert program == "bloomref"
    done = subprocess.run(
        [sys.executable, "-m", "bloomref", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
