"""Writer of torch's files without torch: pickles are put together opcode by opcode, so that they can be hostile."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

STORAGES = {"float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long"}


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def numbers(values: tuple[int, ...]) -> bytes:
    return tuple_of(*map(number, values))


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + tuple_of(*arguments) + b"R"


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def storage(key: str, size: int, kind: str = "Float", device: str = "cpu", *more: bytes) -> bytes:
    fields = (text("storage"), name("torch", f"{kind}Storage"), text(key), text(device), number(size), *more)
    return tuple_of(*fields) + b"Q"


HOOKS = call("collections", "OrderedDict")


def tensor(
    stored: bytes, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0, *more: bytes
) -> bytes:
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    facts = (stored, number(offset), numbers(shape), numbers(strides), b"\x89", HOOKS, *more)
    return call("torch._utils", "_rebuild_tensor_v2", *facts)


def write_zip(path: Path, body: bytes, data: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(body))
        for key, content in data.items():
            archive.writestr(f"archive/data/{key}", content)


def legacy(body: bytes, data: Mapping[str, tuple[int, bytes]], little: bool = True) -> bytes:
    """A file of torch before 1.6: `data` has the number of elements and the bytes of each storage."""
    facts = b"}" + text("little_endian") + (b"\x88" if little else b"\x89") + b"s"
    keys = b"](" + b"".join(map(text, data)) + b"e"
    parts = [pickled(part) for part in (number(0x1950A86A20F9469CFC6C), number(1001), facts, body, keys)]
    return b"".join(parts) + b"".join(struct.pack("<q", size) + content for size, content in data.values())


def state_dict(arrays: Mapping[str, np.ndarray], *more: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Body of a pickle, and the bytes of one storage for each array."""
    kinds = {key: STORAGES[array.dtype.name] for key, array in arrays.items()}
    items = {
        key: tensor(storage(str(i), array.size, kinds[key], "cpu", *more), array.shape)
        for i, (key, array) in enumerate(arrays.items())
    }
    return mapping(items), {str(i): array.tobytes() for i, array in enumerate(arrays.values())}


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as torch.save writes tensors."""
    write_zip(path, *state_dict(arrays))
