"""BLOOM in ball arithmetic (python-flint):
every result is a midpoint and a radius that provably contain the true value.

Written from the clauses, not from the reference: rows one at a time, real positions only, scalars and small matrices.
Constants are the real numbers that the specification writes: 0.79788456 and 0.044715 as decimals, 1 / sqrt(K), and the
slopes 2 ** (-8 i / n) without any rounding; weights and epsilon are the float64 numbers that the model is given.
So the distance to the reference contains its rounding of every constant, too.
"""

import math
from functools import partial

import flint
import numpy as np
from flint import arb, arb_mat, fmpq

RADIUS = 2.0**-60
FIRST, LAST = 128, 4096
"""Bits of precision: doubled until every radius is below `RADIUS` of the largest magnitude of its tensor."""


def certified(case):
    """Return (for each row of the batch, name -> lists of balls of its real positions; bits of precision).

    Raises:
        RuntimeError: a radius is too large at `LAST` bits.
    """
    bits = FIRST
    while True:
        flint.ctx.prec = bits
        rows = [Row(case, row).run() for row in range(case.batch)]
        if all(radius(value) < RADIUS * max(1e-300, magnitude(value)) for row in rows for value in row.values()):
            return rows, bits
        bits *= 2
        if bits > LAST:
            raise RuntimeError(f"no radius below 2^-60 with {LAST} bits")


class Row:
    """One row of a batch. Values are lists of lists: [position][feature], [head][position][feature or key]."""

    def __init__(self, case, row):
        self.config, self.params = case.config, case.params
        self.columns = [int(c) for c in np.flatnonzero(case.is_real[row])]
        self.ids = [int(case.token_ids[row, c]) for c in self.columns]
        self.epsilon = arb(case.config.layer_norm_epsilon)
        self.intermediates = {}

    def run(self):
        if not self.columns:
            return {}
        p = self.params
        x = self.record("word_embedding", [balls(p.word_embedding[i]) for i in self.ids])
        x = self.record("embedding_norm", self.norm(x, p.ln_embedding_weight, p.ln_embedding_bias))
        for i, layer in enumerate(p.layers):
            x = self.block(partial(self.record_in, f"layers.{i}."), layer, x)
        x = self.record("final_norm", self.norm(x, p.ln_final_weight, p.ln_final_bias))
        self.record("logits", times(x, p.word_embedding if p.lm_head is None else p.lm_head))
        return self.intermediates

    def record(self, name, value):
        self.intermediates[name] = value
        return value

    def record_in(self, prefix, name, value):
        return self.record(prefix + name, value)

    def norm(self, x, weight, bias):
        return [self.norm_one(line, balls(weight), balls(bias)) for line in x]

    def norm_one(self, line, weight, bias):
        mean = sum(line, arb(0)) / len(line)
        centred = [v - mean for v in line]
        variance = sum((v * v for v in centred), arb(0)) / len(line)
        scale = (variance + self.epsilon).rsqrt()
        return [c * scale * w + b for c, w, b in zip(centred, weight, bias, strict=True)]

    def block(self, record, layer, x):
        post = self.config.apply_residual_connection_post_layernorm
        z = record("attention.norm", self.norm(x, layer.ln_attn_weight, layer.ln_attn_bias))
        x = record("attention_block", added(z if post else x, self.attention(record, layer, z)))
        z = record("mlp.norm", self.norm(x, layer.ln_mlp_weight, layer.ln_mlp_bias))
        up = record("mlp.up", affine(z, layer.mlp_up_weight, layer.mlp_up_bias))
        active = record("mlp.gelu", [[gelu(v) for v in line] for line in up])
        output = record("mlp.output", affine(active, layer.mlp_down_weight, layer.mlp_down_bias))
        return record("mlp_block", added(z if post else x, output))

    def attention(self, record, layer, z):
        heads = range(self.config.num_heads)
        query, key, value = (
            record(f"attention.{name}", [affine(z, layer.qkv_weight[h, c], layer.qkv_bias[h, c]) for h in heads])
            for c, name in enumerate(("query", "key", "value"))
        )
        scores = record("attention.scores", [self.scores(h, query[h], key[h]) for h in heads])
        shares = record("attention.probabilities", [[softmax(line) for line in scores[h]] for h in heads])
        mixed = [[mix(line, value[h]) for line in shares[h]] for h in heads]
        context = [[v for h in heads for v in mixed[h][t]] for t in range(len(z))]
        record("attention.context", context)
        width = self.config.hidden_dim
        return record(
            "attention.output", affine(context, layer.attn_out_weight.reshape(width, width), layer.attn_out_bias)
        )

    def scores(self, head, query, key):
        """Scores of the visible keys of each position, a triangle."""
        scale, slope = arb(self.config.head_dim).rsqrt(), exact_slope(head, self.config.num_heads)
        products = arb_mat(query) * arb_mat(key).transpose()
        return [
            [products[i, j] * scale + slope * (self.columns[j] - self.columns[i]) for j in range(i + 1)]
            for i in range(len(query))
        ]


def exact_slope(head, heads):
    """2 ** (-8 i / n), and every second one of 2 n for the heads beyond a power of two (ALI-1, ALI-2)."""
    n = 2 ** int(math.log2(heads))
    exponent = fmpq(-8 * (head + 1), n) if head < n else fmpq(-8 * (2 * (head - n) + 1), 2 * n)
    return arb(2) ** arb(exponent)


def gelu(x):
    constant, cubic = arb(fmpq(79788456, 10**8)), arb(fmpq(44715, 10**6))
    return x / 2 * (1 + (constant * x * (1 + cubic * x * x)).tanh())


def softmax(line):
    peak = max(line, key=lambda v: float(v.mid()))
    powers = [(v - peak).exp() for v in line]
    total = sum(powers, arb(0))
    return [v / total for v in powers]


def mix(shares, values):
    return [sum((s * line[k] for s, line in zip(shares, values, strict=False)), arb(0)) for k in range(len(values[0]))]


def balls(vector):
    return [arb(float(v)) for v in vector]


def times(x, weight):
    product = arb_mat(x) * arb_mat([balls(line) for line in weight]).transpose()
    return [[product[i, j] for j in range(product.ncols())] for i in range(product.nrows())]


def affine(x, weight, bias):
    return [[v + b for v, b in zip(line, balls(bias), strict=True)] for line in times(x, weight)]


def added(x, y):
    return [[a + b for a, b in zip(p, q, strict=True)] for p, q in zip(x, y, strict=True)]


# --- what the balls say ------------------------------------------------------------------------------------------


def flat(value):
    if isinstance(value, list):
        for part in value:
            yield from flat(part)
    else:
        yield value


def radius(value):
    return max(float(v.rad()) for v in flat(value))


def magnitude(value):
    return max(float(abs(v.mid())) for v in flat(value))


def enclose(case, values):
    """The proven error of float64 `values` (name -> array):
    (name -> largest error relative to the largest magnitude, bits).

    It is an upper bound: |midpoint - value| + radius, rounded outwards.
    """
    rows, bits = certified(case)
    worst, size = {}, {}
    for row, intermediates in enumerate(rows):
        for name, value in intermediates.items():
            error = max(distance(case, row, name, value, values[name]))
            worst[name] = max(worst.get(name, 0.0), error)
            size[name] = max(size.get(name, 0.0), magnitude(value))
    return {name: worst[name] / size[name] for name in worst}, bits


def distance(case, row, name, value, array):
    """An upper bound for each number of one row; infinite for one that is not a number."""
    columns = np.flatnonzero(case.is_real[row])
    for path, ball in paths(value):
        error = float(abs(ball - arb(float(array[(row, *place(name, columns, path))]))).upper())
        yield math.inf if math.isnan(error) else error


def paths(value, before=()):
    if isinstance(value, list):
        for i, part in enumerate(value):
            yield from paths(part, (*before, i))
    else:
        yield before, value


def place(name, columns, path):
    """The index in the reference's array, whose columns include the padding."""
    if len(path) == 2:
        return columns[path[0]], path[1]
    head, position, last = path
    return head, columns[position], columns[last] if name.endswith(("scores", "probabilities")) else last
