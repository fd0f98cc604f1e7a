"""A whole backend in torch, on any of its devices: `bloomref generate --backend torch`, or `torch:cuda`.

docs/writing-a-backend.md explains the interface. `Model` has the arithmetic, for generation and for training.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from bloomref import alibi
from bloomref.dtypes import accumulation_dtype, cast
from bloomref.errors import BadWeights, InvalidInput
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
    dropped = rng.random(tuple(x.shape), np.float32) < rate
    return torch.where(to_torch(dropped, x.device), 0.0, x / (1 - rate))


def low_rank(factors, a, b, x, rng):
    """The term of one LoRA adapter, as in the table of `bloomref.params.LoraFactors`."""
    if factors.kind == "embedding":
        return factors.scale * (functional.embedding(x, a.T) @ b.T)
    x = dropout(x, factors.dropout, rng)
    if factors.kind == "matrix":
        return factors.scale * (x @ a.T @ b.T)
    term = factors.scale * (torch.einsum("btd,dhr->bthr", x, a) @ b)  # (B, T, H, K)
    fused = term.new_zeros(*term.shape[:3], 3, term.shape[3])
    fused[..., factors.projection, :] = term
    return fused.flatten(2)


def draw(scores, choice, drawn):
    """One id of each row, by the draw of the specification (GEN-9, GEN-10)."""
    scores = scores.double() / choice.temperature
    if choice.top_k is not None:
        lowest = scores.topk(min(choice.top_k, scores.shape[1])).values[:, -1:]
        scores = scores.masked_fill(scores < lowest, -math.inf)
    if choice.top_p < 1:
        ordered = scores.sort(descending=True).values
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # the probability of all that are better
        lowest = ordered.masked_fill(before >= choice.top_p, math.inf).amin(-1, keepdim=True)
        scores = scores.masked_fill(scores < lowest, -math.inf)
    uniform = [np.random.Generator(np.random.Philox(key=int(s), counter=drawn)).random() for s in choice.seeds]
    cumulative = scores.softmax(-1).cumsum(-1)
    return (cumulative <= scores.new_tensor(uniform)[:, None] * cumulative[:, -1:]).sum(-1)


class Model:
    """BLOOM over tensors by Hugging Face key, in the accumulation dtype; `round` is the only rounding (NUM-2)."""

    def __init__(self, params, config, dtype, device, change=lambda _, tensor: tensor):
        self.config, self.device = config, device
        self.dtype, self.wide = (getattr(torch, d.name) for d in (dtype, accumulation_dtype(dtype)))
        self.slopes = to_torch(alibi.slopes(config.num_heads, accumulation_dtype(dtype)), device)
        self.weights, self.adapters = {}, {}
        for key, weight, array in params.named():
            self.weights[key] = change(key, to_torch(array, device, self.dtype))
            owner = params.layers[int(key.split(".")[1])] if key.startswith("h.") else params
            for factors in owner.adapters.get(weight.attribute, ()):
                names = {factors.key(key, name): getattr(factors, name) for name in ("a", "b")}
                pair = [change(name, to_torch(array, device, self.wide)) for name, array in names.items()]
                self.adapters.setdefault(key, []).append((factors, *pair))

    def embed(self, ids):
        x = functional.embedding(ids, self._weight(WORD_EMBEDDING.hf_key))
        for factors, a, b in self.adapters.get(WORD_EMBEDDING.hf_key, ()):
            x = x + low_rank(factors, a, b, ids, None)
        return self.round(self._norm("word_embeddings_layernorm", x))

    def view(self, key_is_real, start):
        """Keys that each query sees, (B, 1, T, S), and the bias of ALiBi, (H, T, S)."""
        column = torch.arange(key_is_real.shape[1], device=self.device)
        distance = column - column[start:, None]
        visible = (distance <= 0) & to_torch(key_is_real, self.device)[:, None]
        return visible[:, None], self.slopes[:, None, None] * distance.to(self.wide)

    def attention_block(self, layer, x, visible, bias, store=lambda key, value: (key, value), rng=None):
        normed = self._norm(f"h.{layer}.input_layernorm", x)
        fused = self._linear(f"h.{layer}.self_attention.query_key_value", normed, rng)
        query, key, value = fused.unflatten(-1, (self.config.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)  # (B, H, T, K)
        keys, values = store(key, value)
        scores = query / math.sqrt(self.config.head_dim) @ keys.mT + bias
        hidden = torch.finfo(self.wide).min  # below every score, and no NaN in a row that sees nothing
        probabilities = torch.softmax(scores.masked_fill(~visible, hidden), dim=-1)
        probabilities = dropout(probabilities, self.config.attention_dropout, rng)
        context = (probabilities @ values).transpose(1, 2).flatten(2)
        return self._residual(x, normed, self._linear(f"h.{layer}.self_attention.dense", context, rng), rng)

    def mlp_block(self, layer, x, rng=None):
        normed = self._norm(f"h.{layer}.post_attention_layernorm", x)
        up = self._linear(f"h.{layer}.mlp.dense_h_to_4h", normed, rng)
        inner = 0.5 * up * (1 + torch.tanh(0.79788456 * up * (1 + 0.044715 * up * up)))  # torch's GELU has other digits
        return self._residual(x, normed, self._linear(f"h.{layer}.mlp.dense_4h_to_h", inner, rng), rng)

    def final_norm(self, x):
        return self.round(self._norm("ln_f", x))

    def logits(self, x):
        head = LM_HEAD.hf_key if LM_HEAD.hf_key in self.weights else WORD_EMBEDDING.hf_key
        return x @ self._weight(head).T

    def round(self, x):
        """Numbers of the compute dtype, in the accumulation dtype."""
        return x.to(self.dtype).to(self.wide)

    def _weight(self, key):
        return self.weights[key].to(self.wide)

    def _norm(self, name, x):
        weight, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return functional.layer_norm(x, x.shape[-1:], weight, bias, self.config.layer_norm_epsilon)

    def _linear(self, name, x, rng):
        weight, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        y = functional.linear(x, weight.reshape(bias.numel(), x.shape[-1]), bias.flatten())
        for factors, a, b in self.adapters.get(f"{name}.weight", ()):
            y = y + low_rank(factors, a, b, x, rng)
        return y

    def _residual(self, x, normed, y, rng):
        base = normed if self.config.apply_residual_connection_post_layernorm else x
        return self.round(base + dropout(y, self.config.hidden_dropout, rng))


@dataclass
class TorchCache:
    keys: torch.Tensor  # (L, B, H, P, K), of the compute dtype
    values: torch.Tensor

    def select(self, rows):
        index = to_torch(rows, self.keys.device)
        return TorchCache(self.keys[:, index], self.values[:, index])  # indexing by a tensor copies


class TorchPrepared:
    """Hidden states are tensors of the accumulation dtype, whose numbers are rounded to the compute dtype."""

    def __init__(self, model, dtype):
        self.model, self.dtype = model, dtype

    def new_cache(self, batch, capacity):
        config = self.model.config
        shape = (2, config.num_layers, batch, config.num_heads, capacity, config.head_dim)
        return TorchCache(*torch.zeros(shape, dtype=self.model.dtype, device=self.model.device))

    def embed(self, token_ids):
        return self.model.embed(to_torch(token_ids, self.model.device, torch.int64))

    def attention_block(self, layer, x, cache, step):
        def store(key, value):
            for kept, new in ((cache.keys, key), (cache.values, value)):
                kept[layer, :, :, step.start : step.start + x.shape[1]] = new  # rounds to the compute dtype
            stop = step.start + x.shape[1]
            return (kept[layer, :, :, :stop].to(self.model.wide) for kept in (cache.keys, cache.values))

        visible, bias = step.derive(
            "view", lambda: self.model.view(step.key_is_real, step.start)
        )  # once for all layers
        return self.model.attention_block(layer, x, visible, bias, store)

    def mlp_block(self, layer, x):
        return self.model.mlp_block(layer, x)

    def final_norm(self, x):
        return self.model.final_norm(x)

    def logits(self, x, last_only):
        return self.model.logits(x[:, -1:] if last_only else x).cpu().numpy()

    def to_host(self, x):
        return x.cpu().numpy().astype(self.dtype)  # a copy

    def from_host(self, x):
        return to_torch(x, self.model.device, self.model.wide)

    def step(self, token_ids, cache, step):
        return self._scores(token_ids, cache, step).cpu().numpy()

    def tokens(self, token_ids, cache, step, choice, count):
        ids, chosen = token_ids, []
        for n in range(count):
            real = np.concatenate([step.key_is_real, np.ones((len(ids), n), bool)], axis=1)
            scores = self._scores(ids, cache, step.at(step.start + n, real))
            if not torch.isfinite(scores).all():
                raise BadWeights("logits: expected finite numbers, got NaN or infinity")
            if choice.forbidden is not None:
                scores[:, to_torch(choice.forbidden, scores.device)] = -math.inf
            best = scores.argmax(-1) if choice.temperature is None else draw(scores, choice, choice.drawn + n)
            chosen.append(ids := best.cpu().numpy())
        return np.stack(chosen, axis=1)

    def _scores(self, token_ids, cache, step):
        x = self.embed(token_ids[:, None])
        for layer in range(self.model.config.num_layers):
            x = self.mlp_block(layer, self.attention_block(layer, x, cache, step))
        return self.model.logits(self.final_norm(x))[:, 0]


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
        return TorchPrepared(Model(rounded, config, policy.compute_dtype, self.device), policy.compute_dtype)

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
        model = Model(params, config, dtype, self.device, leaf)
        numbers, target = to_torch(document, self.device), to_torch(targets, self.device, torch.int64)
        visible, bias = model.view(document >= 0, 0)
        visible = visible & (numbers[:, :, None] == numbers[:, None, :])[:, None]
        x = model.embed(to_torch(token_ids, self.device, torch.int64))
        for layer in range(config.num_layers):
            x = model.attention_block(layer, x, visible, bias, rng=rng)
            x = model.mlp_block(layer, x, rng)
        counted = target >= 0
        losses = functional.cross_entropy(model.logits(model.final_norm(x)[counted]), target[counted], reduction="none")
        loss = losses.double().sum() / max(1, len(losses))  # a sum in float32 loses a digit
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True) if leaves else ()
        return loss.item(), {key: array.cpu().numpy() for key, array in zip(leaves, gradients, strict=True)}


def backend(device=""):
    try:
        torch.device(device or "cpu")
    except RuntimeError as error:
        raise InvalidInput(f"backend: expected a device of torch, got {device!r}") from error
    return TorchBackend(device)
