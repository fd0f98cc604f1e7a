"""Built-in presets and adapters. Clauses: PRE-1 ... PRE-3, PRE-8, PRE-9.

Names follow KerasHub. Sizes follow the config.json of each repository. Parameter counts follow the closed formula of
PRE-2. A commit is pinned only where public records show that it has safetensors weights.

bloomref ships only the weights of `bloom_tiny_udhr`. The other weights belong to BigScience and have its licence; they
are downloaded from the hub at the first use of a preset.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloomref.config import BloomConfig

RAIL = "BigScience RAIL License v1.0"
RAIL_URL = "https://huggingface.co/spaces/bigscience/license"
DISCLAIMER = (
    "The weights were trained and published by BigScience, not by the authors of bloomref. They are provided as is, "
    "without any warranty. Their licence restricts some uses: read it before you use them."
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Metadata of a checkpoint, available without opening it."""

    name: str
    description: str
    parameters: int
    """Number of parameters."""
    config: BloomConfig
    source: str
    """Repository on the Hugging Face hub, `user/repo`; or "embedded", for a preset that ships with the package."""
    revision: str = "main"
    """Default revision: a commit that is known to have safetensors weights, or else a branch."""
    kaggle: str | None = None
    """Kaggle handle of the same weights in the Keras layout."""
    licence: str = RAIL
    licence_url: str = RAIL_URL
    disclaimer: str = DISCLAIMER

    @property
    def folder(self) -> Path | None:
        """Folder of an embedded preset; None for other presets."""
        return Path(__file__).parent / self.name if self.source == "embedded" else None

    def summary(self) -> dict[str, Any]:
        """Entry of the preset in `BloomBackbone.presets`."""
        return {
            "description": self.description,
            "parameters": self.parameters,
            "source": self.source,
            "revision": self.revision,
            "kaggle": self.kaggle,
            "licence": f"{self.licence} ({self.licence_url})",
            "disclaimer": self.disclaimer,
        }


@dataclass(frozen=True, kw_only=True)
class AdapterPreset:
    """LoRA adapter that ships with the package."""

    name: str
    description: str
    base: str
    """Preset whose weights were adapted."""

    @property
    def folder(self) -> Path:
        """Folder of the adapter, in PEFT's layout."""
        return Path(__file__).parent / self.name


ADAPTERS = {
    adapter.name: adapter
    for adapter in (
        AdapterPreset(
            name="bloom_tiny_udhr_facts",
            description="twenty memorised sentences about BLOOM: the example of docs/finetuning.md",
            base="bloom_tiny_udhr",
        ),
    )
}


def _bigscience(num_layers: int, hidden_dim: int, num_heads: int) -> BloomConfig:
    return BloomConfig(
        vocabulary_size=250880,
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        num_heads=num_heads,
        intermediate_dim=4 * hidden_dim,
    )


_560M = _bigscience(24, 1024, 16)
_1B1 = _bigscience(24, 1536, 16)
_1B7 = _bigscience(24, 2048, 16)
_3B = _bigscience(30, 2560, 32)
_7B1 = _bigscience(30, 4096, 32)
_176B = _bigscience(70, 14336, 112)

_BLOOM = "trained on text in 45 languages and programs in 12"
_BLOOMZ = "finetuned on xP3, tasks in many languages with prompts in English"
_MT = "finetuned on xP3mt, tasks with machine-translated prompts: for prompts in languages other than English"
_P3 = "finetuned on P3, tasks in English"

_ALL = (
    Preset(
        name="bloom_tiny_udhr",
        description=(
            "4 layers, 1.6 million parameters, trained on the Universal Declaration of Human Rights in many languages; "
            "shipped with bloomref, so that everything runs offline"
        ),
        parameters=1_593_216,
        config=BloomConfig(vocabulary_size=4096, num_layers=4, num_heads=9, hidden_dim=144, intermediate_dim=576),
        source="embedded",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        disclaimer="A toy for tests and for learning: it was trained on a few hundred pages, and its output is not factual.",
    ),
    Preset(
        name="bloom_560m_multi",
        description=f"24 layers of width 1024, {_BLOOM}",
        parameters=559_214_592,
        config=_560M,
        source="bigscience/bloom-560m",
        revision="ac2ae5fab2ce3f9f40dc79b5ca9f637430d24971",
        kaggle="kaggle://keras/bloom/keras/bloom_560m_multi/4",
    ),
    Preset(
        name="bloom_1.1b_multi",
        description=f"24 layers of width 1536, {_BLOOM}",
        parameters=1_065_314_304,
        config=_1B1,
        source="bigscience/bloom-1b1",
        kaggle="kaggle://keras/bloom/keras/bloom_1.1b_multi/2",
    ),
    Preset(
        name="bloom_1.7b_multi",
        description=f"24 layers of width 2048, {_BLOOM}",
        parameters=1_722_408_960,
        config=_1B7,
        source="bigscience/bloom-1b7",
        kaggle="kaggle://keras/bloom/keras/bloom_1.7b_multi/2",
    ),
    Preset(
        name="bloom_3b_multi",
        description=f"30 layers of width 2560, {_BLOOM}",
        parameters=3_002_557_440,
        config=_3B,
        source="bigscience/bloom-3b",
        kaggle="kaggle://keras/bloom/keras/bloom_3b_multi/2",
    ),
    Preset(
        name="bloom_7b_multi",
        description=f"30 layers of width 4096, {_BLOOM}",
        parameters=7_069_016_064,
        config=_7B1,
        source="bigscience/bloom-7b1",
    ),
    Preset(
        name="bloom_176b_multi",
        description=f"70 layers of width 14336, {_BLOOM}",
        parameters=176_247_271_424,
        config=_176B,
        source="bigscience/bloom",
    ),
    Preset(
        name="bloomz_560m_multi",
        description=f"24 layers of width 1024, {_BLOOMZ}",
        parameters=559_214_592,
        config=_560M,
        source="bigscience/bloomz-560m",
        revision="a2845d7e13dd12efae154a9f1c63fcc2e0cc4b05",
        kaggle="kaggle://keras/bloom/keras/bloomz_560m_multi/2",
    ),
    Preset(
        name="bloomz_1.1b_multi",
        description=f"24 layers of width 1536, {_BLOOMZ}",
        parameters=1_065_314_304,
        config=_1B1,
        source="bigscience/bloomz-1b1",
        kaggle="kaggle://keras/bloom/keras/bloomz_1.1b_multi/2",
    ),
    Preset(
        name="bloomz_1.7b_multi",
        description=f"24 layers of width 2048, {_BLOOMZ}",
        parameters=1_722_408_960,
        config=_1B7,
        source="bigscience/bloomz-1b7",
        kaggle="kaggle://keras/bloom/keras/bloomz_1.7b_multi/2",
    ),
    Preset(
        name="bloomz_3b_multi",
        description=f"30 layers of width 2560, {_BLOOMZ}",
        parameters=3_002_557_440,
        config=_3B,
        source="bigscience/bloomz-3b",
        kaggle="kaggle://keras/bloom/keras/bloomz_3b_multi/2",
    ),
    Preset(
        name="bloomz_7b_multi",
        description=f"30 layers of width 4096, {_BLOOMZ}",
        parameters=7_069_016_064,
        config=_7B1,
        source="bigscience/bloomz-7b1",
    ),
    Preset(
        name="bloomz_176b_multi",
        description=f"70 layers of width 14336, {_BLOOMZ}",
        parameters=176_247_271_424,
        config=_176B,
        source="bigscience/bloomz",
    ),
    Preset(
        name="bloomz_7b_mt",
        description=f"30 layers of width 4096, {_MT}",
        parameters=7_069_016_064,
        config=_7B1,
        source="bigscience/bloomz-7b1-mt",
    ),
    Preset(
        name="bloomz_176b_mt",
        description=f"70 layers of width 14336, {_MT}",
        parameters=176_247_271_424,
        config=_176B,
        source="bigscience/bloomz-mt",
    ),
    Preset(
        name="bloomz_7b_p3",
        description=f"30 layers of width 4096, {_P3}",
        parameters=7_069_016_064,
        config=_7B1,
        source="bigscience/bloomz-7b1-p3",
    ),
    Preset(
        name="bloomz_176b_p3",
        description=f"70 layers of width 14336, {_P3}",
        parameters=176_247_271_424,
        config=_176B,
        source="bigscience/bloomz-p3",
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}
