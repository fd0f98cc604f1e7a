"""Writes tokenizer_ids.json: what transformers' AutoTokenizer makes of texts in many scripts, with the small tokenizer.

Run from tests/: python golden/make_golden_tokenizer.py
"""

import json
import sys
import tempfile
from pathlib import Path

import tokenizers
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from small_models import MERGES, small_vocabulary

from bloomref.formats.tokenizers.tokenizer_files import bloom_tokenizer_json

TEXTS = [
    "Everyone has the right to the thing, and is a thief.",
    "a, b;  c\n\nd\t e \n",
    "(a|b) [the] {is}… the、 the، the।",
    "Tout individu a droit à la vie, à la liberté et à la sûreté de sa personne.",
    "人人有权意。意,意 意、\n它。\n",
    "لكل فرد الحق في الحياة، والحرية۔",
    "सभी मनुष्यों को गौरव। और",
    "ஒவ்வொருவரும் உயிர் வாழ",
    "すべて人は、生命。😀 👩‍👩‍👧 ✓",
    "<s>the</s> a<pad>b <unk>  <s",
    "  the  the   ",
    "def f(x):\n    return x.the | is\r\n",
    "\u0000\u00a0\ufeff\u2028e\u0301",
    "",
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = bloom_tokenizer_json(small_vocabulary(), MERGES)
        Path(folder, "tokenizer.json").write_text(json.dumps(data), "utf-8")
        config = {
            "tokenizer_class": "BloomTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
        }
        Path(folder, "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = {text: tokenizer(text)["input_ids"] for text in TEXTS}
    provenance = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    golden = {"made_by": "golden/make_golden_tokenizer.py", "versions": provenance, "merges": MERGES}
    head = json.dumps(golden, indent=1).removesuffix("\n}")
    rows = ",\n".join(f"  {json.dumps(text)}: {json.dumps(row)}" for text, row in ids.items())
    Path(__file__).with_name("tokenizer_ids.json").write_text(f'{head},\n "ids": {{\n{rows}\n }}\n}}\n', "utf-8")


if __name__ == "__main__":
    main()
