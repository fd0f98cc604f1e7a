"""docs/findings.md: every script is linked and runs, and every waiver links to a heading."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bloomref.conformance.run.waivers import SHIPPED, read_waivers

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/findings.md"
SCRIPTS = sorted((ROOT / "docs/findings").glob("*.py"))
NEEDS = {
    "transformers": ("torch", "transformers"),
    "keras_hub": ("keras_hub", "jax"),
    "ctranslate2": ("ctranslate2", "torch", "transformers"),
    "llama_cpp": ("llama_cpp", "gguf"),
}


def anchors(page: str) -> set[str]:
    """Anchors of the headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def peer(script: Path) -> str:
    return next(name for name in NEEDS if script.name.startswith(name))


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.toml")), ids=lambda file: file.stem)
def test_a_waiver_leads_to_its_finding(file):
    known = anchors(PAGE.read_text("utf-8"))
    for waiver in read_waivers([file.stem]):
        page, _, anchor = waiver.link.partition("#")
        assert page == "docs/findings.md"
        assert anchor in known


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_named_in_the_page(script):
    assert f"findings/{script.name})" in PAGE.read_text("utf-8")
    assert len(script.read_text("utf-8").splitlines()) < 30


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_runs(script, tmp_path):
    missing = [name for name in NEEDS[peer(script)] if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout


def test_anchors():
    assert anchors("# A b\ntext\n## C: d-e, `f`\n") == {"a-b", "c-d-e-f"}
