"""Mutation score of the kit: `python -m tools.mutation_score`, in a checkout of the repository.

The kit checks a mutant for every known mistake, with its own cases. `bloomref diff` compares each mutant with the
oracle, in the small case that shows the mistake. Every equivalent must pass.
Writes docs/proof/mistakes.json and the tables of docs/proof.md.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.conformance.diff.compare import diff
from bloomref.conformance.diff.operands import Operand, operand
from bloomref.conformance.mistakes import CATALOGUE, EQUIVALENTS, MISTAKES, NO_INTERMEDIATE, Mistake, get_mistake
from bloomref.conformance.mistakes.examples import example
from bloomref.conformance.run import runner
from tools.mutation_testing import Detection, detect
from tools.spec_tables import ROOT, fill

JSON = Path("docs/proof/mistakes.json")
PAGE = Path("docs/proof.md")
DTYPES = ("float32", "bfloat16", "float16")
WIDER = "float64"
"""Dtype of the mistakes that no narrower dtype shows."""


def entry(detection: Detection) -> dict[str, Any]:
    """A detection as JSON."""
    return {
        "name": detection.mistake.name,
        "found_by": detection.found_by,
        "clauses": list(detection.clauses),
        "case": detection.case,
        "z": detection.z if np.isfinite(detection.z) else None,
        "questions": detection.questions,
        "seconds": round(detection.seconds, 3),
        "because": detection.because,
    }


def naming(known: Mistake, dtype: str = "float32") -> dict[str, Any]:
    """Run `bloomref diff` on the case that shows a mistake: with all intermediates, and with the logits alone.

    Returns the first intermediate that differs and the names of the mistakes that match.
    """
    case = example(known)
    with np.errstate(all="ignore"):
        mutant = operand(f"mistake:{known.name}", dtype, case)
    oracle = operand("oracle", dtype, case)
    begin = time.perf_counter()
    whole = diff(case, mutant, oracle)
    seconds = time.perf_counter() - begin
    logits = diff(case, Operand(mutant.name, {"logits": mutant.values["logits"]}, mutant.tier), oracle)
    return {
        "name": known.name,
        "first": whole.first and whole.first.name,
        "first_is_right": whole.first is not None and whole.first.name == known.first,
        "named": [e.mistake.name for e in whole.explanations if e.matches],
        "named_by_logits": [e.mistake.name for e in logits.explanations if e.matches],
        "seconds": round(seconds, 3),
    }


def described(known: Mistake) -> dict[str, Any]:
    """A mistake of the catalogue as JSON."""
    return {"sentence": known.sentence, "clauses": list(known.clauses), "first": known.first, "dtype": known.dtype}


def prove(
    mistakes: Sequence[Mistake],
    equivalents: Sequence[Mistake],
    examples: int,
    report: Callable[[str], None] = print,
    jobs: int = 1,
) -> dict[str, Any]:
    """Return the content of docs/proof/mistakes.json.

    Args:
        mistakes: those to detect, in float32 and bfloat16, or in float64.
        equivalents: those that must pass, in all of `DTYPES`.
        examples: number of random cases for each property.
        report: called with each line of progress.
        jobs: number of processes; each takes a dtype at a time.
    """
    proof: dict[str, Any] = {
        "examples": examples,
        "catalogue": {known.name: described(known) for known in (*mistakes, *equivalents)},
        "mistakes": {},
        "equivalents": {},
    }
    usual = [known for known in mistakes if known.dtype != WIDER]
    wider = [known for known in mistakes if known.dtype == WIDER]
    runs = [("mistakes", dtype, usual) for dtype in DTYPES[:2]]
    runs += [("mistakes", WIDER, wider), *(("equivalents", dtype, equivalents) for dtype in DTYPES)]
    with ProcessPoolExecutor(jobs) as pool:
        results = pool.map(
            _entries,
            [[known.name for known in run[2]] for run in runs],
            [run[1] for run in runs],
            [examples] * len(runs),
        )
        for (kind, dtype, _), entries in zip(runs, results, strict=True):
            proof[kind][dtype] = entries
            report(f"{kind} in {dtype}: {_detected(entries)} of {len(entries)} detected")
        visible = [known.name for known in mistakes if known.first != NO_INTERMEDIATE]
        proof["naming"] = list(pool.map(_naming, visible, chunksize=8))
    return proof


def _entries(names: Sequence[str], dtype: str, examples: int) -> list[dict[str, Any]]:
    mutants = [get_mistake(name) for name in names]
    return [entry(detection) for detection in detect(mutants, dtype, examples)] if mutants else []


def _naming(name: str) -> dict[str, Any]:
    known = get_mistake(name)
    return naming(known, known.dtype)


def completed(proof: dict[str, Any], report: Callable[[str], None] = print, jobs: int = 1) -> dict[str, Any]:
    """Return a proof with the catalogue's new mistakes added, in the order of the catalogue."""
    new = [known for known in CATALOGUE if known.name not in proof["catalogue"]]
    mistakes = [known for known in new if not known.equivalent]
    equivalents = [known for known in new if known.equivalent]
    added = prove(mistakes, equivalents, proof["examples"], report, jobs)
    whole: dict[str, Any] = {
        "examples": proof["examples"],
        "catalogue": _ordered(proof["catalogue"] | added["catalogue"]),
    }
    for kind in ("mistakes", "equivalents"):
        whole[kind] = {dtype: _joined(proof[kind].get(dtype, []), added[kind][dtype]) for dtype in added[kind]}
    return whole | {"naming": _joined(proof["naming"], added["naming"])}


def _joined(*parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(_ordered({each["name"]: each for part in parts for each in part}).values())


def _ordered(by_name: dict[str, Any]) -> dict[str, Any]:
    return {known.name: by_name[known.name] for known in (*MISTAKES, *EQUIVALENTS) if known.name in by_name}


# --- the page --------------------------------------------------------------------------------------------------------


def summary(proof: dict[str, Any]) -> str:
    """Table of the totals."""
    names = proof["naming"]
    whole = [name for name in names if not _over_cache(name, proof)]
    rows = [
        *(
            (f"mistakes detected in {dtype}", f"{_detected(run)} of {len(run)}")
            for dtype, run in proof["mistakes"].items()
        ),
        *(
            (f"equivalents that fail in {dtype}", f"{_detected(run)} of {len(run)}")
            for dtype, run in proof["equivalents"].items()
        ),
        ("seconds until a mistake is detected in float32: median, largest", _seconds(proof["mistakes"]["float32"])),
        ("`diff` names the mistake first", f"{sum(_is_first(e['named'], e) for e in names)} of {len(names)}"),
        (
            "`diff` names it among those of the same effect",
            f"{sum(e['name'] in e['named'] for e in names)} of {len(names)}",
        ),
        (
            "`diff` names the mistake first from the logits alone",
            f"{sum(_is_first(e['named_by_logits'], e) for e in names)} of {len(names)}",
        ),
        (
            "`diff` finds the first wrong intermediate (mistakes that show without a cache)",
            f"{sum(e['first_is_right'] for e in whole)} of {len(whole)}",
        ),
    ]
    return _table(("result", "number"), rows)


def _over_cache(name: dict[str, Any], proof: dict[str, Any]) -> bool:
    return name["first"] == "logits" and proof["catalogue"][name["name"]]["first"] != "logits"


def _is_first(names: list[str], entry: dict[str, Any]) -> bool:
    return names[:1] == [entry["name"]]


def _detected(entries: Iterable[dict[str, Any]]) -> int:
    return sum(bool(each["found_by"]) for each in entries)


def _seconds(entries: Sequence[dict[str, Any]]) -> str:
    seconds = sorted(each["seconds"] for each in entries if each["found_by"])
    return f"{seconds[len(seconds) // 2]:.2f}, {seconds[-1]:.1f}" if seconds else "none"


def mistakes_table(proof: dict[str, Any]) -> str:
    """Table of the mistakes, one row each."""
    by_dtype = {dtype: _by_name(run) for dtype, run in proof["mistakes"].items()}
    names = _by_name(proof["naming"])
    rows = [
        _row(by_dtype[known["dtype"]][name], by_dtype["bfloat16"].get(name), names.get(name), proof)
        for name, known in proof["catalogue"].items()
        if name in by_dtype[known["dtype"]]
    ]
    header = ("mistake", "what it does", "violates", "detected by", "case", "Z", "seconds", "bfloat16", "`diff`")
    return _table(header, rows)


def _by_name(entries: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in entries}


def _row(
    wide: dict[str, Any], narrow: dict[str, Any] | None, named: dict[str, Any] | None, proof: dict[str, Any]
) -> tuple[str, ...]:
    known = proof["catalogue"][wide["name"]]
    z = "" if not wide["found_by"] else ("not finite, or refused" if wide["z"] is None else f"{wide['z']:.2g}")
    return (
        f"`{wide['name']}`",
        known["sentence"],
        ", ".join(known["clauses"]),
        wide["found_by"] or "**not detected**",
        wide["case"],
        z,
        f"{wide['seconds']:.2f}",
        narrow["found_by"] or "not detected" if narrow else f"{known['dtype']} only",
        _verdict_of_diff(named),
    )


def _verdict_of_diff(named: dict[str, Any] | None) -> str:
    if named is None:
        return ""
    if _is_first(named["named"], named):
        return "named"
    return f"as `{named['named'][0]}`" if named["named"] else "not named"


def equivalents_table(proof: dict[str, Any]) -> str:
    """Table of the equivalents, one row each."""
    rows = []
    for i, each in enumerate(proof["equivalents"]["float32"]):
        known = proof["catalogue"][each["name"]]
        verdicts = [proof["equivalents"][dtype][i]["found_by"] or "passes" for dtype in DTYPES]
        clauses = ", ".join(known["clauses"])
        rows.append((f"`{each['name']}`", known["sentence"], clauses, *verdicts, str(each["questions"])))
    return _table(("equivalent", "what it does", "allowed by", *DTYPES, "checks"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def write(proof: dict[str, Any], root: Path = ROOT) -> None:
    """Write the JSON file and the tables of the page."""
    (root / JSON).parent.mkdir(exist_ok=True)
    (root / JSON).write_text(json.dumps(proof, indent=1) + "\n", "utf-8")
    text = (root / PAGE).read_text("utf-8")
    for name, table in {"summary": summary, "mistakes": mistakes_table, "equivalents": equivalents_table}.items():
        text = fill(text, name, table(proof))
    (root / PAGE).write_text(text, "utf-8")


def read(root: Path = ROOT) -> dict[str, Any]:
    """Read the JSON file. Descriptions of mistakes are replaced by those of the catalogue."""
    proof: dict[str, Any] = json.loads((root / JSON).read_text("utf-8"))
    current = {known.name: described(known) for known in CATALOGUE}
    return proof | {"catalogue": {name: current[name] for name in proof["catalogue"]}}


def _proof(options: argparse.Namespace) -> dict[str, Any]:
    def report(text: str) -> None:
        print(text, flush=True)

    if options.new_only:
        return completed(read(), report, options.jobs)
    return prove(MISTAKES, EQUIVALENTS, options.examples, report, options.jobs)


def main() -> None:
    """Run the mutants, and write the JSON file and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=runner.EXAMPLES, help="random cases for each property")
    parser.add_argument("--pages-only", action="store_true", help="write the page from the JSON file, without a run")
    parser.add_argument("--new-only", action="store_true", help="run only the mistakes that are not in the JSON file")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes; seconds are comparable with 1 only")
    options = parser.parse_args()
    if options.pages_only:
        write(read())
        return
    proof = _proof(options)
    write(proof)
    print(f"{len(CATALOGUE)} in the catalogue")
    print(summary(proof))


if __name__ == "__main__":
    main()
