"""LoRA of whole models: adapters on a backbone, switched, mixed, merged, read and written.

Its formulas are in `reference.lora`.
"""

from bloomref.lora.methods import LoraConfig, LoraMethods

__all__ = ["LoraConfig", "LoraMethods"]
