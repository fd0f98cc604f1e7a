"""Loading of weights: rounded once, padded, in chunks, from buffers that are not overwritten too early."""

from typing import Any

import numpy as np
import pytest
import strategies
from emulated_device import EmulatedDevice

from accel.cupy_gpu import loading
from bloomref.config import BloomConfig
from bloomref.dtypes import POLICIES, accumulation_dtype, cast

CONFIG = BloomConfig(
    vocabulary_size=301, num_layers=3, num_heads=3, hidden_dim=21, intermediate_dim=50, tie_word_embeddings=False
)


class Recording(EmulatedDevice):
    """Records the sizes of pinned buffers and of copies."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned_bytes: list[int] = []
        self.sent: list[int] = []

    def pinned(self, nbytes: int) -> Any:
        self.pinned_bytes.append(nbytes)
        return super().pinned(nbytes)

    def send(self, source: Any, target: Any) -> Any:
        self.sent.append(source.nbytes)
        return super().send(source, target)


@pytest.fixture(params=[1 << 25, 4096, 100], ids=["one chunk each", "some chunks", "a row each"])
def buffer_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(loading, "BUFFER_BYTES", request.param)
    return request.param


@pytest.mark.usefixtures("buffer_bytes")
@pytest.mark.parametrize("stored", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_weight_arrives_rounded(policy: str, stored: str) -> None:
    names = POLICIES[policy]
    params = strategies.Float32Case(CONFIG, seed=3).params.astype(POLICIES[stored].compute_dtype)
    weights = loading.load(Recording(), params, CONFIG, names)
    expected = params.map(lambda w: cast(cast(w, names.variable_dtype), names.compute_dtype))

    def same(matrix: Any, source: Any) -> None:
        n, k = len(matrix), source.size // len(matrix)
        assert matrix.shape == (n, (k + 7) // 8 * 8)
        assert matrix[:, :k].tobytes() == source.tobytes()
        assert not matrix[:, k:].astype(np.float32).any()

    def close(vector: Any, source: Any) -> None:
        assert vector.dtype == accumulation_dtype(names.compute_dtype)
        assert np.array_equal(vector, source.reshape(-1).astype(vector.dtype))

    same(weights.embedding, expected.word_embedding)
    assert expected.lm_head is not None
    same(weights.head, expected.lm_head)
    close(weights.ln_embedding.weight, expected.ln_embedding_weight)
    close(weights.ln_final.bias, expected.ln_final_bias)
    for layer, source in zip(weights.layers, expected.layers, strict=True):
        same(layer.qkv.weight, source.qkv_weight)
        same(layer.dense.weight, source.attn_out_weight)
        same(layer.up.weight, source.mlp_up_weight)
        same(layer.down.weight, source.mlp_down_weight)
        close(layer.qkv.bias, source.qkv_bias)
        close(layer.dense.bias, source.attn_out_bias)
        close(layer.up.bias, source.mlp_up_bias)
        close(layer.down.bias, source.mlp_down_bias)
        close(layer.ln_attn.weight, source.ln_attn_weight)
        close(layer.ln_attn.bias, source.ln_attn_bias)
        close(layer.ln_mlp.weight, source.ln_mlp_weight)
        close(layer.ln_mlp.bias, source.ln_mlp_bias)


def test_a_few_small_buffers_carry_all_weights(buffer_bytes: int) -> None:
    device, params = Recording(), strategies.Float32Case(CONFIG).params
    loading.load(device, params, CONFIG, POLICIES["float32"])
    longest_row = 4 * 56
    assert len(device.pinned_bytes) == loading.BUFFERS
    assert max(device.pinned_bytes) <= max(buffer_bytes, longest_row)
    matrices = [array for _, weight, array in params.named() if len(weight.hf_shape(CONFIG)) == 2]
    assert len(device.sent) >= len(matrices)
    assert sum(device.sent) >= 4 * sum(array.size for array in matrices)


def test_a_tied_head_is_the_embedding() -> None:
    tied = CONFIG.replace(tie_word_embeddings=False)
    tied = tied.replace(tie_word_embeddings=True)
    weights = loading.load(EmulatedDevice(), strategies.Float32Case(tied).params, tied, POLICIES["float32"])
    assert weights.head is weights.embedding


def test_a_failure_while_reading_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file may shrink or memory may run out; the threads must neither hang nor hide it."""
    calls, device, waited = [], EmulatedDevice(), []
    send = device.send

    def sending(source: Any, target: Any) -> Any:
        wait, number = send(source, target), len(waited)
        waited.append(False)
        return lambda: (wait(), waited.__setitem__(number, True))

    monkeypatch.setattr(device, "send", sending)

    def fail(values: Any, dtype: Any) -> Any:
        calls.append(values.shape)
        if values.ndim == 2 and len(calls) > 120:
            raise OSError("no more")
        return cast(values, dtype)

    monkeypatch.setattr(loading, "BUFFER_BYTES", 100)
    monkeypatch.setattr(loading, "cast", fail)
    with pytest.raises(OSError, match="no more"):
        loading.load(device, strategies.Float32Case(CONFIG).params, CONFIG, POLICIES["float32"])
    assert waited
    assert all(waited)  # no buffer is freed while the device copies from it


def test_a_buffer_that_is_overwritten_too_early_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without the wait, bytes are wrong on a device that copies as late as possible."""
    monkeypatch.setattr(loading, "BUFFER_BYTES", 100)
    params = strategies.Float32Case(CONFIG).params
    fill = loading._Loader._fill

    def hasty(self: Any, buffer: Any, chunk: Any) -> Any:
        late, buffer.wait = buffer.wait, lambda: None
        filled = fill(self, buffer, chunk)
        late()
        return filled

    monkeypatch.setattr(loading._Loader, "_fill", hasty)
    weights = loading.load(EmulatedDevice(), params, CONFIG, POLICIES["float64"])
    assert weights.embedding[:, :21].tobytes() != params.word_embedding.tobytes()
