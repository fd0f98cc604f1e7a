"""Records and their files: the fields are learned, whatever the file; all else is refused by file, line and keys."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_training_data import write

from bloomref.errors import InvalidInput
from bloomref.training.data_files import read
from bloomref.training.records import Conversation, Text, of_record

ALPACA = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"instruction": "Say\nno.", "input": "", "output": "No."},
    {"instruction": "Say yes.", "output": "Yes."},
]
ALPACA_TEXTS = [Text("Add.\n1, 2", "3", "\n"), Text("Say\nno.", "No.", "\n"), Text("Say yes.", "Yes.", "\n")]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


# --- one meaning in every file -----------------------------------------------------------------------------------


@pytest.mark.clause("TRN-2")
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "A.JSONL", "a.ndjson"])
@pytest.mark.parametrize(
    "layout",
    [
        json.dumps,
        lambda rows: json.dumps(rows, indent=2),
        lambda rows: "\r\n".join(map(json.dumps, rows)),
        lambda rows: "\n\n".join(json.dumps(row, indent=1) for row in rows),
        lambda rows: "\ufeff" + "\n".join(map(json.dumps, rows)) + "\n",
    ],
    ids=["array", "indented array", "lines", "indented objects", "byte order mark"],
)
def test_json_is_read_by_its_content(tmp_path: Path, name: str, layout: Any) -> None:
    assert read([write(tmp_path / name, layout(ALPACA))]) == ALPACA_TEXTS


@pytest.mark.clause("TRN-2")
@pytest.mark.parametrize(
    ("record", "document"),
    [
        ("a", Text("", "a")),
        ({"text": "a", "url": "b", "label": 3}, Text("", "a")),
        ({"prompt": "a", "completion": " b", "text": None}, Text("a", " b")),
        ({"prompt": "a", "completion": " b", "history": []}, Text("a", " b")),
        ({"prompt": CHAT, "completion": CHAT[1:]}, Conversation((*CHAT, CHAT[1]), None, "here", asked=2)),
        ({"input": "a", "target": "b"}, Text("a", "b", "\n")),
        ({"input": "", "target": "b"}, Text("", "b")),
        ({"instruction": "", "input": "a", "output": "b"}, Text("a", "b", "\n")),
        ({"instruction": "a", "input": None, "output": "b", "id": "x"}, Text("a", "b", "\n")),
        (CHAT, Conversation(tuple(CHAT), None, "here")),
        ({"messages": CHAT, "prompt": "Hi", "prompt_id": "x"}, Conversation(tuple(CHAT), None, "here")),
        ({"messages": CHAT, "tools": []}, Conversation(tuple(CHAT), None, "here")),
        ({"messages": CHAT, "tools": [{"name": "f"}]}, Conversation(tuple(CHAT), [{"name": "f"}], "here")),
        ({"conversations": SHARED, "id": "x"}, Conversation(tuple(CHAT), None, "here")),
        ({"conversations": CHAT}, Conversation(tuple(CHAT), None, "here")),
        (
            {"conversations": SHARED, "system": "Be brief."},
            Conversation(({"role": "system", "content": "Be brief."}, *CHAT), None, "here"),
        ),
    ],
)
def test_keys_decide(record: Any, document: Any) -> None:
    assert of_record(record, "here") == document


@pytest.mark.clause("TRN-2")
@pytest.mark.parametrize("content", [CHAT, [CHAT], [SHARED], {"messages": CHAT}, [{"conversations": SHARED}]])
def test_a_list_of_messages_is_one_conversation(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path / "chat.json", json.dumps(content))
    assert read([path]) == [Conversation(tuple(CHAT), None, f"{path}, line 1")]


cells = st.text(st.sampled_from('ab ,;\t"\n\r{[é意'), max_size=8)


@pytest.mark.clause("TRN-2")
@given(st.lists(st.tuples(cells, cells, cells.map(lambda text: text + ".")), min_size=1), st.sampled_from(",\t;"))
def test_tables_mean_what_json_means(tmp_path_factory: pytest.TempPathFactory, rows: Any, delimiter: str) -> None:
    """Any delimiter, quotes, and line ends within cells."""
    folder = tmp_path_factory.mktemp("table")
    names = ("instruction", "input", "output")
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows([names, *rows])
    path = folder / "d.csv"
    path.write_bytes(stream.getvalue().encode())
    objects = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    assert read([path]) == read([write(folder / "d.jsonl", "\n".join(objects))])


@pytest.mark.clause("TRN-2")
def test_a_cell_may_be_a_book(tmp_path: Path) -> None:
    limit, book = csv.field_size_limit(), "word " * 40_000
    assert read([write(tmp_path / "d.tsv", f"id\ttext\n1\t{book}\n")]) == [Text("", book)]
    assert csv.field_size_limit() == limit


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.clause("TRN-1", "TRN-2")
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", json.dumps(ALPACA, indent=1), r"text in .*a\.txt, got JSON; name it \.json"),
        ("a.txt", '{"text": "a"}\n{"text": "b"}', r"text in .*a\.txt, got JSON"),
        ("a.md", '[{"instruction": "cut o', r"text in .*a\.md, got JSON"),
        ("a.csv", '[{"text": "a"}]', r"text in .*a\.csv, got JSON"),
        ("a", "instruction,output\na,b\n", r"text in .*a, got a table with the columns instruction, output; name it"),
        ("a.txt", "prompt\tcompletion\na\tb\n", "got a table"),
        ("a.json", "Plain words.\n", r"a\.json, line 1: .*invalid JSON"),
        ("a.json", "[]", "which has none"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"', r"a\.jsonl, line 2: .*invalid JSON"),
        ("a.json", '[\n{"text": "a"},\n{"text": "b"}', r"a\.json, line 3: .*array without its end"),
        ("a.json", '[\n{"text": "a"}\n{"text": "b"}]', r"a\.json, line 3: .*no comma"),
        ("a.json", '[\n{"text": "a"},\n]', r"a\.json, line 3: .*invalid JSON"),
        ("a.json", "[" * 100_000, r"line 1: .*invalid JSON"),
        ("a.json", "<!DOCTYPE html><p>No.", r"line 1: .*got an HTML page"),
        ("a.json", '{"data": [{"text": "a"}]}', r"line 1: .*got the keys data$"),
        (
            "a.json",
            '[\n {"text": "a"},\n {"question": "b",\n  "answer": "c"}]',
            r"line 3: .*got the keys question, answer",
        ),
        (
            "a.jsonl",
            "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
            r"git-lfs pointer.*git lfs pull",
        ),
        ("a.csv", "frage,antwort\na,b\n", r"a\.csv, line 1: .*got the columns frage, antwort"),
        ("a.csv", "prompt,completion\na,b\nc\n", r"a\.csv, line 3: expected 2 cells, got 1"),
        ("a.csv", 'prompt,completion\n"a\nb",c\nd,e,f\n', r"a\.csv, line 4: expected 2 cells, got 3"),
        ("a.csv", 'prompt,completion\na,"b\n', r"a\.csv, line 2: expected a row"),
        ("a.csv", "prompt,completion\na,\n", r"a\.csv, line 2: expected a completion that is not empty"),
        ("a.csv", "prompt,prompt,completion\na,b,c\n", "different names of columns"),
        ("a.csv", "prompt,completion\n", "which has none"),
        ("a.csv", "messages\nHi\n", r"a\.csv, line 2: expected a list of messages, got Hi"),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, name: str, content: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        read([write(tmp_path / name, content)])


@pytest.mark.clause("TRN-1")
@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("prompt,completion\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
        (b"\x1f\x8b\x08\xff", "a gzip archive"),
        (b"PAR1\xff", "a Parquet file"),
    ],
)
def test_bytes_are_named_for_what_they_are(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(InvalidInput, match=rf"a\.csv, line 1: .*{problem}"):
        read([tmp_path / "a.csv"])


@pytest.mark.clause("TRN-1")
@pytest.mark.parametrize(
    "text", ["[1] is a footnote.", '{a} and "b": c', "Dear input, output,\nyours", "[]", "text\nof"]
)
def test_text_stays_text(tmp_path: Path, text: str) -> None:
    assert read([write(tmp_path / "a.txt", text)]) == [Text("", text)]


@pytest.mark.clause("TRN-2")
@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (3, "expected a text, a list of messages, or an object with text; .*got int"),
        ([], "got list"),
        (["a"], "got list"),
        ({"text": "a", "instruction": "b", "output": "c"}, "the keys text, instruction, output; remove"),
        ({"prompt": "a", "completion": "b", "messages": CHAT}, "remove messages"),
        ({"prompt": "a", "completion": "b", "instruction": "c"}, "remove instruction"),
        ({"prompt": "a", "completion": "b", "history": [["c", "d"]]}, "remove history"),
        ({"instruction": "a", "context": "b", "response": "c"}, "got the keys instruction, context, response$"),
        ({"instruction": "a", "output": ["b"]}, r"output to be a text, got output = \['b'\]"),
        ({"instruction": 1, "output": "b"}, "instruction to be a text"),
        ({"input": "a", "target": ""}, "target that is not empty"),
        ({"prompt": CHAT, "completion": "b"}, "prompt to be a text"),
        ({"prompt": CHAT, "completion": CHAT[:1]}, "a completion with an answer"),
        ({"messages": "Hi"}, "a list of messages, got Hi"),
        ({"messages": []}, r"an answer \(role assistant\), got none"),
        ({"messages": CHAT[:1]}, "an answer"),
        ({"messages": ["Hi"]}, ", message 0: .*got str"),
        ({"messages": [*CHAT, {"content": "a"}]}, ", message 2: .*got the keys content"),
        ({"messages": [{"role": 3, "content": "a"}]}, "role to be a text"),
        ({"messages": [{**CHAT[1], "weight": 0}]}, "weight = 0"),
        ({"messages": [{"role": "assistant", "content": "\ud800"}]}, "valid Unicode"),
        ({"messages": CHAT, "tools": "[]"}, "tools to be a list"),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, "from to be one of human, .*got from = 'narrator'"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, "content to be a text"),
        ({"conversations": SHARED, "system": 3}, "system to be a text"),
    ],
)
def test_a_record_that_fits_no_format_is_refused(record: Any, problem: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^here.*{problem}"):
        of_record(record, "here")
