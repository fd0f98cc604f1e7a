"""Generation without a cache, to compare with: each step recomputes the whole sequence, one prompt at a time."""

from typing import Any

import numpy as np

from bloomref import BloomCausalLM

Array = np.ndarray[Any, Any]


def slow_generate(lm: BloomCausalLM, prompt: list[int], **options: Any) -> list[int]:
    """New token ids of one prompt.

    Args:
        options: those of `generate`, with `max_new_tokens` for the length; `stop_token_ids` is a list, None or "auto".
    """
    search = Search(lm, prompt, options)
    if options.get("num_beams", 1) > 1:
        return search.beam(options["num_beams"], options["length_penalty"])
    if "penalty_alpha" in options:
        return search.contrastive(options["penalty_alpha"], options["top_k"])
    return search.greedy()


class Search:
    """The decoding strategies, written from their definitions."""

    def __init__(self, lm: BloomCausalLM, prompt: list[int], options: dict[str, Any]) -> None:
        self.lm, self.prompt, self.options = lm, prompt, options
        stops = options.get("stop_token_ids", "auto")
        self.stops = [lm.backbone.config.eos_token_id] if stops == "auto" else stops or []

    def logits(self, new: list[int]) -> Array:
        return self.lm.logits({"token_ids": [self.prompt + new]})[0, -1]

    def states(self, new: list[int]) -> Array:
        return self.lm.backbone({"token_ids": [self.prompt + new]})[0]

    def process(self, scores: Array, new: list[int]) -> Array:
        scores, ids = scores.copy(), self.prompt + new
        for token, bias in (self.options.get("logit_bias") or {}).items():
            scores[token] += bias
        penalty = self.options.get("repetition_penalty", 1.0)
        for token in set(ids):
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
        size = self.options.get("no_repeat_ngram_size", 0)
        ngrams = {tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)} if size else set()
        for token in range(len(scores)):
            if size and tuple([*ids, token][-size:]) in ngrams:
                scores[token] = -np.inf
        return scores

    def ends(self, new: list[int]) -> bool:
        return len(new) == self.options["max_new_tokens"] or new[-1] in self.stops

    def greedy(self) -> list[int]:
        new: list[int] = []
        while not new or not self.ends(new):
            scores = self.process(self.logits(new), new)
            if scores.max() == -np.inf:
                break
            new.append(int(scores.argmax()))
        return new

    def contrastive(self, alpha: float, k: int) -> list[int]:
        new: list[int] = []
        while not new or not self.ends(new):
            probabilities = np.exp(log_softmax(self.process(self.logits(new), new)))
            likeliest = sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))[:k]
            values = {}
            for token in sorted(likeliest):
                if probabilities[token] > 0:
                    *before, after = self.states([*new, token])
                    cosine = max(float(h @ after) / np.linalg.norm(h) / np.linalg.norm(after) for h in before)
                    values[token] = (1 - alpha) * probabilities[token] - alpha * cosine
            if not values:
                break
            new.append(max(values, key=lambda token: values[token]))
        return new

    def beam(self, num_beams: int, length_penalty: float) -> list[int]:
        """The score of a finished text is its log-probability / (number of new tokens) ** length_penalty."""
        running: list[tuple[float, list[int]]] = [(0.0, [])]
        finished: list[tuple[float, list[int]]] = []
        while running:
            extended = []
            for total, new in running:
                scores = self.process(log_softmax(self.logits(new)), new)
                extended += [(total + scores[token], [*new, token]) for token in range(len(scores))]
            extended = sorted((x for x in extended if x[0] > -np.inf), key=lambda x: -x[0])
            if not extended and not finished:
                return running[0][1]
            keep = max(2, 1 + len(set(self.stops))) * num_beams
            ended = [x for x in extended[:num_beams] if self.ends(x[1])]
            finished += [(total / len(new) ** length_penalty, new) for total, new in ended]
            finished = sorted(finished, key=lambda x: -x[0])[:num_beams]
            running = [x for x in extended[:keep] if not self.ends(x[1])][:num_beams]
            if running and len(finished) == num_beams:
                early = self.options.get("early_stopping")
                longest = early == "never" and length_penalty > 0
                length = self.options["max_new_tokens"] if longest else len(running[0][1])
                best = running[0][0] / length**length_penalty
                running = running if best > finished[-1][0] and early is not True else []
        return finished[0][1]


def log_softmax(scores: Array) -> Array:
    if scores.max() == -np.inf:
        return scores
    shifted = scores - scores.max()
    return shifted - np.log(np.exp(shifted).sum())
