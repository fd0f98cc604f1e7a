"""Downloads from a local hub. Each load is a separate process, since huggingface_hub reads its environment once."""

import json
import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from local_hub import COMMIT, LocalHub

from bloomref.config import BloomConfig
from bloomref.formats.layouts import hf
from bloomref.params import init_params
from bloomref.presets import preset_registry

PRESETS_FOLDER = Path(preset_registry.__file__).parent
CONFIG = BloomConfig(vocabulary_size=64, num_layers=2, num_heads=3, hidden_dim=24, intermediate_dim=96)
SCRIPT = """
import json, sys
from bloomref.errors import BloomrefError
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.presets.resolver import resolve, resolve_adapter
for arguments in json.loads(sys.argv[1]):
    try:
        if adapter := arguments.pop("adapter", None):
            print(json.dumps(["ok", str(resolve_adapter(adapter)), None]))
            continue
        folder = resolve(**arguments)
        params = open_checkpoint(folder).params() if arguments.get("weights", True) else None
        print(json.dumps(["ok", str(folder), params and float(params.word_embedding.sum())]))
    except BloomrefError as error:
        print(json.dumps([type(error).__name__, str(error), None]))
"""
Outcome = tuple[str, str, float | None]


def load_all(home: Path, url: str, *calls: dict[str, object], offline: bool = False) -> list[Outcome]:
    """(ok, folder, a sum) or (error class, message, None) of each call, in one fresh process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, "-c", SCRIPT, json.dumps([{"preset": "hf://acme/bloom", **call} for call in calls])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def load(home: Path, url: str, offline: bool = False, **call: object) -> Outcome:
    return load_all(home, url, call, offline=offline)[0]


@pytest.fixture(scope="module")
def expected() -> float:
    return float(init_params(CONFIG, 5).word_embedding.sum())


def written(tmp_path_factory: pytest.TempPathFactory, **options: int) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("repository")
    hf.save(folder, CONFIG, init_params(CONFIG, 5), **options)
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    (folder / "README.md").write_text("the model card, which states the licence")
    (folder / "flax_model.msgpack").write_text("never fetched")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return written(tmp_path_factory)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return written(tmp_path_factory, max_shard_bytes=30_000)


def test_download_fetches_what_is_needed_and_then_works_offline(
    tmp_path: Path, sharded: dict[str, bytes], expected: float
) -> None:
    with LocalHub(sharded) as hub:
        outcome, folder, total = load(tmp_path, hub.url)
        assert (outcome, total) == ("ok", expected), folder
        assert Path(folder).name == COMMIT
        assert not hub.requested("pytorch_model.bin")
        assert hub.requested("README.md")
        assert not hub.requested("flax_model.msgpack")
        assert all(len(hub.requested(name)) == 1 for name in sharded if name.endswith(".safetensors"))
        seen = len(hub.log)
        assert load(tmp_path, hub.url, revision=COMMIT)[0] == "ok"
        assert not any("/resolve/" in path for _, path, _ in hub.log[seen:])
    assert load(tmp_path, hub.url, offline=True) == ("ok", folder, expected)
    assert load(tmp_path, hub.url) == ("ok", folder, expected)  # the hub is gone: the cache answers


@pytest.mark.slow
@pytest.mark.clause("PRE-9")
def test_an_adapter_is_two_files(tmp_path: Path, single: dict[str, bytes]) -> None:
    folder = PRESETS_FOLDER / "bloom_tiny_udhr_facts"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with LocalHub({**single, **files}) as hub:
        outcome, found, _ = load(tmp_path, hub.url, adapter="hf://acme/bloom")
        assert outcome == "ok", found
        assert {path.name for path in Path(found).iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
        assert (Path(found) / "adapter_model.safetensors").read_bytes() == files["adapter_model.safetensors"]
    assert load(tmp_path, hub.url, offline=True, adapter="hf://acme/bloom") == ("ok", found, None)


@pytest.mark.parametrize(
    ("names", "outcome", "said"),
    [
        ([], "BadWeights", "adapter_config.json"),
        (["adapter_config.json"], "Unsupported", "expected adapter_model.safetensors"),
        (["adapter_config.json", "adapter_model.bin"], "Unsupported", "pickle"),
    ],
)
def test_what_is_no_adapter_is_refused(
    tmp_path: Path, single: dict[str, bytes], names: list[str], outcome: str, said: str
) -> None:
    files = {name: content for name, content in single.items() if not name.endswith(".bin")}
    with LocalHub({**files, **dict.fromkeys(names, b"{}")}) as hub:
        found, message, _ = load(tmp_path, hub.url, adapter="hf://acme/bloom")
    assert (found, said in message) == (outcome, True), message


@pytest.mark.slow
def test_weights_are_left_out_on_request(tmp_path: Path, single: dict[str, bytes]) -> None:
    with LocalHub(single) as hub:
        assert load(tmp_path, hub.url, weights=False)[0] == "ok"
        assert not hub.requested("model.safetensors")
    assert load(tmp_path, hub.url, offline=True, weights=False)[0] == "ok"
    outcome, message, _ = load(tmp_path, hub.url, offline=True)
    assert (outcome, "HF_HUB_OFFLINE" in message) == ("Unsupported", True), message


@pytest.mark.skipif(version("huggingface_hub") < "2", reason="huggingface_hub before 2.0 begins such a file anew")
def test_cut_connection_is_resumed_where_it_broke(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = CONFIG.replace(vocabulary_size=120_000)  # 11.5 MB: huggingface_hub keeps what it has by pieces of 10 MiB
    folder = tmp_path_factory.mktemp("repository")
    hf.save(folder, config, init_params(config, 5))
    repository = {path.name: path.read_bytes() for path in folder.iterdir()}
    with LocalHub(repository, cut={"model.safetensors": 11_000_000}) as hub:
        outcome, message, _ = load(tmp_path, hub.url)
        assert outcome == "ok", message
        assert hub.requested("model.safetensors") == [None, f"bytes={10 * 2**20}-"]


def test_wrong_digest_is_refused_and_fetched_again_next_time(
    tmp_path: Path, single: dict[str, bytes], expected: float
) -> None:
    damaged = bytearray(single["model.safetensors"])
    damaged[-1] ^= 1  # the last bit of the last weight: nothing else could notice
    with LocalHub(single, served={"model.safetensors": bytes(damaged)}) as hub:
        outcome, message, _ = load(tmp_path, hub.url)
        assert (outcome, "digest" in message) == ("BadWeights", True), message
        hub.served = {}
        assert load(tmp_path, hub.url)[::2] == ("ok", expected)


def test_wrong_size_is_refused(tmp_path: Path, single: dict[str, bytes]) -> None:
    longer = single["model.safetensors"] + b"more"
    with LocalHub(single, served={"model.safetensors": longer}) as hub:
        outcome, message, _ = load(tmp_path, hub.url)
    assert (outcome, "size" in message) == ("BadWeights", True), message


@pytest.mark.slow
def test_missing_shard_is_named(tmp_path: Path, sharded: dict[str, bytes]) -> None:
    shard = next(name for name in sharded if name.startswith("model-00002"))
    with LocalHub(sharded, lost=frozenset({shard})) as hub:
        outcome, message, _ = load(tmp_path / "lost", hub.url)
    assert (outcome, shard in message) == ("BadWeights", True), message
    with LocalHub({name: content for name, content in sharded.items() if name != shard}) as hub:
        outcome, message, _ = load(tmp_path / "unlisted", hub.url)
    assert (outcome, shard in message) == ("BadWeights", True), message


@pytest.mark.clause("WGT-10")
def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path, single: dict[str, bytes]) -> None:
    only_pickle = {name: content for name, content in single.items() if name != "model.safetensors"}
    with LocalHub(only_pickle) as hub:
        outcome, message, _ = load(tmp_path, hub.url)
        assert not hub.requested("pytorch_model.bin")
    assert (outcome, "convert --from-pickle" in message) == ("Unsupported", True), message


@pytest.mark.clause("WGT-8")
def test_an_index_cannot_reach_out_of_the_repository(tmp_path: Path, sharded: dict[str, bytes]) -> None:
    index = json.loads(sharded["model.safetensors.index.json"])
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../../../secret.safetensors")
    with LocalHub({**sharded, "model.safetensors.index.json": json.dumps(index).encode()}) as hub:
        outcome, message, _ = load(tmp_path, hub.url)
    assert (outcome, "inside the checkpoint" in message) == ("BadWeights", True), message


@pytest.mark.slow
def test_refusals_of_the_hub(tmp_path: Path, single: dict[str, bytes]) -> None:
    expected = {
        "acme/gated": ((401, "GatedRepo"), "Unsupported", "accept its conditions"),
        "acme/pending": ((403, "GatedRepo"), "Unsupported", "accept its conditions"),
        "acme/unknown": ((401, "RepoNotFound"), "InvalidInput", "none of this name"),
        "acme/gone": ((404, "RepoNotFound"), "InvalidInput", "none of this name"),
        "acme/forbidden": ((403, ""), "Unsupported", "hf auth login"),
        "acme/down": ((500, ""), "Unsupported", "HTTP 500"),
    }
    refusals = {name: answer for name, (answer, _, _) in expected.items()}
    with LocalHub(single, refusals=refusals) as hub:
        outcomes = load_all(tmp_path, hub.url, *({"preset": f"hf://{name}"} for name in expected))
    assert len(outcomes) == len(expected)
    for (name, (_, kind, words)), (found, message, _) in zip(expected.items(), outcomes, strict=True):
        assert (found, words in message, name in message) == (kind, True, True), message


@pytest.mark.slow
def test_names_that_the_hub_does_not_have(tmp_path: Path, single: dict[str, bytes]) -> None:
    with LocalHub(single) as hub:
        calls = [{"preset": "hf://acme/bloom@nowhere"}, {"preset": "hf://acme/other"}, {"preset": "hf://acme/a b"}]
        revision, repository, malformed = load_all(tmp_path, hub.url, *calls)
    assert (revision[0], "nowhere" in revision[1]) == ("InvalidInput", True), revision
    assert (repository[0], "acme/other" in repository[1]) == ("InvalidInput", True), repository
    assert (malformed[0], "hf://user/repo" in malformed[1]) == ("InvalidInput", True), malformed


@pytest.mark.slow
def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as listener:  # a port that was free, and on which nobody listens
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    outcome, message, _ = load(tmp_path, f"http://127.0.0.1:{port}")
    assert (outcome, "check the network" in message) == ("Unsupported", True), message


@pytest.mark.slow
def test_offline_without_a_cache(tmp_path: Path) -> None:
    outcome, message, _ = load(tmp_path, "http://127.0.0.1:9", offline=True)
    assert (outcome, "HF_HUB_OFFLINE" in message) == ("Unsupported", True), message


@pytest.mark.slow
def test_keras_layout(tmp_path: Path, expected: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("h5py")
    from bloomref.formats.layouts import keras

    folder = tmp_path_factory.mktemp("keras")
    keras.save(folder, CONFIG, init_params(CONFIG, 5), max_shard_bytes=30_000)
    with LocalHub({path.name: path.read_bytes() for path in folder.iterdir()}) as hub:
        outcome, message, total = load(tmp_path, hub.url)
    assert (outcome, total) == ("ok", expected), message
    assert np.isfinite(expected)
