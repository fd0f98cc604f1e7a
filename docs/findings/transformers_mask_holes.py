"""transformers: a hole in the mask shifts the tokens after it, as if the masked tokens were deleted."""

import torch
from transformers import BloomConfig, BloomForCausalLM
from transformers.models.bloom import modeling_bloom as m


def model(**more):
    torch.manual_seed(0)
    config = {"vocab_size": 97, "hidden_size": 64, "n_layer": 2, "n_head": 4} | more
    made = BloomForCausalLM(BloomConfig(**config)).eval()
    for p in made.parameters():  # initial biases are 0 and gains 1, which hides mistakes
        p.data += 0.2 * torch.randn_like(p)
    return made


ids, mask = torch.arange(10)[None], torch.ones(1, 10, dtype=torch.int64)
mask[0, 4:7] = 0
keep, it = mask[0].bool(), model()
holes, deleted = it(ids, attention_mask=mask).logits[0, keep], it(ids[:, keep]).logits[0]
it.transformer.build_alibi_tensor = lambda x, n, dtype: m.build_alibi_tensor(torch.ones_like(x), n, dtype)
columns = it(ids, attention_mask=mask).logits[0, keep]
print(f"{(holes - deleted).abs().max():.2g} from deleted tokens, {(holes - columns).abs().max():.3g} from columns kept")
