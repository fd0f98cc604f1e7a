"""transformers: slopes are powers of a rounded base, so with 16 heads the second one is 0.49999997, not 0.5."""

import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

for heads in (16, 32, 64):
    got = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1].double()
    true = 2 ** (-8 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)
    off = ((got - true) / true).abs().max() * 2**24
    print(f"{heads} heads: off by up to {off:.1f} times 2^-24; slope {heads // 8} is {got[heads // 8 - 1]:.9f} for 0.5")
