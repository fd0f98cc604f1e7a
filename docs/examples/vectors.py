"""Test of the vectors without bloomref: `python vectors.py FOLDER`. Replace `nothing` by your model."""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

LIMIT = 5.0


def worst_z(got, expected, sigma, mask):
    """The largest Z, or None if the question is inconclusive. For tensors of shape (B, T, N), such as logits."""
    if np.isnan(sigma).any():
        return None
    if got.shape != expected.shape or not np.isfinite(got[mask]).all():
        return np.inf
    error = np.sqrt(np.mean((got.astype(np.float64) - expected) ** 2, axis=-1))
    judged = mask & np.isfinite(sigma)
    z = np.where(judged & (error > 0), error / sigma, 0.0).max()
    return None if z <= LIMIT and judged.sum() < mask.sum() / 2 else z


def answers(folder, tier="float32"):
    """(id, what to run, function that judges logits) of each question about logits."""
    for path in sorted(folder.glob("*.json")):
        topic = json.loads(path.read_text("utf-8"))
        tests = [test for test in topic.get("tests", []) if test["ask"] == "logits"]
        tensors = load_file(folder / topic["expected"]) if tests else {}
        for test in tests:
            keys = [answer["tensors"]["logits"] for answer in test["answers"]]
            mask = np.array(test["input"]["padding_mask"], bool)
            which = topic["tiers"].index(tier)

            def judge(got, keys=keys, tensors=tensors, mask=mask, which=which):
                found = (worst_z(got, tensors[key], tensors[f"{key}/sigma"][which], mask) for key in keys)
                return min(found, key=lambda z: LIMIT if z is None else z)

            yield test["id"], (folder / test["model"], np.array(test["input"]["token_ids"]), mask), judge


def run(folder, my_bloom):
    """my_bloom(config, weights, token_ids, mask) -> logits. Prints what fails; the number of answers by verdict."""
    counts = {"right": 0, "wrong": 0, "inconclusive": 0}
    for name, (model, ids, mask), judge in answers(Path(folder)):
        config, weights = json.loads((model / "config.json").read_text("utf-8")), load_file(model / "model.safetensors")
        z = judge(np.asarray(my_bloom(config, weights, ids, mask)))
        verdict = "inconclusive" if z is None else "right" if z <= LIMIT else "wrong"
        counts[verdict] += 1
        if verdict == "wrong":
            print(f"{name}: Z = {z:.3g}")
    return counts


def nothing(config, weights, token_ids, mask):  # noqa: ARG001
    return np.zeros((*token_ids.shape, config["vocab_size"]), np.float32)


if __name__ == "__main__":
    print(run(sys.argv[1], nothing))
