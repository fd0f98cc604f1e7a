"""The proof that the kit finds what it should: `python -m tools.mutation_score`, in a checkout of the repository.

Every known mistake is planted in the bench and asked by the kit with its own cases, and given to `bloomref diff` as it is; every
equivalent must pass. Writes docs/proof/mistakes.json and the tables of docs/proof.md.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.conformance.diff.compare import diff
from bloomref.conformance.diff.operands import Side, side
from bloomref.conformance.mistakes import CATALOGUE, EQUIVALENTS, MISTAKES, NO_INTERMEDIATE, Mistake
from bloomref.conformance.mistakes.examples import example
from bloomref.conformance.run import runner
from tools.mutation_testing import Kill, plant
from tools.spec_tables import ROOT, fill

JSON = Path("docs/proof/mistakes.json")
PAGE = Path("docs/proof.md")
DTYPES = ("float32", "bfloat16", "float16")


def kills(mistakes: Sequence[Mistake], dtype: str, examples: int) -> list[dict[str, Any]]:
    """What the kit finds in one dtype."""
    return [_kill(found) for found in plant(mistakes, dtype, examples)]


def _kill(found: Kill) -> dict[str, Any]:
    return {
        "name": found.mistake.name,
        "found_by": found.found_by,
        "clauses": list(found.clauses),
        "case": found.case,
        "z": found.z if np.isfinite(found.z) else None,
        "questions": found.questions,
        "seconds": round(found.seconds, 3),
        "because": found.because,
    }


def naming(known: Mistake, dtype: str = "float32") -> dict[str, Any]:
    """Whether `bloomref diff` names the mistake and where it begins, in the case that shows it: by the intermediates, and by
    the logits alone."""
    case = example(known)
    with np.errstate(all="ignore"):
        made = side(f"mistake:{known.name}", dtype, case)
    oracle = side("oracle", dtype, case)
    begin = time.perf_counter()
    whole = diff(case, made, oracle)
    seconds = time.perf_counter() - begin
    alone = diff(case, Side(made.name, {"logits": made.values["logits"]}, made.tier), oracle)
    return {
        "name": known.name,
        "first": whole.first and whole.first.name,
        "first_is_right": whole.first is not None and whole.first.name == known.first,
        "named": [e.mistake.name for e in whole.explanations if e.matches],
        "named_by_logits": [e.mistake.name for e in alone.explanations if e.matches],
        "seconds": round(seconds, 3),
    }


def prove(
    mistakes: Sequence[Mistake], equivalents: Sequence[Mistake], examples: int, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Everything that the page shows; `tell` hears of the progress."""
    proof: dict[str, Any] = {
        "examples": examples,
        "catalogue": {
            m.name: {"sentence": m.sentence, "clauses": list(m.clauses), "first": m.first}
            for m in (*mistakes, *equivalents)
        },
    }
    asked = {"mistakes": (mistakes, DTYPES[:2]), "equivalents": (equivalents, DTYPES)}
    for kind, (planted, dtypes) in asked.items():
        proof[kind] = {}
        for dtype in dtypes:
            found = proof[kind][dtype] = kills(planted, dtype, examples)
            tell(f"{kind} in {dtype}: {_found(found)} of {len(found)} objected to")
    proof["naming"] = [naming(known) for known in mistakes if known.first != NO_INTERMEDIATE]
    return proof


def completed(told: dict[str, Any], tell: Callable[[str], None] = print) -> dict[str, Any]:
    """What was proven before, with what the catalogue has got since; in the order of the catalogue."""
    new = [known for known in CATALOGUE if known.name not in told["catalogue"]]
    found = prove([m for m in new if not m.equivalent], [m for m in new if m.equivalent], told["examples"], tell)
    proof: dict[str, Any] = {
        "examples": told["examples"],
        "catalogue": _ordered(told["catalogue"] | found["catalogue"]),
    }
    for kind in ("mistakes", "equivalents"):
        proof[kind] = {dtype: _joined(told[kind][dtype], found[kind][dtype]) for dtype in found[kind]}
    return proof | {"naming": _joined(told["naming"], found["naming"])}


def _joined(told: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(_ordered({entry["name"]: entry for entry in (*told, *found)}).values())


def _ordered(get_mistake: dict[str, Any]) -> dict[str, Any]:
    return {known.name: get_mistake[known.name] for known in (*MISTAKES, *EQUIVALENTS) if known.name in get_mistake}


# --- the page --------------------------------------------------------------------------------------------------------


def summary(proof: dict[str, Any]) -> str:
    """The totals."""
    count, names = len(proof["mistakes"]["float32"]), proof["naming"]
    whole = [entry for entry in names if not _over_cache(entry, proof)]
    rows = [
        *((f"mistakes found in {dtype}", f"{_found(found)} of {count}") for dtype, found in proof["mistakes"].items()),
        *(
            (f"equivalents objected to in {dtype}", f"{_found(found)} of {len(found)}")
            for dtype, found in proof["equivalents"].items()
        ),
        ("seconds until found, in float32: median, worst", _seconds(proof["mistakes"]["float32"])),
        ("`diff` names the mistake", f"{sum(_first(e['named'], e) for e in names)} of {len(names)}"),
        ("... or one that does the same there", f"{sum(e['name'] in e['named'] for e in names)} of {len(names)}"),
        (
            "`diff` names the mistake from the logits alone",
            f"{sum(_first(e['named_by_logits'], e) for e in names)} of {len(names)}",
        ),
        (
            "`diff` names the first intermediate (of those that a run in one piece shows)",
            f"{sum(e['first_is_right'] for e in whole)} of {len(whole)}",
        ),
    ]
    return _table(("what", "how many"), rows)


def _over_cache(entry: dict[str, Any], proof: dict[str, Any]) -> bool:
    return entry["first"] == "logits" and proof["catalogue"][entry["name"]]["first"] != "logits"


def _first(named: list[str], entry: dict[str, Any]) -> bool:
    return named[:1] == [entry["name"]]


def _found(kills: Iterable[dict[str, Any]]) -> int:
    return sum(bool(kill["found_by"]) for kill in kills)


def _seconds(kills: Sequence[dict[str, Any]]) -> str:
    seconds = sorted(kill["seconds"] for kill in kills if kill["found_by"])
    return f"{seconds[len(seconds) // 2]:.2f}, {seconds[-1]:.1f}" if seconds else "none"


def mistakes_table(proof: dict[str, Any]) -> str:
    """One row a mistake."""
    narrow = {kill["name"]: kill for kill in proof["mistakes"]["bfloat16"]}
    names = {entry["name"]: entry for entry in proof["naming"]}
    rows = [_row(kill, narrow[kill["name"]], names.get(kill["name"]), proof) for kill in proof["mistakes"]["float32"]]
    header = ("mistake", "breaks", "found by", "case", "Z", "seconds", "bfloat16", "`diff`")
    return _table(header, rows)


def _row(
    kill: dict[str, Any], narrow: dict[str, Any], named: dict[str, Any] | None, proof: dict[str, Any]
) -> tuple[str, ...]:
    known = proof["catalogue"][kill["name"]]
    z = "" if not kill["found_by"] else ("not finite, or refused" if kill["z"] is None else f"{kill['z']:.2g}")
    word = (
        ""
        if named is None
        else (
            "named" if _first(named["named"], named) else ("as " + named["named"][0] if named["named"] else "not named")
        )
    )
    return (
        f"{known['sentence']} (`{kill['name']}`)",
        ", ".join(known["clauses"]),
        kill["found_by"] or "**not found**",
        kill["case"],
        z,
        f"{kill['seconds']:.2f}",
        narrow["found_by"] or "not found",
        word,
    )


def equivalents_table(proof: dict[str, Any]) -> str:
    rows = []
    for i, kill in enumerate(proof["equivalents"]["float32"]):
        known = proof["catalogue"][kill["name"]]
        verdicts = [proof["equivalents"][dtype][i]["found_by"] or "passes" for dtype in DTYPES]
        rows.append(
            (f"{known['sentence']} (`{kill['name']}`)", ", ".join(known["clauses"]), *verdicts, str(kill["questions"]))
        )
    return _table(("equivalent", "allowed by", *DTYPES, "questions"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def write(proof: dict[str, Any], root: Path = ROOT) -> None:
    (root / JSON).parent.mkdir(exist_ok=True)
    (root / JSON).write_text(json.dumps(proof, indent=1) + "\n", "utf-8")
    text = (root / PAGE).read_text("utf-8")
    for name, table in {"summary": summary, "mistakes": mistakes_table, "equivalents": equivalents_table}.items():
        text = fill(text, name, table(proof))
    (root / PAGE).write_text(text, "utf-8")


def _proof(options: argparse.Namespace) -> dict[str, Any]:
    def tell(text: str) -> None:
        print(text, flush=True)

    if options.new_only:
        return completed(json.loads((ROOT / JSON).read_text("utf-8")), tell)
    return prove(MISTAKES, EQUIVALENTS, options.examples, tell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=runner.EXAMPLES, help="cases drawn for each property")
    parser.add_argument("--pages-only", action="store_true", help="write the page again from the JSON file")
    parser.add_argument("--new-only", action="store_true", help="only what the JSON file does not have yet")
    options = parser.parse_args()
    if options.pages_only:
        write(json.loads((ROOT / JSON).read_text("utf-8")))
        return
    proof = _proof(options)
    write(proof)
    print(f"{len(CATALOGUE)} in the catalogue")
    print(summary(proof))


if __name__ == "__main__":
    main()
