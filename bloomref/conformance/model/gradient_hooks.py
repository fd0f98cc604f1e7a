"""Backward pass of an instrumented model: one overridable method for each rule. Clauses: GRD-1 ... GRD-4, LRA-9.

In float64 and without overrides it equals the reference's `vjp`, up to rounding; a test asserts that. Every result goes
through the hooks of `Arithmetic`, as in the forward pass. `dx` is the gradient of the loss by x.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bloomref.config import IGNORED_LABEL, BloomConfig
from bloomref.lora.adapter import Adapter
from bloomref.params import LAYER_WEIGHTS, LM_HEAD, MODEL_WEIGHTS, LayerParams, LoraFactors, Params, layer_key
from bloomref.reference import loss
from bloomref.reference.ops_vjp import A, C
from bloomref.shapes import Array, Bool, Float, Int

_MODEL_KEYS = {weight.attribute: weight.hf_key for weight in (*MODEL_WEIGHTS, LM_HEAD)}
_LAYER_WEIGHTS = {weight.attribute: weight for weight in LAYER_WEIGHTS}


class GradientHooks:
    """The part of an `InstrumentedModel` that computes the loss and its gradients.

    While it runs, `tensors` has the intermediates of the forward pass, and `gradients` those of the weights so far.
    The rows of the input may be several samples of one batch: sums over positions run within a sample.
    """

    samples = 1
    adapter: Adapter | None
    arithmetic: Any
    config: BloomConfig
    index: int
    params: Params
    prefix: str
    run: Callable[..., dict[str, Array]]
    centred: Callable[[Array], Array]
    variance: Callable[[Array], Array]
    deviation: Callable[[Array], Array]
    scale: Callable[[], float]
    total: Callable[[Array], Array]

    def loss_and_gradients(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], labels: Int[Array, "B T"]
    ) -> tuple[float, dict[str, Array]]:
        """The loss, and gradients by key: of the factors of the adapter, or without one of the weights (LRA-15)."""
        losses, gradients = self.backward(token_ids, is_real, labels)
        return float(losses[0]), {key: gradient[0] for key, gradient in gradients.items()}

    def backward(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], labels: Int[Array, "B T"]
    ) -> tuple[Float[Array, " S"], dict[str, Array]]:
        """Loss and gradients of each sample."""
        self.tensors = dict(self.run(token_ids, is_real))
        self.gradients: dict[str, Array] = {}
        losses, dlogits = self.cross_entropy(self.tensors["logits"], self.targets(token_ids, is_real, labels))
        dx = self.final_norm_vjp(self.head_vjp(self.tensors["final_norm"], dlogits))
        for index in reversed(range(self.config.num_layers)):
            layer, self.index, self.prefix = self.params.layers[index], index, f"layers.{index}."
            dx = self.mlp_block_vjp(layer, self.tensors[f"layers.{index}.attention_block"], dx)
            dx = self.attention_block_vjp(layer, self._input(index), dx)
        self.prefix = ""
        dx = self.layer_norm_vjp(self.params, "ln_embedding", self.tensors["word_embedding"], dx)
        self.lookup_vjp(token_ids, dx)
        return losses, self.gradients

    def _input(self, index: int) -> Float[Array, "B T D"]:
        return self.tensors[f"layers.{index - 1}.mlp_block" if index else "embedding_norm"]

    # --- loss and LM head ------------------------------------------------------------------------

    def targets(self, token_ids: Array, is_real: Array, labels: Array) -> Int[Array, "B T"]:
        """The token that each position predicts, or -100 (GRD-1)."""
        return loss.targets(token_ids, is_real, labels, None)

    def counted(self, targets: Int[Array, "B T"]) -> int:
        """Number of tokens in the mean of a sample (GRD-2)."""
        return max(1, int((targets != IGNORED_LABEL).sum()) // self.samples)

    def cross_entropy(
        self, logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
    ) -> tuple[Float[Array, " S"], Float[Array, "B T V"]]:
        """Mean cross-entropy of each sample, and its gradient by the logits."""
        wide, counts = self.arithmetic.wide, (targets != IGNORED_LABEL)[:, :, None]
        label = np.where(counts, targets[:, :, None], 0)
        powers = wide(np.exp(wide(logits - logits.max(axis=-1, keepdims=True))))
        total = wide(self.total(powers))
        shifted = wide(np.take_along_axis(logits, label, -1) - logits.max(axis=-1, keepdims=True))
        terms = np.where(counts, wide(wide(np.log(total)) - shifted), 0.0)
        one_hot = np.arange(logits.shape[-1]) == label
        dlogits = wide(np.where(counts, wide(wide(powers / total) - one_hot), 0.0) / self.counted(targets))
        return wide(self.summed(terms)[:, 0] / self.counted(targets)), dlogits

    def head_vjp(self, hidden: Float[Array, "B T D"], dlogits: Float[Array, "B T V"]) -> Float[Array, "B T D"]:
        """logits = hidden W^T. The gradient of a tied head is added to that of the embedding (GRD-4)."""
        head = self.params.word_embedding if self.params.lm_head is None else self.params.lm_head
        tied = self.config.tie_word_embeddings
        self.collect("word_embedding" if tied else "lm_head", lambda: self.outer(dlogits, hidden))
        return self.arithmetic.matmul(dlogits, head)

    def lookup_vjp(self, token_ids: Int[Array, "B T"], dx: Float[Array, "B T D"]) -> None:
        """x = E[token_ids] + the terms of its adapter."""
        self.collect("word_embedding", lambda: self.added_rows(token_ids, dx, self.config.vocabulary_size))
        self.collect_factors("word_embedding", token_ids, dx)

    # --- norms -----------------------------------------------------------------------------------

    def final_norm_vjp(self, dy: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        last = self._input(self.config.num_layers)
        return self.layer_norm_vjp(self.params, "ln_final", last, dy)

    def layer_norm_vjp(self, owner: LayerParams | Params, name: str, x: Array, dy: Array) -> Float[Array, "B T D"]:
        """y = n w + b, n = (x - mean) / s."""
        wide = self.arithmetic.wide
        s = wide(self.deviation(wide(self.variance(self.centred(x)))))
        n = wide(self.centred(x) / s)
        self.collect(f"{name}_weight", lambda: self.summed(wide(dy * n)))
        self.collect(f"{name}_bias", lambda: self.bias_vjp(dy))
        return self.normalised_vjp(n, s, wide(dy * getattr(owner, f"{name}_weight")))

    def normalised_vjp(self, n: Array, s: Array, g: Array) -> Float[Array, "B T D"]:
        """dx = (g - mean(g) - n mean(g n)) / s."""
        wide = self.arithmetic.wide
        along = wide(n * self.mean(wide(g * n)))
        return wide(wide(wide(g - self.mean(g)) - along) / s)

    def mean(self, x: Array) -> Array:
        """Mean over the last axis."""
        return x.mean(axis=-1, keepdims=True)

    def residual_vjp(self, layer: LayerParams, name: str, x: Array, dy: Array, dz: Array) -> Float[Array, "B T D"]:
        """y = x + f(z), z = LN(x), or in the post-layernorm form z + f(z). Clause: MOD-3."""
        wide = self.arithmetic.wide
        if self.config.apply_residual_connection_post_layernorm:
            return self.layer_norm_vjp(layer, name, x, wide(dy + dz))
        return wide(dy + self.layer_norm_vjp(layer, name, x, dz))

    # --- blocks ----------------------------------------------------------------------------------

    def mlp_block_vjp(self, layer: LayerParams, x: Array, dy: Array) -> Float[Array, "B T D"]:
        dinner = self.linear_vjp(layer, "mlp_down", self.at("mlp.gelu"), dy)
        dup = self.gelu_vjp(self.at("mlp.up"), dinner)
        dz = self.linear_vjp(layer, "mlp_up", self.at("mlp.norm"), dup)
        return self.residual_vjp(layer, "ln_mlp", x, dy, dz)

    def attention_block_vjp(self, layer: LayerParams, x: Array, dy: Array) -> Float[Array, "B T D"]:
        dcontext = self.linear_vjp(layer, "attn_out", self.at("attention.context"), dy)
        dcontext = dcontext.reshape(*dy.shape[:2], self.config.num_heads, -1).swapaxes(1, 2)
        dfused = self.fused(*self.attention_vjp(dcontext))
        dz = self.linear_vjp(layer, "qkv", self.at("attention.norm"), dfused)
        return self.residual_vjp(layer, "ln_attn", x, dy, dz)

    def attention_vjp(self, dcontext: Float[Array, "B H T K"]) -> tuple[Array, Array, Array]:
        """context = softmax(query key^T / sqrt(K) + bias) value: dquery, dkey and dvalue."""
        matmul = self.arithmetic.matmul
        probabilities, value = self.at("attention.probabilities"), self.at("attention.value")
        dvalue = matmul(probabilities.swapaxes(-1, -2), dcontext)
        dscores = self.softmax_vjp(probabilities, matmul(dcontext, value.swapaxes(-1, -2)))
        dquery = self.scaled(matmul(dscores, self.at("attention.key")))
        dkey = self.scaled(matmul(dscores.swapaxes(-1, -2), self.at("attention.query")))
        return dquery, dkey, dvalue

    def scaled(self, dscores: Array) -> Array:
        return self.arithmetic.wide(dscores * self.scale())

    def softmax_vjp(self, p: Float[Array, "B H T S"], dp: Float[Array, "B H T S"]) -> Float[Array, "B H T S"]:
        """ds = p (dp - sum of dp p)."""
        wide = self.arithmetic.wide
        return wide(p * wide(dp - wide(self.total(wide(dp * p)))))

    def fused(self, dquery: Array, dkey: Array, dvalue: Array) -> Float[Array, "B T N"]:
        """The gradient by the fused projection, head by head (ATT-2)."""
        fused = np.stack([dquery, dkey, dvalue], axis=2)  # (B, H, C, T, K)
        return fused.transpose(0, 3, 1, 2, 4).reshape(fused.shape[0], fused.shape[3], -1)

    def gelu_vjp(self, u: Float[Array, "B T F"], dy: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
        """du = dy ((1 + t) / 2 + u / 2 (1 - t^2) c (1 + 3 a u^2)), t = tanh(c (u + a u^3))."""
        wide = self.arithmetic.wide
        square = wide(u * u)
        t = wide(np.tanh(wide(C * wide(u * wide(1.0 + wide(A * square))))))
        slope = wide(wide(wide(1.0 + t) * wide(1.0 - t)) * wide(u * self.gelu_slope(square)))
        return wide(dy * wide(0.5 * wide(wide(1.0 + t) + slope)))

    def gelu_slope(self, square: Array) -> Array:
        """Derivative of the argument of tanh: c (1 + 3 a u^2)."""
        wide = self.arithmetic.wide
        return wide(C * wide(1.0 + wide(3.0 * A * square)))

    # --- linear layers and their adapters --------------------------------------------------------

    def linear_vjp(self, layer: LayerParams, name: str, x: Array, dy: Array) -> Float[Array, "B T N"]:
        """y = x W^T + b + the terms of the adapter."""
        weight: Array = getattr(layer, f"{name}_weight")
        self.collect(f"{name}_weight", lambda: self.outer(dy, x))
        self.collect(f"{name}_bias", lambda: self.bias_vjp(dy))
        self.collect_factors(f"{name}_weight", x, dy)
        dx = self.arithmetic.matmul(dy, weight.reshape(dy.shape[-1], x.shape[-1]))
        for part in layer.adapters.get(f"{name}_weight", ()):
            dx = self.arithmetic.wide(dx + self.low_rank_vjp(part, dy))
        return dx

    def bias_vjp(self, dy: Float[Array, "B T M"]) -> Float[Array, "S M"]:
        return self.summed(dy)

    def low_rank_vjp(self, part: LoraFactors, dy: Float[Array, "B T M"]) -> Float[Array, "B T N"]:
        """y = scale B A x: dx = scale A^T B^T dy."""
        dnarrow, a = self.narrow_vjp(part, self.of_part(part, dy)), part.a
        if part.kind == "heads":
            return self.arithmetic.matmul(dnarrow.reshape(*dy.shape[:2], -1), a.reshape(len(a), -1).T)
        return self.arithmetic.matmul(dnarrow, a)

    def of_part(self, part: LoraFactors, dy: Float[Array, "B T M"]) -> Array:
        """scale dy; in KerasHub's form, of its projection: (B, T, H, K)."""
        if part.kind == "heads":
            dy = dy.reshape(*dy.shape[:2], self.config.num_heads, 3, -1)[:, :, :, part.projection]
        return self.arithmetic.wide(part.scale * dy)

    def narrow_vjp(self, part: LoraFactors, dy: Array) -> Array:
        """The gradient by A x."""
        return self.arithmetic.matmul(dy, part.b.T if part.kind == "heads" else part.b)

    def factors_vjp(self, part: LoraFactors, x: Array, dy: Array) -> tuple[Array, Array]:
        """The gradients by A and B; for an adapter of the embedding, x is the token ids."""
        dy, (_, time) = self.of_part(part, dy), x.shape[:2]
        dnarrow = self.narrow_vjp(part, dy)
        if part.kind == "embedding":
            da = self.added_rows(x, dnarrow, part.a.shape[1]).swapaxes(-1, -2)
            return da, self.outer(dy, part.a.T[x])
        if part.kind == "matrix":
            return self.outer(dnarrow, x), self.outer(dy, self.arithmetic.matmul(x, part.a.T))
        narrow = self.arithmetic.matmul(x, part.a.reshape(len(part.a), -1))
        da = self.outer(x, dnarrow.reshape(narrow.shape)).reshape(self.samples, *part.a.shape)
        by_head = (len(x), time * self.config.num_heads, -1)
        return da, self.outer(narrow.reshape(*by_head[:2], part.rank), dy.reshape(by_head))

    # --- sums over positions, and where they go ---------------------------------------------------

    def at(self, name: str) -> Array:
        """An intermediate of the present layer."""
        return self.tensors[self.prefix + name]

    def outer(self, dy: Float[Array, "B T M"], x: Float[Array, "B T N"]) -> Float[Array, "S M N"]:
        """Sum of dy x^T over the positions of each sample."""
        rows = (dy.reshape(self.samples, -1, dy.shape[-1]), x.reshape(self.samples, -1, x.shape[-1]))
        return self.arithmetic.matmul(rows[0].swapaxes(-1, -2), rows[1])

    def summed(self, dy: Float[Array, "B T M"]) -> Float[Array, "S M"]:
        """Sum over the positions of each sample."""
        return self.total(dy.reshape(self.samples, -1, dy.shape[-1]).swapaxes(-1, -2))[..., 0]

    def added_rows(self, token_ids: Int[Array, "B T"], dx: Float[Array, "B T D"], tokens: int) -> Float[Array, "S V D"]:
        """Sum of dx over the positions that hold each token."""
        rows = np.zeros((self.samples, tokens, dx.shape[-1]), dx.dtype)
        sample = np.repeat(np.arange(self.samples), token_ids.size // self.samples)
        np.add.at(rows, (sample, token_ids.reshape(-1)), dx.reshape(-1, dx.shape[-1]))
        return rows

    def key(self, attribute: str) -> str:
        """Hugging Face key of a weight of the present layer or of the model, without `transformer.`."""
        weight = _LAYER_WEIGHTS.get(attribute)
        return _MODEL_KEYS[attribute] if weight is None else layer_key(self.index, weight)

    def collect(self, attribute: str, compute: Callable[[], Array]) -> None:
        """Add the gradient of a weight; with an adapter the weights are frozen."""
        if self.adapter is None:
            key, gradient = self.key(attribute), compute()
            self.gradients[key] = gradient if key not in self.gradients else self.gradients[key] + gradient

    def collect_factors(self, attribute: str, x: Array, dy: Array) -> None:
        """Add the gradients of the factors of the adapter as it was given."""
        key = self.key(attribute)
        for part in self.adapter.parts.get(key, ()) if self.adapter else ():
            for name, gradient in zip(("a", "b"), self.factors_vjp(part, x, dy), strict=True):
                self.gradients[part.key(key, name)] = gradient
