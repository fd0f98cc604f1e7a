"""Hostile pickles and archives: nothing of them runs, nothing outside of the file is read, the message is one line."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_writer import (
    HOOKS,
    call,
    legacy,
    mapping,
    name,
    number,
    numbers,
    pickled,
    state_dict,
    storage,
    tensor,
    text,
    tuple_of,
    write_zip,
)

from bloomref.errors import BadWeights, BloomrefError, Unsupported
from bloomref.formats.pickles import pickle_machine, torch_file
from bloomref.formats.pickles.pickle_machine import Inert, Rules, read_pickle
from bloomref.formats.pickles.torch_file import TorchFile

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
BODY, DATA = state_dict({"w": ARRAY})
GOOD = storage("0", 6)
SYSTEM = name("os", "system")
RUN = tuple_of(text("touch hacked"))


def nested(depth: int) -> bytes:
    return b")" + b"\x85" * depth


def doubled(depth: int) -> bytes:
    """A tuple of two equal tuples, of two equal tuples ...: 2^depth leaves in 5 bytes for each level."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(depth))


# Pickles that would run code, or take time or memory without bound -> words of the message
HOSTILE: dict[str, tuple[bytes, str]] = {
    "REDUCE": (SYSTEM + RUN + b"R", "'os.system'"),
    "REDUCE of posix": (name("posix", "system") + RUN + b"R", "'posix.system'"),
    "GLOBAL alone": (mapping({"w": SYSTEM}), "'os.system'"),
    "STACK_GLOBAL": (text("os") + text("system") + b"\x93" + RUN + b"R", "'os.system'"),
    "STACK_GLOBAL with dots": (text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93", "__globals__"),
    "STACK_GLOBAL without texts": (number(1) + number(2) + b"\x93", "a name that is a text"),
    "INST": (b"(" + text("touch hacked") + b"ios\nsystem\n", r"opcode b'i'"),
    "OBJ": (b"(" + SYSTEM + text("touch hacked") + b"o", "'os.system'"),
    "OBJ of a known name": (b"(" + name("collections", "OrderedDict") + b"o", r"opcode b'o'"),
    "NEWOBJ": (name("subprocess", "Popen") + RUN + b"\x81", "'subprocess.Popen'"),
    "NEWOBJ of a known name": (name("collections", "OrderedDict") + b")\x81", "no object but tensors"),
    "NEWOBJ_EX": (name("collections", "OrderedDict") + b")}\x92", r"opcode b'\\x92'"),
    "BUILD of a tensor": (tensor(GOOD, (6,)) + mapping({"__class__": number(1)}) + b"b", "attributes of a dict"),
    "BUILD of a function": (name("torch._utils", "_rebuild_tensor_v2") + b"}b", "attributes of a dict"),
    "BUILD of a number": (number(1) + b"}b", "attributes of a dict"),
    "getattr": (name("builtins", "getattr") + RUN + b"R", "'builtins.getattr'"),
    "getattr, Python 2": (name("__builtin__", "getattr") + RUN + b"R", "'__builtin__.getattr'"),
    "eval": (call("builtins", "eval", text("1")), "'builtins.eval'"),
    "functools.partial": (call("functools", "partial", SYSTEM), "'functools.partial'"),
    "operator.attrgetter": (call("operator", "attrgetter", text("system")), "'operator.attrgetter'"),
    "torch.load": (call("torch", "load", text("x")), "'torch.load'"),
    "torch.hub": (call("torch.hub", "load", text("x")), "'torch.hub.load'"),
    "a name with a newline's neighbours": (name("collections", "OrderedDict\0"), "OrderedDict"),
    "a name of this library": (call("bloomref.formats.pickles.torch_file", "TorchFile", text("x")), "TorchFile"),
    "an endless name": (b"c" + b"a" * 5000, "a name of at most"),
    "a tensor from a text": (text("0") + b"Q", "another persistent id"),
    "a persistent id of protocol 0": (b"P0\n", r"opcode b'P'"),
    "an extension code": (b"\x82\x01", r"opcode b'\\x82'"),
    "the memo as a function": (name("torch", "FloatStorage") + b"q\0" + RUN + b"R", "a function of tensors"),
    "an entry of the memo that changes": (HOOKS + b"q\0" + text("os") + b"q\0h\0)R", "a function of tensors"),
    "an empty entry of the memo": (b"h\x07", "entry 7, which is empty"),
    "a large index of the memo": (text("a") + b"r\xff\xff\xff\xffj\xfe\xff\xff\xff", "which is empty"),
    "an empty stack": (b"R", "a value on the stack"),
    "a missing mark": (b"t", "a mark on the stack"),
    "two values": (b"NN", "one value at the end"),
    "an open mark": (b"N(N", "one value at the end"),
    "POP": (b"NN0", r"opcode b'0'"),
    "a call without a tuple": (name("collections", "OrderedDict") + b"}R", "a tuple of arguments"),
    "nested tuples": (nested(20_000), "a dict of tensors"),
    "nested tuples as a tensor": (mapping({"w": nested(20_000)}), "got tuple"),
    "nested tuples as arguments": (call("torch._utils", "_rebuild_tensor_v2", *[nested(2000)] * 6), "a storage"),
    "nested tuples as a shape": (tuple_of(GOOD, number(0), nested(2000), b")"), "a dict of tensors"),
    "doubled tuples as a key": (b"}" + doubled(200) + b"Ns", "a key that is a text"),
    "doubled tuples as a tensor": (mapping({"w": doubled(200)}), "got tuple"),
    "doubled tuples as a persistent id": (doubled(200) + b"Q", "another persistent id"),
    "a list that holds itself": (b"]q\0h\0a", "a dict of tensors"),
    "a dict that holds itself": (b"}q\0" + text("w") + b"h\0s", "expected a tensor, got dict"),
    "a tensor as a key": (b"}" + tensor(GOOD, (6,)) + b"Ns", "a key that is a text"),
    "one key without a value": (b"}(" + text("w") + b"u", "keys and values"),
    "items for a tuple": (b")(" + text("w") + b"Nu", "a dict, keys and values"),
    "appended to a dict": (b"}Na", "a list to append to"),
    "a text longer than the file": (b"X\xff\xff\xff\xff", "the end of its data"),
    "a text that is not UTF-8": (b"X\1\0\0\0\xff", "a text in UTF-8"),
    "a long integer of protocol 2": (b"\x8b\xff\xff\xff\x7f", "opcode"),
    "an OrderedDict with arguments": (call("collections", "OrderedDict", b"]"), "without arguments"),
    "a parameter of no tensor": (call("torch._utils", "_rebuild_parameter", number(1)), "a tensor for a parameter"),
    "no tensors": (b"}", "a dict of tensors"),
    "a key that is a number": (b"}" + number(1) + tensor(GOOD, (6,)) + b"s", "1: expected a tensor"),
}


def placed(body: bytes, folder: Path, is_zip: bool) -> Path:
    path = folder / "weights.bin"
    if is_zip:
        write_zip(path, body, DATA)
    else:
        path.write_bytes(legacy(body, {"0": (6, DATA["0"])}))
    return path


@pytest.mark.clause("WGT-30")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_and_nothing_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body, words = HOSTILE[kind]
    with pytest.raises(BadWeights, match=words) as refusal:
        TorchFile(placed(body, tmp_path, is_zip=True)).tensors()
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
    with pytest.raises(BadWeights):
        TorchFile(placed(body, tmp_path, is_zip=False)).tensors()
    assert not (tmp_path / "hacked").exists()


def test_the_number_of_opcodes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "MAX_OPCODES", 1000)
    assert read_pickle(pickled(b"(" * 499 + b"t" * 499), Rules({}, lambda _: None), "a.pkl")
    with pytest.raises(BadWeights, match="at most 1000 opcodes"):
        read_pickle(pickled(b"(" * 1001), Rules({}, lambda _: None), "a.pkl")


def test_the_size_of_the_pickle_in_an_archive_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "MAX_BYTES", len(pickled(BODY)))
    TorchFile(placed(BODY, tmp_path, is_zip=True))
    monkeypatch.setattr(torch_file, "MAX_BYTES", len(pickled(BODY)) - 1)
    with pytest.raises(BadWeights, match=r"data\.pkl: expected at most"):
        TorchFile(placed(BODY, tmp_path, is_zip=True))


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("hacked", "w")


@pytest.mark.clause("WGT-30")
@pytest.mark.parametrize("protocol", range(6))
def test_python_pickles_of_any_protocol_run_nothing(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadWeights):
        read_pickle(pickle.dumps({"w": Dangerous()}, protocol), Rules({}, lambda _: None), "w.bin")
    assert not (tmp_path / "hacked").exists()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.clause("WGT-30")
@given(values, st.integers(2, 5))
@settings(max_examples=60)
def test_plain_values_are_read_as_python_reads_them(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    assert read_pickle(data + b"more", Rules({}, lambda _: None), "a.pkl") == (value, len(data))


def test_unknown_classes_are_only_names_where_the_caller_allows_them() -> None:
    body = name("argparse", "Namespace") + b")\x81" + mapping({"n": number(3), "f": SYSTEM + RUN + b"R"}) + b"b"
    value, _ = read_pickle(pickled(body), Rules({}, lambda _: None, inert=True), "a.pt")
    assert (value.name, value.arguments, value.state["n"]) == ("argparse.Namespace", (), 3)
    assert isinstance(value.state["f"], Inert)
    assert (value.state["f"].name, value.state["f"].arguments) == ("os.system", ("touch hacked",))
    filled = name("collections", "deque") + b")R(NNe(" + text("a") + b"Nu"
    value, _ = read_pickle(pickled(filled), Rules({}, lambda _: None, inert=True), "a.pt")
    assert isinstance(value, Inert)


# --- tensors -----------------------------------------------------------------------------------------------------


def rebuilt(*arguments: bytes) -> bytes:
    return call("torch._utils", "_rebuild_tensor_v2", *arguments)


BIG = 1 << 59
TENSORS: dict[str, tuple[bytes, str]] = {
    "longer than the storage": (tensor(GOOD, (7,)), "within the 6 numbers"),
    "offset": (tensor(GOOD, (6,), (1,), 1), "offset 1"),
    "offset of an empty tensor": (tensor(GOOD, (0,), (1,), 7), "offset 7"),
    "negative offset": (tensor(GOOD, (1,), (1,), -1), "a storage, an offset"),
    "negative length": (tensor(GOOD, (-1,), (1,)), "a storage, an offset"),
    "negative stride": (tensor(GOOD, (2,), (-1,), 5), "a storage, an offset"),
    "strides past the end": (tensor(GOOD, (2, 2), (4, 2)), r"strides \[4, 2\]"),
    "stride of 0": (tensor(GOOD, (1000, 1000), (0, 0)), "within the 6 numbers"),
    "large stride": (tensor(GOOD, (2,), (BIG,)), "within the 6 numbers"),
    "large lengths": (tensor(GOOD, (BIG, BIG), (0, 0)), "a storage, an offset"),
    "large lengths, none": (tensor(GOOD, (0, BIG, BIG), (1, 1, 1)), "a storage, an offset"),
    "33 axes": (tensor(GOOD, (1,) * 33), "a storage, an offset"),
    "fewer strides": (tensor(GOOD, (2, 3), (1,)), "one stride for each axis"),
    "a Boolean as offset": (rebuilt(GOOD, b"\x88", numbers((1,)), numbers((1,)), b"\x89", HOOKS), "a storage, an offset"),
    "a list as shape": (rebuilt(GOOD, number(0), b"]", b")", b"\x89", HOOKS), "a storage, an offset"),
    "no storage": (rebuilt(number(0), number(0), b")", b")", b"\x89", HOOKS), "a storage, an offset"),
    "few arguments": (rebuilt(GOOD), "a storage, an offset"),
    "a conjugate view": (tensor(GOOD, (6,), (1,), 0, mapping({"conj": b"\x88"})), "no other facts"),
    "another size": (tensor(storage("0", 5), (5,)), "5 numbers of float32"),
    "a larger storage": (tensor(storage("0", BIG), (5,)), "numbers of float32"),
    "a storage beyond any file": (tensor(storage("0", 1 << 62), (5,)), "another persistent id"),
    "another type": (tensor(storage("0", 6, "Double"), (5,)), "6 numbers of float64"),
    "an unknown type": (tensor(storage("0", 6, "ComplexFloat"), (5,)), "torch.ComplexFloatStorage"),
    "two types": (mapping({"a": tensor(GOOD, (6,)), "b": tensor(storage("0", 3, "Double"), (3,))}), "got two"),
    "an unknown storage": (tensor(storage("../../etc/passwd", 6), (6,)), "etc/passwd|keys of its"),
    "control characters": (tensor(storage("\x1b[2J\n", 6), (6,)), r"x1b|keys of its"),
    "no data": (tensor(storage("0", 6, "Float", "meta"), (6,)), "without data"),
    "a view of a storage": (tensor(storage("0", 6, "Float", "cpu", numbers((0, 6))), (6,)), "another persistent id"),
}  # fmt: skip


@pytest.mark.clause("WGT-31")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_beyond_its_storage_is_refused(kind: str, is_zip: bool, tmp_path: Path) -> None:
    body, words = TENSORS[kind]
    with pytest.raises(BadWeights, match=rf"^\S*weights\.bin: .*({words})"):
        TorchFile(placed(mapping({"w": body}), tmp_path, is_zip))


lengths = st.integers(0, 4)
views = st.lists(st.tuples(lengths, lengths), max_size=3)


@pytest.mark.clause("WGT-31")
@given(views, st.integers(0, 24))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_view_inside_its_storage_is_read(tmp_path: Path, axes: list[tuple[int, int]], offset: int) -> None:
    flat = np.arange(24, dtype=np.float32)
    shape, strides = tuple(a for a, _ in axes), tuple(b for _, b in axes)
    path = tmp_path / "a.bin"
    write_zip(path, mapping({"w": tensor(storage("0", 24), shape, strides, offset)}), {"0": flat.tobytes()})
    places = offset + sum((np.indices(shape).T * strides).T) if shape else np.array(offset)
    if np.size(places) > 24 or (np.size(places) and np.max(places) >= 24):
        with pytest.raises(BadWeights, match="within the 24 numbers"):
            TorchFile(path)
        return
    file = TorchFile(path)
    view = file.view(file.tensors()["w"])
    assert not view.flags.writeable
    np.testing.assert_array_equal(view, flat[places])


def test_a_parameter_is_its_tensor_and_an_axis_of_length_1_may_have_any_stride(tmp_path: Path) -> None:
    body = call("torch._utils", "_rebuild_parameter", tensor(GOOD, (1, 6), (BIG, 1)), b"\x88", HOOKS)
    view = read(placed(mapping({"w": body}), tmp_path, is_zip=True))
    assert view.strides == (0, 4)
    np.testing.assert_array_equal(view, ARRAY.reshape(1, 6))


# --- archives ----------------------------------------------------------------------------------------------------


def repacked(change: Callable[[zipfile.ZipFile], object]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(BODY))
        archive.writestr("archive/data/0", DATA["0"])
        change(archive)
    return buffer.getvalue()


def compressed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled(BODY) + bytes(10_000_000))
    return buffer.getvalue()


def patched(at: int, form: str, value: int, record: bytes = b"PK\1\2", which: int = -1) -> bytes:
    """The good archive with another number in a record of its directory."""
    data = bytearray(repacked(lambda _: None))
    start = [i for i in range(len(data)) if data.startswith(record, i)][which]
    struct.pack_into(form, data, start + at, value)
    return bytes(data)


ARCHIVES: dict[str, tuple[bytes, str, type[BloomrefError]]] = {
    "a bomb": (compressed(), "compressed or encrypted", BadWeights),
    "encrypted": (patched(8, "<H", 1), "compressed or encrypted", BadWeights),
    "a name that leaves": (repacked(lambda a: a.writestr("archive/../../x", b"")), "members inside one folder", BadWeights),
    "an absolute name": (repacked(lambda a: a.writestr("/etc/x", b"")), "members inside one folder", BadWeights),
    "a drive": (repacked(lambda a: a.writestr("archive/C:\\x", b"")), "members", BadWeights),
    "two folders": (repacked(lambda a: a.writestr("other/x", b"")), "in one folder", BadWeights),
    "a pickle alone": (repacked(lambda a: a.writestr("data.pkl", b"")), "members inside one folder", BadWeights),
    "overlapping": (patched(42, "<I", 0), "separate members|other bytes", BadWeights),
    "a place inside another header": (patched(42, "<I", 3), "other bytes", BadWeights),
    "a header beyond the end": (patched(42, "<I", 1 << 30), "other bytes|whole ZIP", BadWeights),
    "a header before the start": (b"PK\3\4" + repacked(lambda _: None)[13:], "other bytes", BadWeights),
    "a size beyond the end": (patched(24, "<I", 1 << 30), "a range of the file", BadWeights),
    "two sizes of a member": (patched(20, "<I", 5), "a range of the file", BadWeights),
    "a damaged checksum": (patched(16, "<I", 12345), "its checksum", BadWeights),
    "TorchScript": (repacked(lambda a: a.writestr("archive/code/m.py", b"")), "TorchScript", Unsupported),
    "big-endian": (repacked(lambda a: a.writestr("archive/byteorder", b"big")), "little-endian", Unsupported),
    "no pickle": (repacked(lambda _: None).replace(b"data.pkl", b"data.pk1"), "member data.pkl|archive", BloomrefError),
}  # fmt: skip


def read(path: Path) -> np.ndarray:
    file = TorchFile(path)
    return file.view(file.tensors()["w"])


@pytest.mark.clause("WGT-31")
@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_hostile_archive_is_refused(kind: str, tmp_path: Path) -> None:
    content, words, error = ARCHIVES[kind]
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(error, match=words):
        read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(repacked(lambda archive: archive.writestr("archive/data/0", DATA["0"])))
    with pytest.raises(BadWeights, match="different names"):
        TorchFile(tmp_path / "w.bin")


def test_a_checksum_of_zero_is_no_checksum(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(patched(16, "<I", 0))
    np.testing.assert_array_equal(read(tmp_path / "w.bin"), ARRAY)


FILES = {"zip": repacked(lambda _: None), "legacy": legacy(BODY, {"0": (6, DATA["0"])})}


@pytest.mark.clause("WGT-31")
@pytest.mark.parametrize("kind", FILES)
def test_a_cut_file_is_refused_wherever_it_ends(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    for length in (*range(0, len(FILES[kind]), 11), len(FILES[kind]) - 1):
        path.write_bytes(FILES[kind][:length])
        with pytest.raises(BloomrefError):
            TorchFile(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (legacy(BODY, {"0": (6, DATA["0"])}, little=False), "little-endian"),
        (legacy(BODY, {"0": (5, DATA["0"])}), "6 numbers of float32"),
        (legacy(BODY, {"1": (6, DATA["0"])}), "keys of its 1 storages"),
        (legacy(BODY, {"0": (6, DATA["0"]), "1": (1, b"")}), "keys of its 1 storages"),
        (legacy(BODY, {"0": (6, DATA["0"])}).replace(b"](" + text("0") + b"e", b"]]a"), "keys of its 1 storages"),
        (pickled(number(7)) * 5, "another pickle"),
        (pickled(doubled(200)) * 5, "another pickle"),
    ],
)
def test_a_hostile_legacy_file_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(BloomrefError, match=words):
        TorchFile(tmp_path / "w.bin")


@pytest.mark.clause("WGT-30")
@given(data=st.data(), kind=st.sampled_from(sorted(FILES)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_refused_or_reads_inside_the_file(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "w.bin").write_bytes(content)
    try:
        file = TorchFile(tmp_path / "w.bin")
        assert all(file.view(tensor).nbytes <= len(content) for tensor in file.tensors().values())
    except BloomrefError:
        return


def test_legacy_storages_follow_each_other(tmp_path: Path) -> None:
    arrays = {"a": ARRAY, "b": ARRAY.astype(np.float64) / 3, "c": np.arange(4)}
    body, data = state_dict(arrays, b"N")
    sizes = {key: (array.size, data[key]) for key, array in zip(data, arrays.values(), strict=True)}
    (tmp_path / "w.bin").write_bytes(legacy(body, sizes))
    file = TorchFile(tmp_path / "w.bin")
    for key, view in file.tensors().items():
        np.testing.assert_array_equal(file.view(view), arrays[key])
    assert [place.start < after.start for place, after in pairwise(file._places.values())] == [True, True]
