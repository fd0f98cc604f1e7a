"""A backend in torch, on any of its devices: `bloomref generate --backend torch`, or `torch:cuda`.

docs/writing-a-backend.md explains the interface. One forward pass serves generation and, by autograd, training.
"""

import math

import numpy as np
import torch
from torch.nn import functional

from bloomref import alibi
from bloomref.dtypes import accumulation_dtype, cast
from bloomref.errors import BadWeights, InvalidInput, Unsupported
from bloomref.params import LM_HEAD, WORD_EMBEDDING, count_params
from bloomref.runtime.backend import API_VERSION, Declaration, Memory


def to_torch(array, device, dtype=None):
    """A copy of a NumPy array on the device. torch reads neither bfloat16 of NumPy nor a negative stride."""
    array = array.astype(np.float32) if array.dtype.kind == "V" else array.copy()
    return torch.from_numpy(array).to(device, dtype)


def dropout(x, rate, rng):
    """Dropout by the draws of the reference: a float32 number of the host's generator for each element (MOD-10)."""
    if rng is None or rate == 0:
        return x
    return torch.where(to_torch(rng.random(tuple(x.shape), np.float32) < rate, x.device), 0.0, x / (1 - rate))


def low_rank(factors, a, b, x, rng):
    """The term of one LoRA adapter, as in the table of `bloomref.params.LoraFactors`."""
    if factors.kind == "embedding":
        return factors.scale * (functional.embedding(x, a.T) @ b.T)
    x = dropout(x, factors.dropout, rng)
    if factors.kind == "matrix":
        return factors.scale * (x @ a.T @ b.T)
    term = factors.scale * (torch.einsum("btd,dhr->bthr", x, a) @ b)  # (B, T, H, K)
    return functional.pad(term[..., None, :], (0, 0, factors.projection, 2 - factors.projection)).flatten(2)


class Cache:
    """Keys and values of all layers: (2, L, B, H, P, K), in the compute dtype."""

    def __init__(self, tensor):
        self.tensor = tensor

    def select(self, rows):
        return Cache(self.tensor[:, :, to_torch(rows, self.tensor.device)])  # indexing by a tensor copies


class Model:
    """A prepared model. Hidden states are in the accumulation dtype; `round` is the only rounding (NUM-2)."""

    def __init__(self, params, config, dtype, device, change=lambda _, tensor: tensor):
        self.config, self.device, self.host_dtype = config, device, dtype
        self.dtype, self.wide = (getattr(torch, d.name) for d in (dtype, accumulation_dtype(dtype)))
        self.slopes = to_torch(alibi.slopes(config.num_heads, accumulation_dtype(dtype)), device)
        self.weights, self.adapters = {}, {}
        for key, weight, array in params.named():
            self.weights[key] = change(key, to_torch(array, device, self.dtype))
            owner = params.layers[int(key.split(".")[1])] if key.startswith("h.") else params
            for factors in owner.adapters.get(weight.attribute, ()):
                a, b = (change(factors.key(key, n), to_torch(getattr(factors, n), device, self.wide)) for n in "ab")
                self.adapters.setdefault(key, []).append((factors, a, b))

    def embed(self, token_ids):
        ids = to_torch(token_ids, self.device, torch.int64)
        x = functional.embedding(ids, self.weight(WORD_EMBEDDING.hf_key))
        x = x + sum(low_rank(*adapter, ids, None) for adapter in self.adapters.get(WORD_EMBEDDING.hf_key, ()))
        return self.round(self.norm("word_embeddings_layernorm", x))

    def attention_block(self, layer, x, cache, step):
        def store(key, value):
            stop = step.start + x.shape[1]
            cache.tensor[:, layer, :, :, step.start : stop] = torch.stack([key, value])  # rounds to the compute dtype
            return cache.tensor[:, layer, :, :, :stop].to(self.wide)

        visible, bias = step.derive("view", lambda: self.view(step.key_is_real, step.start))  # once for all layers
        return self.attention(layer, x, visible, bias, store)

    def view(self, key_is_real, start):
        """Keys that each query sees, (B, 1, T, S), and the bias of ALiBi, (H, T, S)."""
        column = torch.arange(key_is_real.shape[1], device=self.device)
        distance = column - column[start:, None]
        visible = (distance <= 0) & to_torch(key_is_real, self.device)[:, None]
        return visible[:, None], self.slopes[:, None, None] * distance.to(self.wide)

    def attention(self, layer, x, visible, bias, store=lambda key, value: (key, value), rng=None):
        normed = self.norm(f"h.{layer}.input_layernorm", x)
        fused = self.linear(f"h.{layer}.self_attention.query_key_value", normed, rng)
        query, key, value = fused.unflatten(-1, (self.config.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)  # (B, H, T, K)
        keys, values = store(key, value)
        scores = query / math.sqrt(self.config.head_dim) @ keys.mT + bias
        hidden = torch.finfo(self.wide).min  # below every score, and no NaN in a row that sees nothing
        probabilities = scores.masked_fill(~visible, hidden).softmax(-1)
        context = (dropout(probabilities, self.config.attention_dropout, rng) @ values).transpose(1, 2).flatten(2)
        return self.residual(x, normed, self.linear(f"h.{layer}.self_attention.dense", context, rng), rng)

    def mlp_block(self, layer, x, rng=None):
        normed = self.norm(f"h.{layer}.post_attention_layernorm", x)
        up = self.linear(f"h.{layer}.mlp.dense_h_to_4h", normed, rng)
        inner = 0.5 * up * (1 + torch.tanh(0.79788456 * up * (1 + 0.044715 * up * up)))  # torch's GELU has other digits
        return self.residual(x, normed, self.linear(f"h.{layer}.mlp.dense_4h_to_h", inner, rng), rng)

    def final_norm(self, x):
        return self.round(self.norm("ln_f", x))

    def scores(self, x):
        return x @ self.weight(LM_HEAD.hf_key if LM_HEAD.hf_key in self.weights else WORD_EMBEDDING.hf_key).T

    def round(self, x):
        return x.to(self.dtype).to(self.wide)

    def weight(self, key):
        return self.weights[key].to(self.wide)

    def norm(self, name, x):
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return functional.layer_norm(x, x.shape[-1:], weight, bias, self.config.layer_norm_epsilon)

    def linear(self, name, x, rng):
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias").flatten()
        y = functional.linear(x, weight.reshape(len(bias), -1), bias)
        return y + sum(low_rank(*adapter, x, rng) for adapter in self.adapters.get(f"{name}.weight", ()))

    def residual(self, x, normed, y, rng):
        base = normed if self.config.apply_residual_connection_post_layernorm else x
        return self.round(base + dropout(y, self.config.hidden_dropout, rng))

    def new_cache(self, batch, capacity):
        c = self.config
        shape = (2, c.num_layers, batch, c.num_heads, capacity, c.head_dim)
        return Cache(torch.zeros(shape, dtype=self.dtype, device=self.device))

    def logits(self, x, last_only):
        return self.scores(x[:, -1:] if last_only else x).cpu().numpy()

    def to_host(self, x):
        return x.cpu().numpy().astype(self.host_dtype)  # a copy

    def from_host(self, x):
        return to_torch(x, self.device, self.wide)

    def step(self, token_ids, cache, step):
        x = self.embed(token_ids[:, None])
        for layer in range(self.config.num_layers):
            x = self.mlp_block(layer, self.attention_block(layer, x, cache, step))
        return self.logits(self.final_norm(x), True)[:, 0]

    def tokens(self, token_ids, cache, step, choice, count):
        if choice.temperature is not None:
            raise Unsupported("tokens: expected no temperature; the host draws")
        ids, chosen = token_ids, []
        for n in range(count):
            real = np.concatenate([step.key_is_real, np.ones((len(ids), n), bool)], axis=1)
            scores = self.step(ids, cache, step.at(step.start + n, real))
            if not np.isfinite(scores).all():
                raise BadWeights("logits: expected finite numbers, got NaN or infinity")
            scores[:, [] if choice.forbidden is None else choice.forbidden] = -math.inf
            chosen.append(ids := scores.argmax(-1))
        return np.stack(chosen, axis=1)


class TorchBackend:
    api_version = API_VERSION
    declaration = Declaration(scores="float32", products="float32", packages=("torch",))

    def __init__(self, device):
        self.name, self.device = f"torch:{device}" if device else "torch", device or "cpu"

    def unsupported(self, config, policy):  # noqa: ARG002
        try:
            torch.zeros(1, dtype=getattr(torch, accumulation_dtype(policy.compute_dtype).name), device=self.device)
        except (AssertionError, RuntimeError, TypeError) as error:  # no such device here, or no float64 on it
            return f"{str(error).splitlines()[0]}; use backend 'torch', which runs on the CPU"
        return None

    def prepare(self, params, config, policy):
        rounded = params.map(lambda array: cast(cast(array, policy.variable_dtype), policy.compute_dtype))
        return Model(rounded, config, policy.compute_dtype, self.device)

    prepare_with_adapters = prepare

    def memory(self, config, policy, batch, length):
        compute, wide = policy.compute_dtype.itemsize, accumulation_dtype(policy.compute_dtype).itemsize
        cache = 2 * config.num_layers * batch * length * config.hidden_dim * compute
        head = 0 if wide == compute else config.vocabulary_size * config.hidden_dim * wide  # widened for the product
        return Memory(count_params(config) * compute, cache, head + batch * config.vocabulary_size * wide)

    def loss_and_gradients(self, params, config, token_ids, targets, document, trainable, rng):
        leaves = {}

        def leaf(key, tensor):
            if trainable(key):
                leaves[key] = tensor.requires_grad_()
            return tensor

        dtype = accumulation_dtype(params.word_embedding.dtype)  # nothing is rounded (GRD-5)
        model, numbers = Model(params, config, dtype, self.device, leaf), to_torch(document, self.device)
        visible, bias = model.view(document >= 0, 0)
        visible = visible & (numbers[:, :, None] == numbers[:, None, :])[:, None]
        x = model.embed(token_ids)
        for layer in range(config.num_layers):
            x = model.mlp_block(layer, model.attention(layer, x, visible, bias, rng=rng), rng)
        target, counted = to_torch(targets, self.device, torch.int64), to_torch(targets >= 0, self.device)
        losses = functional.cross_entropy(model.scores(model.final_norm(x)[counted]), target[counted], reduction="none")
        loss = losses.double().sum() / max(1, len(losses))  # a sum in float32 loses a digit
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True) if leaves else ()
        return loss.item(), {key: array.cpu().numpy() for key, array in zip(leaves, gradients, strict=True)}


def backend(device=""):
    try:
        torch.device(device or "cpu")
    except RuntimeError as error:
        raise InvalidInput(f"backend: expected a device of torch, got {device!r}") from error
    return TorchBackend(device)
