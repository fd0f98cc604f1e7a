"""The vectors of specs/vectors: the command writes them, right models pass them, and every known mistake fails."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bloomref.cli.app import run as cli
from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import params_of
from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.implementation import Capabilities, Waiver
from bloomref.conformance.mistakes import EQUIVALENTS, MISTAKES, get_mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.run.results import Counts
from bloomref.conformance.run.waivers import Waivers
from bloomref.conformance.subject import Subject
from bloomref.conformance.vectors import read
from bloomref.conformance.vectors.ask import NAME, VectorFailure, ask, ask_all, check
from bloomref.conformance.vectors.author import weight_files, write
from bloomref.conformance.vectors.author.check import EXPECTED, close, lint
from bloomref.conformance.vectors.author.check import check as check_folder
from bloomref.conformance.vectors.author.draft import TIER_NAMES
from bloomref.conformance.vectors.author.notes import NOTES
from bloomref.conformance.vectors.author.schema import SCHEMA, problems
from bloomref.conformance.vectors.judge import judge
from bloomref.errors import InvalidInput, Unsupported
from bloomref.formats.safetensors_io import SafetensorsFile
from tools.vector_mutation_score import failed_vectors

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "specs/vectors"
VECTORS = {vector.id: vector for vector in read.read(FOLDER)}
SLOW = ("alibi", "attention", "cache", "gradients")  # a second or more each


def named(vector: read.Vector) -> str:
    return vector.id


def slow(*values: str) -> list:
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


# --- the files -------------------------------------------------------------------------------------------------------


def test_there_are_enough_of_every_kind():
    kinds = [vector.entry["expect"] for vector in VECTORS.values()]
    assert len(VECTORS) >= 100
    assert {kind: kinds.count(kind) for kind in kinds}.keys() == {"valid", "invalid", "unspecified"}
    topics = {clause[:3] for vector in VECTORS.values() for clause in vector.entry["clauses"]}
    assert topics >= {"CFG", "EMB", "ALI", "ATT", "MLP", "MOD", "KVC", "GEN", "GRD", "LRA", "WGT", "NUM"}
    assert f"This folder has {len(VECTORS)} questions" in (FOLDER / write.README).read_text("utf-8")
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 3e6


@pytest.mark.clause("VEC-1", "VEC-2")
def test_they_are_well_formed():
    assert list(lint(FOLDER)) == []
    assert json.loads((FOLDER / write.SCHEMA_FILE).read_text("utf-8")) == SCHEMA


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    (folder / "expected").mkdir()
    weight_files.write_folders(folder)
    return folder


def test_the_folders_of_weights_are_those_that_the_command_writes(folders):
    for path in [
        path for path in folders.rglob("*") if path.is_file() and path.parent.parent.name in ("checkpoints", "adapters")
    ]:
        assert path.read_bytes() == (FOLDER / path.relative_to(folders)).read_bytes(), path


@pytest.mark.parametrize("topic", [*(topic for topic in write.AUTHORS if topic not in SLOW), *slow(*SLOW)])
@pytest.mark.clause("VEC-4", "VEC-5")
def test_the_numbers_are_the_references(topic, folders):
    write.write_topic(folders, topic, write.AUTHORS[topic]())
    assert (folders / f"{topic}.json").read_text("utf-8") == (FOLDER / f"{topic}.json").read_text("utf-8")
    path = f"expected/{topic}.safetensors"
    if (FOLDER / path).exists():
        old, new = SafetensorsFile(FOLDER / path), SafetensorsFile(folders / path)
        assert list(old.entries) == list(new.entries)
        for name in new.entries:
            assert close(old.view(name), new.view(name), 1e-6 if name.endswith("/sigma") else EXPECTED), name


@pytest.mark.slow
@pytest.mark.clause("VEC-5")
def test_they_are_written_twice_with_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write.write(tmp_path / name)
    assert write.listing(tmp_path / "one") == write.listing(FOLDER)
    for name in write.listing(FOLDER):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert check_folder(tmp_path / "one") == []


@pytest.mark.clause("VEC-3")
def test_weights_are_exact_in_every_dtype_that_is_asked():
    for vector in (vector for vector in VECTORS.values() if vector.entry.get("model", "").startswith("models/")):
        asked = {}
        for _, tensors in vector.answers():
            sigma = next(iter(tensors.values()))[1]
            asked = {name: not np.isnan(sigma[i]).any() for i, name in enumerate(TIER_NAMES)}
        file = SafetensorsFile(vector.path("model") / "model.safetensors")
        for dtype, name in ((np.float16, "float16"), (ml_dtypes.bfloat16, "bfloat16")):
            if asked.get(name):
                assert all(np.array_equal(file.view(key).astype(dtype), file.view(key)) for key in file.entries), (
                    vector.id
                )


# --- what the check finds --------------------------------------------------------------------------------------------


def changed(folder: Path, topic: str, change) -> Path:
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    data = json.loads((folder / f"{topic}.json").read_text("utf-8"))
    change(data)
    (folder / f"{topic}.json").write_text(json.dumps(data), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data["tests"].append(data["tests"][0]), "is there 2 times"),
        (lambda data: data["tests"][0]["clauses"].append("XYZ-99"), "no clause XYZ-99"),
        (lambda data: data["tests"][0]["flags"].append("new"), "flag new: it has no note"),
        (lambda data: data["notes"].update(old={"bug": "a", "effect": "b", "mistakes": ["c"]}), "no test has this flag"),
        (lambda data: data["notes"]["gelu"]["mistakes"].append("none"), "no known mistake is called none"),
        (lambda data: data["tests"][0].update(model="models/none"), "no folder models/none"),
        (lambda data: data["tests"][0]["answers"][0]["tensors"].update(logits="x"), "no tensor x"),
        (lambda data: data["tests"].pop(), "no test names it"),
        (lambda data: data["tests"][0].update(expect="invalid"), "that is invalid cannot have answers"),
        (lambda data: data["tests"][0].update(expect="unspecified"), "needs several answers"),
        (lambda data: data["tests"][0].update(expect="acceptable"), "expected one of"),
        (lambda data: data["tests"][0].update(more=1), "more is not known"),
        (lambda data: data["tests"][0].pop("comment"), "comment is missing"),
        (lambda data: data["tests"][0].update(id="MLP 1"), "expected a text like"),
        (lambda data: data["tests"][0].update(flags=[]), "it is empty"),
        (lambda data: data.update(tests={}), "expected array, got dict"),
    ],
)  # fmt: skip
@pytest.mark.clause("VEC-1", "VEC-2")
def test_the_lint_finds(tmp_path, change, says):
    assert any(says in text for text in lint(changed(tmp_path, "mlp", change)))


def test_the_schema_takes_what_is_right():
    assert list(problems(json.loads((FOLDER / "mlp.json").read_text("utf-8")), SCHEMA)) == []


@pytest.mark.clause("VEC-5")
def test_last_bits_may_differ_and_nothing_else():
    value = np.array([1.0, -3.0, np.inf, np.nan])
    assert close(value, value * (1 + 1e-15), 1e-12)
    assert not close(value, value * (1 + 1e-9), 1e-12)
    assert not close(value, value * [1, 1, -1, 1], 1e-12)
    assert not close(value, value[:2], 1e-12)
    assert not close(np.array([1.0, np.inf]), np.array([1.0, 2.0]), 1e-12)


@pytest.fixture
def quick(monkeypatch):
    """A command that writes two topics only."""
    monkeypatch.setattr(write, "AUTHORS", {name: write.AUTHORS[name] for name in ("config", "mlp")})


@pytest.mark.usefixtures("quick")
@pytest.mark.clause("VEC-2", "VEC-5")
def test_the_command_writes_and_checks(tmp_path, capsys):
    target = tmp_path / "vectors"
    target.mkdir()
    (target / "README.md").write_text("by hand")
    (target / "old.json").write_text("{}")
    assert cli(["vectors", "-o", str(target)]) == 0
    assert "written to" in capsys.readouterr().out
    assert (target / "README.md").exists()
    assert not (target / "old.json").exists()
    assert cli(["vectors", "--check", "--folder", str(target)]) == 0
    assert "vectors are correct" in capsys.readouterr().out
    spoil(target / "expected/mlp.safetensors")
    (target / "models/plain/config.json").unlink()
    (target / "extra.txt").write_text("")
    assert cli(["vectors", "--check", "--folder", str(target), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["problems"]
    assert [text.partition(":")[0] for text in found] == [
        "models/plain/config.json",
        "extra.txt",
        "expected/mlp.safetensors",
    ]


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 8  # of the exponent of the last number
    path.write_bytes(data)


# --- right implementations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *slow("float64", "float16")])
@pytest.mark.clause("VEC-7", "VEC-8", "VEC-10")
def test_the_reference_passes(dtype):
    subject, counts = Subject(Backend("numpy"), dtype), Counts(NAME, dtype)
    for topic in write.AUTHORS:
        ask_all(subject, topic, Waivers(), counts, FOLDER)
    wide = dtype in ("float32", "float64")
    assert counts.passed >= (len(VECTORS) if wide else 150)
    assert counts.passed + counts.inconclusive == len(VECTORS)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", EQUIVALENTS, ids=lambda mistake: mistake.name)
@pytest.mark.clause("VEC-13")
def test_no_vector_objects_to_an_equivalent(mistake):
    assert list(failed_vectors(mistake, VECTORS.values())) == []


@pytest.mark.clause("VEC-12")
def test_missing_features_are_not_asked():
    class Small(InstrumentedImplementation):
        capabilities = Capabilities(masks=("real",), features=frozenset({"batch"}), max_time=100)

    counts = Counts(NAME, "float32")
    for topic in ("alibi", "cache"):
        ask_all(Subject(Small(), "float32"), topic, Waivers(), counts, FOLDER)
    asked = [v for v in VECTORS.values() if v.topic in ("alibi", "cache") and v.entry["ask"] in ("logits", "in_pieces")]
    simple = [v for v in asked if v.case.kind == "real" and v.case.time <= 100]
    assert counts.passed == len(simple)
    assert 0 < counts.passed < len(asked)


# --- wrong ones ------------------------------------------------------------------------------------------------------


FAST = ("front-door", "gelu", "mask-hole", "qkv-layout")


@pytest.mark.parametrize(
    "flag", [*FAST, *slow(*(flag for flag, note in NOTES.items() if note.mistakes and flag not in FAST))]
)
@pytest.mark.clause("VEC-13")
def test_a_flag_finds_the_mistakes_of_its_note(flag):
    carrying = [vector for vector in VECTORS.values() if flag in vector.entry["flags"]]
    mistakes = [get_mistake(name) for name in NOTES[flag].mistakes]
    assert [known.name for known in mistakes if not any(failed_vectors(known, carrying, known.dtype))] == []


@pytest.mark.clause("VEC-13")
def test_every_mistake_is_in_a_note():
    """No vector asks for adapters in HDF5 files, for gradients of factors, or for steps, draws and merged weights."""
    unasked = {"lora-heads", "decoding", "merge"}
    known = [mistake for mistake in MISTAKES if not unasked & set(mistake.needs)]
    fitting = {mistake.name for mistake in known if not (mistake.is_of_gradients and mistake.is_of_adapters)}
    assert fitting == {name for note in NOTES.values() for name in note.mistakes}


def test_notes_stand_in_the_order_of_their_names():
    assert list(NOTES) == sorted(NOTES)


@pytest.mark.clause("VEC-10", "VEC-11")
def test_a_hole_may_be_read_in_two_ways_and_no_other():
    def failing(name: str) -> set[str]:
        holes = [vector for vector in VECTORS.values() if "mask-hole" in vector.entry["flags"] and not vector.case.cuts]
        return set(failed_vectors(get_mistake(name), holes))

    assert failing("positions-by-cumsum") == {"ali-hole-keeps-column", "att-holes"}
    assert failing("padding-ignored") >= {"ali-hole-or-deleted", "ali-long-hole", "ali-hole-keeps-column"}
    notes = [note for note, _ in VECTORS["ali-hole-or-deleted"].answers()]
    assert "specification" in notes[0]
    assert "deleted" in notes[1]


@pytest.mark.clause("VEC-10")
def test_a_refusal_of_bloomref_has_the_class_that_is_named(monkeypatch):
    subject, vector = Subject(Backend("numpy"), "float32"), VECTORS["emb-id-negative"]
    assert check(subject, vector) == 0.0
    monkeypatch.setitem(vector.entry, "error", "BadWeights")
    with pytest.raises(VectorFailure, match="expected BadWeights, got InvalidInput"):
        check(subject, vector)


def test_an_adapter_is_asked_of_any_implementation_that_takes_one():
    """An instrumented model reads no files, but has `adapted`."""
    counts = Counts(NAME, "float32")
    ask_all(Subject(InstrumentedImplementation(), "float32"), "lora", Waivers(), counts, FOLDER)
    assert counts.passed == len([vector for vector in VECTORS.values() if vector.topic == "lora"])
    assert counts.reasons == {}
    counts = Counts(NAME, "float32")
    ask_all(Subject(InstrumentedImplementation(), "float32"), "alibi", Waivers(), counts, FOLDER)
    assert counts.reasons["not_applicable"] == {"InstrumentedModel does not answer 'slopes'": 8}


def test_what_an_implementation_raises_is_its_failure():
    class Breaks(InstrumentedImplementation):
        def load(self, config, weights, dtype):
            if config.vocabulary_size != 7:  # 7: the model with which the kit checks availability
                raise ZeroDivisionError("in my own code")
            return super().load(config, weights, dtype)

    with pytest.raises(VectorFailure, match="ZeroDivisionError: in my own code"):
        ask_all(Subject(Breaks(), "float32"), "cache", Waivers(), Counts(NAME, "float32"), FOLDER)


def test_a_waiver_covers_what_it_names():
    subject, vector = (
        Subject(InstrumentedImplementation(get_mistake("positions-by-cumsum").model), "float32"),
        VECTORS["ali-hole-keeps-column"],
    )
    for where, waived in {"vectors/mask-hole": 1, "logits/mask-hole@float32": 1, "*/left-pad": 0, "pieces": 0}.items():
        counts = Counts(NAME, "float32")
        failure = ask(subject, vector, Waivers((Waiver(where, "because"),)), counts)
        assert (failure is None, counts.waived, counts.failed) == (bool(waived), waived, 1 - waived)


def test_a_failure_names_the_vector_its_clauses_and_the_others():
    with pytest.raises(VectorFailure) as caught:
        ask_all(
            Subject(InstrumentedImplementation(get_mistake("relu").model), "float32"),
            "mlp",
            Waivers(),
            Counts(NAME, "float32"),
            FOLDER,
        )
    text = str(caught.value)
    assert text.startswith("mlp-every-step: every intermediate of a block (MLP-1, MLP-2, MLP-3, float32)")
    assert "times sigma" in text
    assert "mlp-big" in text


# --- the rule --------------------------------------------------------------------------------------------------------

REAL = np.array([[False, True, True, True]])
EXACT = np.ones((1, 4, 2))
USUAL = [np.inf, 0.1, 0.1, 0.1]


def verdict(got, sigma, name="logits", real=REAL) -> tuple[str, float]:
    [found] = judge({name: np.asarray(got)}, {name: (EXACT, np.array([[sigma], [[np.nan] * 4]]))}, 0, real)
    return found.verdict, round(found.z, 3)


def off(*errors: float) -> np.ndarray:
    return EXACT + np.array(errors)[None, :, None]


@pytest.mark.clause("VEC-6", "VEC-7", "VEC-8")
@pytest.mark.parametrize(
    ("got", "sigma", "expected"),
    [
        (EXACT, USUAL, ("pass", 0.0)),
        (off(0, 0, 0.2, -0.4), USUAL, ("pass", 4.0)),
        (off(0, 0, 0.6, 0), USUAL, ("fail", 6.0)),
        (off(np.nan, 0, 0, 0), USUAL, ("pass", 0.0)),
        (off(0, np.nan, 0, 0), USUAL, ("fail", np.inf)),
        (off(0, np.inf, 0, 0), [np.inf, np.inf, 0.1, 0.1], ("fail", np.inf)),
        (off(0, 9.0, 0, 0), [np.inf, np.inf, 0.1, 0.1], ("pass", 0.0)),
        (off(0, 9.0, 9.0, 0), [np.inf, np.inf, np.inf, 0.1], ("inconclusive", 0.0)),
        (off(0, 9.0, 9.0, 1.0), [np.inf, np.inf, np.inf, 0.1], ("fail", 10.0)),
        (off(0, 9.0, 0, np.nan), [np.nan] * 4, ("inconclusive", 0.0)),
        (EXACT, [np.inf, 0.0, 0.1, 0.1], ("pass", 0.0)),
        (off(0, 1e-9, 0, 0), [np.inf, 0.0, 0.1, 0.1], ("fail", np.inf)),
        (EXACT[:, :3], USUAL, ("fail", np.inf)),
        (EXACT.astype(np.float32), USUAL, ("pass", 0.0)),
    ],
)  # fmt: skip
def test_the_rule(got, sigma, expected):
    assert verdict(got, sigma) == expected


@pytest.mark.clause("VEC-9")
@pytest.mark.parametrize(
    ("error", "sigma", "expected"),
    [(0.4, 0.1, "pass"), (0.6, 0.1, "fail"), (0.6, np.inf, "inconclusive"), (np.nan, np.inf, "fail"), (0.0, 0.0, "pass")],
)  # fmt: skip
def test_the_rule_of_a_gradient(error, sigma, expected):
    [found] = judge({"w": EXACT + error}, {"w": (EXACT, np.array([sigma]))}, 0, REAL)
    assert found.verdict == expected


@pytest.mark.clause("VEC-6")
def test_a_tier_that_cannot_hold_a_case_is_inconclusive():
    for dtype, verdict in {"bfloat16": "inconclusive", "float32": "pass"}.items():
        [(_, tensors)] = VECTORS["att-24-bit-weights"].answers()
        got = {name: expected for name, (expected, _) in tensors.items()}
        found = judge(got, tensors, TIER_NAMES.index(dtype), VECTORS["att-24-bit-weights"].inputs[1])
        assert {each.verdict for each in found} == {verdict}


# --- where they are, and who uses them -------------------------------------------------------------------------------


def test_an_installed_package_has_its_own_and_another_says_so(tmp_path, monkeypatch):
    assert read.locate() == FOLDER
    monkeypatch.setattr(read, "PACKAGED", tmp_path / "data")
    monkeypatch.setattr(read, "REPOSITORY", tmp_path / "specs/vectors")
    with pytest.raises(Unsupported, match="this installation has none"):
        read.locate()
    counts = Counts(NAME, "float32")
    ask_all(Subject(Backend("numpy"), "float32"), "mlp", Waivers(), counts)
    assert counts.verdict == "not asked"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/config.json").write_text("{}")
    assert read.locate() == tmp_path / "data"
    with pytest.raises(InvalidInput, match="folder: expected a folder that"):
        read.locate(tmp_path / "nowhere")


def test_the_command_asks_an_implementation(capsys, monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation\nfrom bloomref.conformance.mistakes import get_mistake\n"
        "def wrong(): return InstrumentedImplementation(get_mistake('gelu-erf').model)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli(["vectors", "--backend", "numpy", "--dtype", "float32"]) == 0
    assert "numpy: 0 answers fail" in capsys.readouterr().out
    assert cli(["vectors", "--implementation", "mine:wrong", "--dtype", "float32", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert any(text.startswith("mlp-every-step") for text in report["failures"])
    assert {row["name"] for row in report["topics"]} == set(write.AUTHORS)


@pytest.mark.parametrize(
    "arguments", [["--check", "--backend", "numpy"], ["--dtype", "float32"], ["--check", "--folder", "."]]
)
def test_the_command_refuses(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli(["vectors", *arguments]) == 2
    assert "expected" in capsys.readouterr().err


def test_the_kit_asks_them(tmp_path):
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "COLUMNS": "200"}
    command = [sys.executable, "-m", "pytest", "-p", "bloomref.conformance.plugin", "--pyargs", "bloomref.conformance"]
    command += ["--backend", "numpy", "--dtype", "float32", "-k", "vectors"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert f"vectors   {len(VECTORS)} pass" in result.stdout


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("vectors_example", ROOT / "docs/examples/vectors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def my_bloom(model_class):
    """A function in the form of the example."""

    def run(config, weights, token_ids, mask):
        config = BloomConfig.from_hf(config)
        return model_class(config, params_of(config, weights), dtype=np.float32).run(token_ids, mask)["logits"]

    return run


@pytest.mark.clause("VEC-7", "VEC-8", "VEC-10")
def test_the_example_without_bloomref_says_the_same(example, capsys):
    asked = [vector for vector in VECTORS.values() if vector.entry["ask"] == "logits"]
    assert example.run(FOLDER, my_bloom(InstrumentedModel)) == {"right": len(asked), "wrong": 0, "inconclusive": 0}
    with np.errstate(all="ignore"):
        found = example.run(FOLDER, my_bloom(get_mistake("positions-by-cumsum").model))
    listed = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(failed_vectors(get_mistake("positions-by-cumsum"), asked))
    assert found["wrong"] == len(listed) > 0


def test_the_example_is_short_and_needs_no_bloomref():
    text = (ROOT / "docs/examples/vectors.py").read_text("utf-8")
    assert len(text.splitlines()) < 65
    assert "import bloomref" not in text
    assert "from bloomref" not in text
