"""KerasHub: BLOOM's tokenizer does not split a text into words first,
so that merges run across punctuation and spaces.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"
import keras_hub
from tokenizers import Regex, Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

tokens = ["<unk>", "<s>", "</s>", "<pad>", "a", ",", "Ġ", "b", "Ġb", ",Ġb", "a,Ġb"]
vocabulary, merges = {token: i for i, token in enumerate(tokens)}, ["Ġ b", ", Ġb", "a ,Ġb"]
theirs = keras_hub.models.BloomTokenizer(vocabulary=vocabulary, merges=merges)
published = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(m.split()) for m in merges]))
words = Split(Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+"), "isolated")  # as in bigscience/bloom's tokenizer.json
published.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
print("KerasHub:", [tokens[i] for i in theirs("a, b")], "published:", published.encode("a, b").tokens)
