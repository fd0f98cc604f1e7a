"""The program protocol, clause by clause with stubs, and the example in C through every property of the kit."""

import contextlib
import json
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import Failed
from bloomref.conformance.adapters.program import METHODS, Program
from bloomref.conformance.cases import Case
from bloomref.conformance.implementation import ROUNDED_TO, WORDS, Capabilities
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.subject import named_weights
from bloomref.errors import BadWeights, InvalidInput, Unsupported
from bloomref.runtime.backend import Choice

ROOT = Path(__file__).parents[2]
CONFIG = BloomConfig(vocabulary_size=7, num_layers=1, num_heads=3, hidden_dim=6, intermediate_dim=10)
CASE = Case(CONFIG, batch=2, time=4, kind="left")

# --- stubs: a program in a few lines of Python --------------------------------------------------------------------

STUB = """
import json, os, struct, sys
import numpy as np
from pathlib import Path
from safetensors.numpy import load_file, save_file
seen = []
HELLO = {"protocol": 1, "name": "stub", "methods": METHODS, "versions": {"stub": "2"}}
for line in sys.stdin:
    r = json.loads(line)
    seen.append(r)
    reply = {}
    if r["request"] == "hello":
        reply = dict(HELLO)
    elif r["request"] == "load":
        weights = load_file(r["weights"])
    BODY
    print(json.dumps(reply), flush=True)
"""


def stub(folder: Path, body: str = "", methods: str = '["logits"]', timeout: float = 30.0) -> Program:
    body = textwrap.indent(textwrap.dedent(body).strip(), "    ") if body else ""
    source = STUB.replace("METHODS", methods).replace("    BODY", body)
    (folder / "stub.py").write_text(source, "utf-8")
    return Program(f"{shlex.quote(sys.executable)} {shlex.quote(str(folder / 'stub.py'))}", timeout)


def loaded(program: Program, config: BloomConfig = CONFIG):
    return program.load(config, named_weights(config, Case(config).params), "float32")


@pytest.mark.clause("PRG-2")
def test_hello_names_the_program(tmp_path):
    program = stub(tmp_path)
    assert (program.name, dict(program.versions()), program.methods) == ("stub", {"stub": "2"}, {"logits"})


@pytest.mark.clause("PRG-2")
def test_without_methods_a_program_has_logits(tmp_path):
    program = stub(tmp_path, 'if r["request"] == "hello": del reply["methods"]')
    assert program.methods == {"logits"}


@pytest.mark.clause("PRG-2")
def test_another_version_of_the_protocol_fails(tmp_path):
    with pytest.raises(Failed, match="protocol: expected 1, got 2"):
        stub(tmp_path, 'if r["request"] == "hello": reply["protocol"] = 2')


@pytest.mark.clause("PRG-3")
def test_capabilities(tmp_path):
    declared = '{"dtypes": ["bfloat16"], "masks": ["real"], "features": ["batch"], "scores": "model", "max_time": 9}'
    able = stub(tmp_path, f'if r["request"] == "hello": reply["capabilities"] = {declared}').capabilities
    assert (able.dtypes, able.masks, able.features) == (("bfloat16",), ("real",), {"batch"})
    assert (able.scores, able.max_time, able.repeatable) == ("model", 9, True)


@pytest.mark.clause("PRG-3")
def test_an_unknown_capability_fails(tmp_path):
    with pytest.raises(Failed, match=r"speed: expected a key of PRG-3, got an unknown name; known: dtypes"):
        stub(tmp_path, 'if r["request"] == "hello": reply["capabilities"] = {"speed": 1}')


@pytest.mark.clause("PRG-5")
@pytest.mark.parametrize(
    ("kind", "error"),
    [("InvalidInput", InvalidInput), ("Unsupported", Unsupported), ("BadWeights", BadWeights), ("Other", Failed)],
)
def test_refusals(tmp_path, kind, error):
    body = f'if r["request"] == "logits": reply = {{"error": {{"kind": "{kind}", "message": "no"}}}}'
    model = loaded(stub(tmp_path, body))
    for _ in range(2):
        with pytest.raises(error, match="no"):
            model.logits(CASE.token_ids, CASE.is_real)


@pytest.mark.clause("PRG-6")
def test_load_sends_the_config_and_the_weights(tmp_path):
    checks = """
    if r["request"] == "load":
        good = r["dtype"] == "float32" and r["config"]["intermediate_size"] == 10 and r["config"]["n_head"] == 3
        good = good and weights["transformer.h.0.self_attention.query_key_value.weight"].shape == (18, 6)
        reply = {} if good else {"error": {"kind": "BadWeights", "message": str(r)}}
    """
    loaded(stub(tmp_path, checks))


@pytest.mark.clause("PRG-7")
def test_two_models_of_one_program_do_not_mix(tmp_path):
    body = """
    if r["request"] == "load": r0 = r
    if r["request"] == "logits":
        ids = load_file(r["inputs"])["token_ids"]
        save_file({"logits": np.zeros((*ids.shape, r0["config"]["vocab_size"]), np.float32)}, r["outputs"])
    """
    program = stub(tmp_path, body)
    small, large = loaded(program), loaded(program, CONFIG.replace(vocabulary_size=9))
    for model, vocabulary in ((small, 7), (large, 9), (small, 7)):
        assert model.logits(CASE.token_ids, CASE.is_real).shape == (2, 4, vocabulary)


@pytest.mark.clause("PRG-13")
@pytest.mark.parametrize(
    ("adapter", "name"),
    [(Lora(), "adapter"), (Lora(("value_dense",), form="keras"), "adapter.lora.h5")],
    ids=["peft", "keras"],
)
def test_an_adapter_comes_with_the_model(tmp_path, adapter, name):
    """The vocabulary of the reply identifies the last model: 7, with an adapter 8."""
    body = """
    if r["request"] == "hello": reply["capabilities"] = {"adapters": ["peft", "keras"]}
    if r["request"] == "load":
        r0 = r
        path = Path(r["adapter"]) if "adapter" in r else None
        there = path is None or path.is_file() or (path / "adapter_config.json").is_file()
        if not there: reply = {"error": {"kind": "BadWeights", "message": "no adapter"}}
    if r["request"] == "logits":
        ids = load_file(r["inputs"])["token_ids"]
        size = 7 + (Path(r0.get("adapter", "")).name == "NAME")
        save_file({"logits": np.zeros((*ids.shape, size), np.float32)}, r["outputs"])
    """
    program = stub(tmp_path, body.replace("NAME", name), '["logits", "adapted"]')
    assert program.capabilities.adapters == ("peft", "keras")
    plain, model = loaded(program), loaded(program)
    given = adapter.write(tmp_path, CONFIG)
    model = model.adapted(given)
    given.rename(tmp_path / "away")
    for asked, size in ((model, 8), (plain, 7), (model, 8)):
        assert asked.logits(CASE.token_ids, CASE.is_real).shape == (2, 4, size)


@pytest.mark.clause("PRG-13")
def test_without_the_word_no_adapter_is_sent(tmp_path):
    model = loaded(stub(tmp_path))
    assert not hasattr(model, "adapted")


@pytest.mark.clause("PRG-8", "PRG-9", "PRG-10")
def test_requests_and_replies(tmp_path):
    body = """
    if r["request"] in ("logits", "hidden", "trace", "in_pieces", "loss_and_gradients", "call"):
        given = load_file(r["inputs"])
        tensors = {name: [str(a.dtype), *a.shape] for name, a in given.items()}
        out = {"logits": np.zeros((2, 4, 7), np.float16), "hidden": np.zeros((2, 4, 6), np.float64), "loss": np.array([2.5], np.float32)}
        if r["request"] == "in_pieces" and (r["cuts"], r["capacity"]) != ([1, 3], 6): del out["logits"]
        if r["request"] == "call" and tensors != {"token_ids": ["int64", 2, 4], "padding_mask": ["float64", 4]}: del out["logits"]
        if r["request"] == "logits" and tensors != {"token_ids": ["int64", 2, 4], "is_real": ["bool", 2, 4]}: del out["logits"]
        if r["request"] == "loss_and_gradients" and tensors["labels"] != ["int64", 2, 4]: del out["loss"]
        save_file(out, r["outputs"])
    """
    model = loaded(stub(tmp_path, body, '["logits", "hidden", "trace", "in_pieces", "loss_and_gradients", "call"]'))
    ids, real = CASE.token_ids.astype(np.int32), CASE.is_real
    assert model.logits(ids, real).dtype == np.float16
    assert model.hidden(ids, real).shape == (2, 4, 6)
    assert model.trace(ids, real).keys() == {"logits", "hidden", "loss"}
    assert model.in_pieces(ids, real, (1, 3), 6).shape == (2, 4, 7)
    loss, gradients = model.loss_and_gradients(ids, real, ids)
    assert (loss, gradients.keys()) == (2.5, {"logits", "hidden"})
    assert model.call(ids, np.ones(4)).shape == (2, 4, 7)


@pytest.mark.clause("PRG-10")
def test_a_trace_over_a_cache_is_a_trace_with_cuts_and_capacity(tmp_path):
    body = """
    if r["request"] == "trace":
        over_cache = (r.get("cuts"), r.get("capacity")) == ([1, 3], 6)
        save_file({"logits": np.full((1,), float(over_cache), np.float32)}, r["outputs"])
    """
    model = loaded(stub(tmp_path, body, '["logits", "trace", "trace_in_pieces"]'))
    assert model.trace_in_pieces(CASE.token_ids, CASE.is_real, (1, 3), 6)["logits"] == 1.0
    assert model.trace(CASE.token_ids, CASE.is_real)["logits"] == 0.0
    assert not hasattr(loaded(stub(tmp_path, body, '["logits", "trace"]')), "trace_in_pieces")


@pytest.mark.clause("PRG-8", "PRG-10")
@pytest.mark.parametrize(
    ("write", "message"), [("pass", "none"), ('save_file({"x": np.zeros(1)}, r["outputs"])', "'logits'")]
)
def test_a_missing_result_fails(tmp_path, write, message):
    model = loaded(stub(tmp_path, f'if r["request"] == "logits": {write}'))
    with pytest.raises(Failed, match=message):
        model.logits(CASE.token_ids, CASE.is_real)


def test_a_model_has_the_methods_that_the_program_named(tmp_path):
    model = loaded(stub(tmp_path))
    assert hasattr(model, "logits")
    assert not hasattr(model, "trace")


# --- breaking down -------------------------------------------------------------------------------------------------


@pytest.mark.clause("PRG-12")
def test_a_dead_program_is_reported_with_its_last_words_and_started_anew(tmp_path):
    body = """
    if r["request"] == "logits":
        print("segments at fault", file=sys.stderr, flush=True)
        os._exit(3)
    """
    program = stub(tmp_path, body)
    model = loaded(program)
    with pytest.raises(Failed, match=r"(?s)it died \(status 3\) during the request 'logits'.*segments at fault"):
        model.logits(CASE.token_ids, CASE.is_real)
    loaded(program)


@pytest.mark.slow
@pytest.mark.clause("PRG-12")
def test_silence_ends_at_the_time_out(tmp_path):
    body = """
    if r["request"] == "logits":
        import time
        time.sleep(60)
    """
    model = loaded(stub(tmp_path, body, timeout=3.0))
    with pytest.raises(Failed, match=r"no reply within 3 s \(--timeout\) during the request 'logits'"):
        model.logits(CASE.token_ids, CASE.is_real)


@pytest.mark.clause("PRG-1", "PRG-12")
def test_another_line_on_standard_output_fails(tmp_path):
    model = loaded(stub(tmp_path, 'if r["request"] == "logits": print("computing ...", flush=True)'))
    with pytest.raises(Failed, match=r"one JSON object a line and nothing else \(PRG-1\), got computing \.\.\."):
        model.logits(CASE.token_ids, CASE.is_real)


def test_a_command_that_does_not_exist():
    with pytest.raises(InvalidInput, match="expected a command that can be started"):
        Program("./there-is-no-such-program")


@pytest.mark.clause("PRG-11")
def test_the_program_ends_with_its_input(tmp_path):
    program = stub(tmp_path)
    popen = program.process.popen
    program.close()
    assert popen.returncode == 0


# --- what hello declares -------------------------------------------------------------------------------------------

WRONG = {
    '"capabilities": {"max_time": "x"}': "max_time: expected an integer >= 1, got 'x'",
    '"capabilities": {"masks": ["rigth"]}': "masks: .*'rigth'; did you mean right",
    '"capabilities": {"features": ["postln"]}': "features: .*'postln'",
    '"capabilities": {"scores": "fp32"}': "scores: expected some of float32, model, got 'fp32'",
    '"capabilities": {"dtypes": "float32"}': "dtypes: expected a list of words, got 'float32'",
    '"capabilities": {"dtypes": [32]}': "dtypes: .*got '32'",
    '"capabilities": {"repeatable": 1}': "repeatable: expected True or False",
    '"capabilities": ["float32"]': r"capabilities: expected an object \(PRG-3\)",
    '"methods": ["loss_and_gradient"]': "loss_and_gradient: expected a request of PRG-15.*did you mean loss_and_gradients",
    '"methods": "logits"': "methods: expected a list of requests",
    '"name": 5': "name: expected a text",
    '"versions": ["1"]': "versions: expected an object of strings",
    '"error": "no licence"': r"the program answered: no licence \(kind none\)",
    '"protocol": "1"': "protocol: expected 1, got '1'",
}


@pytest.mark.clause("PRG-2", "PRG-3", "PRG-15")
def test_a_wrong_declaration_is_one_sentence(tmp_path):
    """All stand-ins are one program, which declares what its argument says: starting NumPy once each takes long."""
    (tmp_path / "stub.py").write_text(
        "import json, sys\nsys.stdin.readline()\n"
        "print(json.dumps({'protocol': 1, **json.loads(sys.argv[1])}), flush=True)\nsys.stdin.read()\n"
    )
    for declared, message in WRONG.items():
        arguments = [sys.executable, "-S", str(tmp_path / "stub.py"), "{" + declared + "}"]
        with pytest.raises(Failed, match=message) as caught:
            Program(shlex.join(arguments))
        assert "\n" not in str(caught.value)


@pytest.mark.clause("PRG-3")
def test_the_table_of_capabilities_is_the_code():
    """Keys, in any order, their words and their defaults."""
    text = (ROOT / "specs/97-program-protocol.md").read_text("utf-8")
    rows = re.findall(
        r"^  \| `(\w+)` \| (.*) \| (.*) \|$", text.partition("**PRG-3**")[2].partition("**PRG-4**")[0], re.MULTILINE
    )
    assert {name for name, _, _ in rows} == {item.name for item in fields(Capabilities)}
    known = {**WORDS, "scores": ROUNDED_TO, "products": ROUNDED_TO}
    for name, value, default in rows:
        if name in known:
            assert set(re.findall(r"`([a-z0-9 -]+)`", value)) - {"dtypes"} == set(known[name]), name
        if default != "all":
            expected = getattr(Capabilities(), name)
            assert default.strip("`") == (expected if isinstance(expected, str) else json.dumps(expected)), name


@pytest.mark.clause("PRG-15")
def test_the_requests_of_the_specification_are_those_of_the_code():
    text = (ROOT / "specs/97-program-protocol.md").read_text("utf-8")
    listed = re.search(r"`methods` MUST name requests of this list: (.*?)\.", text, re.DOTALL).group(1)
    assert set(re.findall(r"`(\w+)`", listed)) == set(METHODS)


@pytest.mark.clause("PRG-10", "PRG-14")
def test_the_examples_are_the_requests_that_the_kit_sends(tmp_path):
    """The keys of every example, by a program that records what it reads."""
    (tmp_path / "stub.py").write_text(RECORDER)
    read = tmp_path / "read.jsonl"
    program = Program(shlex.join([sys.executable, "-S", str(tmp_path / "stub.py"), str(read), json.dumps(METHODS)]))
    ids, real = np.array([[1, 2], [2, 1]]), np.ones((2, 2), bool)
    model = loaded(program)
    folder = Lora().write(tmp_path, CONFIG)
    questions = [lambda model=model: model.adapted(folder), model.merge, model.unmerge, lambda: model.call(ids, real)]
    questions += [lambda name=name: getattr(model, name)(ids, real) for name in ("logits", "hidden", "trace")]
    questions += [
        lambda name=name: getattr(model, name)(ids, real, (1,), 3) for name in ("in_pieces", "trace_in_pieces")
    ]
    questions += [lambda: model.loss_and_gradients(ids, real, ids), lambda: model.step(ids, real, 1, 3)]
    questions += [lambda: model.tokens(ids, real, Choice(temperature=0.8, seeds=np.array([1, 2])), 2)]
    questions += [lambda: model.generate([[1]], 2, None), lambda: program.load_folder(tmp_path, "float32")]
    questions += [lambda name=name: program.answers[name]({}) for name in program.answers]
    for question in questions:
        with contextlib.suppress(Failed):  # it writes no file and has no output
            question()
    sent = [json.loads(line) for line in read.read_text().splitlines()]
    text = (ROOT / "specs/97-program-protocol.md").read_text("utf-8")
    examples = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL).group(1))

    def shapes(requests):
        return {(r["request"], *sorted(r.keys()), *sorted(r.get("choice", {}))) for r in requests}

    assert shapes(sent) - shapes([{"request": "load", "dtype": 0, "weights": 0, "config": 0}]) == shapes(examples)


RECORDER = """
import json, sys
for line in sys.stdin:
    with open(sys.argv[1], "a") as file:
        file.write(line)
    reply = {"protocol": 1, "methods": json.loads(sys.argv[2])} if json.loads(line)["request"] == "hello" else {}
    print(json.dumps(reply), flush=True)
"""


# --- questions of the vectors, and kept requests ---------------------------------------------------------------------

ANSWERS = """
if r["request"] == "slopes":
    n = r["input"]["num_heads"]
    reply = {"output": {"num_heads": n}} if n > 0 else {"error": {"kind": "InvalidInput", "message": "no heads"}}
if r["request"] == "generate": reply = {"output": {"rows": [[*row, 5] for row in r["input"]["prompts"]]}}
if r["request"] == "load_folder" and not Path(r["folder"]).is_dir(): reply = {"error": {"kind": "BadWeights", "message": "no folder"}}
"""


@pytest.mark.clause("PRG-14", "PRG-16")
def test_questions_of_the_vectors(tmp_path):
    program = stub(tmp_path, ANSWERS, '["logits", "slopes", "generate", "load_folder"]')
    assert set(program.answers) == {"slopes"}
    assert program.answers["slopes"]({"num_heads": 3}) == {"num_heads": 3}
    with pytest.raises(InvalidInput, match="no heads"):
        program.answers["slopes"]({"num_heads": 0})
    assert loaded(program).generate([[1, 2]], 3, None) == [[1, 2, 5]]
    assert hasattr(program.load_folder(tmp_path, "float32"), "generate")
    with pytest.raises(BadWeights, match="no folder"):
        program.load_folder(tmp_path / "none", "float32")


def test_kept_requests_can_be_repeated(tmp_path):
    """The script sends hello, load and the request to the program again."""
    body = """
    if r["request"] == "logits":
        ids = load_file(r["inputs"])["token_ids"]
        save_file({"logits": np.zeros((*ids.shape, 7), np.float32)}, r["outputs"])
    """
    stub(tmp_path, body).close()
    command = shlex.join([sys.executable, str(tmp_path / "stub.py")])
    program = Program(command, 30.0, tmp_path / "kept")
    model = loaded(program)
    model.logits(CASE.token_ids, CASE.is_real)
    program.close()
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "0001-hello",
        "0002-load",
        "0003-logits",
        "replay.sh",
    ]
    answered = tmp_path / "kept/0003-logits/outputs.safetensors"
    answered.unlink()
    replay = ["sh", str(tmp_path / "kept/replay.sh"), "0003-logits"]
    lines = subprocess.run(replay, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [json.loads(line) for line in lines][1:] == [{}, {}]
    assert answered.exists()
