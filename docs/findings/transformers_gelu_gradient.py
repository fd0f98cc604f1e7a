"""transformers: the hand-written backward pass of its GELU overflows in float16:
0 times infinity, where the derivative is 1.
"""

import torch
from transformers.models.bloom.modeling_bloom import BloomGelu

x = torch.tensor([782.0, 783.0, 1000.0, -783.0], dtype=torch.float16, requires_grad=True)
BloomGelu()(x).sum().backward()
theirs, x.grad = x.grad, None
torch.nn.functional.gelu(x, approximate="tanh").sum().backward()
print(f"at {x.tolist()}: {theirs.tolist()}; torch's own tanh GELU: {x.grad.tolist()}")
