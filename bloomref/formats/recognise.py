"""The nature of a file that is not what its reader expects, from its first bytes or its name; and what to do with it.

Nothing is decompressed, unpickled or executed.
"""

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bloomref.errors import BadWeights, BloomrefError, Unsupported

_HEAD = 1024  # bytes of a file that are looked at


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        what: what it is, for the place of "got" in a message.
        remedy: the next command, in which {path} and {folder} stand for the file and its folder.
        error: BadWeights for a file that is damaged or only stands for another one, Unsupported for another format.
    """

    what: str
    remedy: str
    error: type[BloomrefError] = Unsupported

    def refusal(self, path: Path, expected: str) -> BloomrefError:
        """The error for a file of this kind at `path` where `expected` was to be."""
        remedy = self.remedy.replace("{path}", str(path)).replace("{folder}", str(path.parent))
        return self.error(f"{path}: expected {expected}, got {self.what}; {remedy}")


AGAIN = "download it again, for example with `bloomref download hf://user/repo`"
FROM_PICKLE = "it can run any code, so bloomref does not load it; `bloomref convert --from-pickle {folder} OUT` reads its tensors only"
_ORIGINAL = "bloomref reads safetensors and Keras weights: get the checkpoint from which it was made"
_BY_TRANSFORMERS = (
    "convert it with transformers 4: `BloomForCausalLM.from_pretrained('{folder}', %s=True).save_pretrained('OUT')`"
)
_UNPACK = "unpack it, and pass the folder with config.json"

PICKLE = Kind("a PyTorch file (a pickle)", FROM_PICKLE)
MEGATRON = Kind(
    "a layer file of Megatron-DeepSpeed (a pickle)",
    "`bloomref convert --from-pickle {folder} OUT` joins the layers, and runs none of their code",
)
FLAX = Kind("Flax weights (msgpack)", _BY_TRANSFORMERS % "from_flax")
TENSORFLOW = Kind("TensorFlow weights", _BY_TRANSFORMERS % "from_tf")
GGUF = Kind("a GGUF file, which llama.cpp reads", _ORIGINAL)
ONNX = Kind("an ONNX graph", _ORIGINAL)
SAFETENSORS = Kind("a safetensors file", "rename it to the expected name if it holds those weights", BadWeights)
HDF5 = Kind(
    "an HDF5 file (Keras or TensorFlow)",
    "name Keras weights model.weights.h5, beside their own config.json",
    BadWeights,
)
EMPTY = Kind("an empty file", f"its download or copy was interrupted; {AGAIN}", BadWeights)
ZEROS = Kind("zeros only", f"its download was interrupted; {AGAIN}", BadWeights)
PARTIAL = Kind("an incomplete download", f"let it finish, or {AGAIN}", BadWeights)
CUT_ZIP = Kind(
    "the first part of a PyTorch file or another zip archive", f"the download is incomplete; {AGAIN}", BadWeights
)
JSON = Kind("a JSON text", AGAIN, BadWeights)
BROKEN_LINK = Kind("a link to a file that does not exist", f"its target was moved or deleted; {AGAIN}", BadWeights)
HTML = Kind("an HTML page in its place", f"{AGAIN}, or a link of the hub with /resolve/ in place of /blob/", BadWeights)
ANNEX = Kind("a git-annex pointer", "the content was not downloaded; run `git annex get {path}`", BadWeights)

_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"GGUF", GGUF),
    (b"ggml", GGUF),
    (b"lmgg", GGUF),
    (b"tjgg", GGUF),
    (b"\x89HDF\r\n\x1a\n", HDF5),
    (b"\x1f\x8b", Kind("a gzip archive", _UNPACK)),
    (b"BZh", Kind("a bzip2 archive", _UNPACK)),
    (b"\xfd7zXZ\0", Kind("an xz archive", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", Kind("a zstd archive", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", _UNPACK)),
    (b"\x93NUMPY", Kind("a NumPy array", _ORIGINAL)),
    (b"PAR1", Kind("a Parquet file", _ORIGINAL)),
    (b"ARROW1", Kind("an Arrow file", _ORIGINAL)),
    (b"%PDF", Kind("a PDF document", AGAIN, BadWeights)),
)
# in this order: the first pattern that fits a file's lower-case name
_NAMES: tuple[tuple[str, Kind], ...] = (
    (r".*\.(incomplete|part|partial|crdownload|aria2|download|tmp)", PARTIAL),
    (r"layer_\d+-model_\d+-model_states\.pt|mp_rank_\d+.*_model_states\.pt", MEGATRON),
    (r".*zero_pp_rank_\d+.*\.pt", MEGATRON),
    (r".*\.(gguf|ggml)|ggml-.*\.bin", GGUF),
    (r".*\.msgpack(\.index\.json)?|flax_model.*", FLAX),
    (r"tf_model.*\.h5|saved_model\.pb|.*\.ckpt(\.index|\.meta|-\d+\..*|\.data-.*)", TENSORFLOW),
    (r".*\.onnx(_data|\.data)?", ONNX),
    (r"openvino_model.*\.(xml|bin)", Kind("an OpenVINO model", _ORIGINAL)),
    (r"rust_model\.ot", Kind("weights for rust-bert", _ORIGINAL)),
    (r".*\.(zip|tar|tgz|tar\.\w+|gz|xz|bz2|zst|7z)", Kind("an archive", _UNPACK)),
    (r".*\.(bin|pt|pth|ckpt)", PICKLE),
    (r".*\.safetensors", SAFETENSORS),
    (r".*\.(h5|hdf5|keras)", HDF5),
    (r".*\.(npz|npy)", Kind("NumPy arrays", _ORIGINAL)),
)
# what a training leaves beside the weights
_STATE = re.compile(r"optimizer.*|scheduler.*|training_args.*|trainer_state.*|rng_state.*|scaler.*|random_states.*")
_LFS_SIZE = re.compile(rb"^size (\d+)$", re.MULTILINE)


def by_name(name: str) -> Kind | None:
    """The kind of weights that a file's name promises; None for any other file, and for the state of a training."""
    if _STATE.fullmatch(name.lower()):
        return None
    return next((kind for pattern, kind in _NAMES if re.fullmatch(pattern, name.lower())), None)


def by_content(path: Path) -> Kind | None:
    """The kind of a file from its first bytes; None if they are of no known kind, or it is no file that can be read."""
    try:
        if not path.is_file():
            return BROKEN_LINK if path.is_symlink() and not path.exists() else None
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    if not head.strip(b"\0"):
        return ZEROS if head else EMPTY
    return _pointer(head) or _pickle(head) or _archive(head, path) or _plain(head, path) or _text(head)


def _pointer(head: bytes) -> Kind | None:
    if head.startswith((b"version https://git-lfs", b"version http://git-media")):
        size = _LFS_SIZE.search(head)
        of = f" to a file of {int(size[1])} bytes" if size and len(size[1]) < 20 else ""
        remedy = "the file itself was not downloaded; run `git lfs pull` in {folder}"
        return Kind(f"a git-lfs pointer{of}", remedy, BadWeights)
    return ANNEX if head.startswith((b"/annex/objects/", b"../.git/annex", b".git/annex")) else None


def _pickle(head: bytes) -> Kind | None:
    return PICKLE if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") else None


def _archive(head: bytes, path: Path) -> Kind | None:
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[257:262] == b"ustar":
        return Kind("a tar archive", _UNPACK)
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def _zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return CUT_ZIP
    if any(name.endswith(("data.pkl", ".pkl")) for name in names):
        return PICKLE
    if "model.weights.h5" in names:
        return Kind("a .keras archive", _UNPACK)
    if names and all(name.endswith(".npy") for name in names):
        return Kind("a NumPy archive", _ORIGINAL)
    return Kind("a zip archive", _UNPACK)


def _plain(head: bytes, path: Path) -> Kind | None:
    """Formats without a magic number: safetensors, msgpack of a dictionary, the protobuf of ONNX."""
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return SAFETENSORS
    if (head[:1] in b"\xde\xdf" or 0x81 <= head[0] <= 0x8F) and re.match(rb".{1,5}?[\xa1-\xbf\xd9][\w./]", head, re.S):
        return FLAX
    if re.match(rb"\x08[\x01-\x20]\x12.{1,2}(pytorch|tf2onnx|onnx|optimum|keras)", head, re.S):
        return ONNX
    return None


def _text(head: bytes) -> Kind | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return HTML
    if start.startswith(b"<"):
        return Kind("an XML page", f"a server's answer was saved in its place; {AGAIN}", BadWeights)
    if start.startswith((b"{", b"[")):
        return JSON
    text = head.decode("utf-8", "ignore")
    if len(text.encode()) < len(head) - 3 or not all(c.isprintable() or c.isspace() for c in text):
        return None
    return Kind(f"a text that begins with {text.strip()[:40]!r}", AGAIN, BadWeights)


@contextmanager
def named_for_what_it_is(path: Path, expected: str, *own: Kind) -> Iterator[None]:
    """Context manager: a reader's BadWeights about a file of another known kind becomes a message that names it.

    Args:
        path: the file that is read.
        expected: what it should be, for the message.
        own: the kinds that the reader itself reads; their own messages stay as they are.
    """
    try:
        yield
    except BadWeights as error:
        kind = by_content(path)
        if kind is None or kind in own:
            raise
        raise kind.refusal(path, expected) from error
