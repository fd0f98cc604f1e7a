"""Adapter folders of PEFT: adapter_config.json and adapter_model.safetensors. Clause: LRA-10."""

from dataclasses import replace
from pathlib import Path

from bloomref.config import BloomConfig
from bloomref.errors import BadWeights, describe
from bloomref.formats.adapters import peft_tensors
from bloomref.formats.adapters.peft_config import LoraConfig
from bloomref.formats.adapters.peft_tensors import WEIGHTS, Pairs, PeftTensors, factor_name
from bloomref.formats.files import MAX_CONFIG_BYTES, read_json, write_json
from bloomref.formats.folder_contents import no_weights
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.formats.saved_folder import check_complete, staged_model
from bloomref.params import LM_HEAD, WORD_EMBEDDING

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "Pairs",
    "PeftTensors",
    "exists",
    "factor_name",
    "open_file",
    "read",
    "read_config",
    "save",
]
CONFIG = "adapter_config.json"


def exists(folder: Path) -> bool:
    """True if the folder has a PEFT adapter."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path) -> LoraConfig:
    """Read the config of the folder's adapter.

    Raises:
        BadWeights: when the config is missing or damaged; Unsupported: when bloomref does not run it (LRA-18).
    """
    check_complete(folder)
    return LoraConfig.from_json(read_json(folder / CONFIG, MAX_CONFIG_BYTES))


def read(folder: Path, config: BloomConfig) -> tuple[LoraConfig, PeftTensors]:
    """Read an adapter for a model of `config`: what its file names, in the ranks of its factors.

    Raises:
        BadWeights: when files are missing, damaged or hostile, or do not match each other and the model.
        Unsupported: when bloomref does not run the adapter (LRA-18), or it is stored as a pickle.
    """
    lora = read_config(folder)
    file = open_file(folder)
    together = config.tie_word_embeddings and lora.ensure_weight_tying and lora.saves(WORD_EMBEDDING.hf_key)
    if together and not lora.saves(LM_HEAD.hf_key) and LM_HEAD.hf_key in peft_tensors.replaced(file.entries):
        # PEFT writes the embedding's name in the place of the head that it has tied to it
        lora = replace(lora, modules_to_save=(*lora.modules_to_save, "lm_head"))
    tensors = peft_tensors.read(file, config, lora)
    _check_agree(lora, tensors)
    return lora, tensors


def open_file(folder: Path) -> SafetensorsFile:
    """Open the tensors of an adapter.

    Raises:
        BadWeights: when the file is missing, damaged or hostile; Unsupported: when the folder has another kind of file.
    """
    if not (folder / WEIGHTS).exists():
        raise no_weights(folder, WEIGHTS)
    return SafetensorsFile(folder / WEIGHTS)


def _check_agree(lora: LoraConfig, tensors: PeftTensors) -> None:
    """Refuse a config that contradicts the tensors where the result depends on it.

    Which entry of rank_pattern a module has does not matter: its rank is that of its factors.
    """
    ranks = {lora.r, *lora.rank_pattern.values()}
    for key, (a, _) in tensors.pairs.items():
        if len(a) not in ranks:
            raise BadWeights(describe(f"{WEIGHTS}: {key}", f"the rank of {CONFIG}, {sorted(ranks)}", str(len(a))))
        if (key in tensors.magnitudes) != lora.use_dora:
            got = f"{'no' if lora.use_dora else 'a'} magnitude vector"
            raise BadWeights(describe(f"{WEIGHTS}: {key}", f"what use_dora={lora.use_dora} says", got))
    for key, rows in tensors.rows.items():
        if len(lora.token_indices(key)) != len(rows):
            expected = f"{len(lora.token_indices(key))} rows, as in trainable_token_indices"
            raise BadWeights(describe(f"{WEIGHTS}: {key}", expected, str(len(rows))))


def save(folder: Path, lora: LoraConfig, tensors: PeftTensors, overwrite: bool = True) -> None:
    """Write an adapter folder that PEFT loads for a BloomForCausalLM. An error leaves the folder unchanged.

    Args:
        folder: the folder to write.
        lora: config of the adapter.
        tensors: its tensors, in PEFT's shapes.
        overwrite: replace the adapter in the folder; False: refuse a folder that has any files (WGT-20).

    Raises:
        InvalidInput: when the folder cannot be written.
    """
    with staged_model(folder, CONFIG, overwrite) as stage:
        write_safetensors(stage / WEIGHTS, dict(sorted(peft_tensors.stored(tensors, lora))))
        write_json(stage / CONFIG, lora.to_json(), ascii_only=True)
