"""Options of other tools: what they are called here, or why there is none. One sentence each, for messages."""

from collections.abc import Collection, Mapping
from typing import Any

from bloomref.errors import InvalidInput, describe

_STOP_STRINGS = "here it is stop_strings, a text or a list of texts"
_NEW_TOKENS = "here it is max_new_tokens, which counts the continuation alone"
_RESULTS = "here it is num_return_sequences"
_SCORES = "generate returns the continuations alone; lm.score(text, context=prompt) gives log-probabilities"
_CACHE = "generate keeps its own cache; lm.prefix(text) gives one that can be used again and saved"
_CALLBACK = "generate takes no functions; logit_bias, bad_words_ids and stop_strings change or end a text"
_STREAM = "lm.stream(prompt, ...) yields the text in pieces"
_INPUTS = "put it in the dictionary of inputs: {'input_ids': ids, 'attention_mask': mask}"
_DEVICE = "the backend is chosen when the model is loaded: from_preset(..., backend='cupy')"
_TEXTS = "tokenize each word and pass bad_words_ids=[lm.tokenizer(word), ...]"
_NO_EFFECT = ("use_cache",)
"""Options that change no result: any value is accepted."""

HINTS: dict[str, str] = {
    **dict.fromkeys(("stop", "stops", "stop_sequence", "stop_sequences", "stop_words", "antiprompt"), _STOP_STRINGS),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_gen_len", "n_predict", "num_predict"), _NEW_TOKENS),
    **dict.fromkeys(("n", "num_samples", "num_return"), _RESULTS),
    **dict.fromkeys(("repeat_penalty", "rep_pen"), "here it is repetition_penalty; 1 is off"),
    **dict.fromkeys(("typ_p", "typical"), "here it is typical_p"),
    **dict.fromkeys(("temp",), "here it is temperature"),
    **dict.fromkeys(("top_n", "topk"), "here it is top_k"),
    **dict.fromkeys(("topp", "nucleus"), "here it is top_p"),
    **dict.fromkeys(("beams", "num_beam", "beam_size", "beam_width"), "here it is num_beams"),
    **dict.fromkeys(("random_seed", "rng_seed", "sampling_seed"), "here it is seed"),
    **dict.fromkeys(("penalty_repeat", "repeat_last_n"), "repetition_penalty looks at the whole text"),
    **dict.fromkeys(
        ("frequency_penalty", "presence_penalty"),
        "there is none; repetition_penalty and no_repeat_ngram_size are against repetition",
    ),
    **dict.fromkeys(("ignore_eos",), "stop_token_ids=None ends at no token"),
    **dict.fromkeys(("end_id", "end_token_id", "eos_token_ids"), "here it is eos_token_id or stop_token_ids"),
    **dict.fromkeys(("min_tokens",), "here it is min_new_tokens, which counts the continuation alone"),
    **dict.fromkeys(("bad_words", "banned_tokens", "bad_words_list"), _TEXTS),
    **dict.fromkeys(("sequence_bias",), "logit_bias={id: number} is for single ids, bad_words_ids for sequences"),
    **dict.fromkeys(("forced_decoder_ids",), "end the prompt with that token"),
    **dict.fromkeys(("input_ids", "attention_mask", "padding_mask", "token_ids", "position_ids"), _INPUTS),
    **dict.fromkeys(("inputs_embeds",), "pass it alone: generate({'inputs_embeds': x, 'attention_mask': mask})"),
    **dict.fromkeys(("past_key_values", "cache_implementation", "cache_position", "prompt_cache"), _CACHE),
    **dict.fromkeys(("streamer", "stream"), _STREAM),
    **dict.fromkeys(
        (
            "logits_processor",
            "logits_processors",
            "stopping_criteria",
            "prefix_allowed_tokens_fn",
            "constraints",
            "force_words_ids",
            "callback",
        ),
        _CALLBACK,
    ),
    **dict.fromkeys(
        (
            "output_scores",
            "output_logits",
            "output_attentions",
            "output_hidden_states",
            "return_dict_in_generate",
            "logprobs",
            "return_logprobs",
        ),
        _SCORES,
    ),
    **dict.fromkeys(("echo", "return_full_text"), "strip_prompt=True returns the continuation alone"),
    **dict.fromkeys(("skip_special_tokens",), "special tokens of the continuation are not shown; pass ids to see them"),
    **dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size"), "here it is draft='prompt'"),
    **dict.fromkeys(("assistant_model", "draft_model"), "here it is draft, a model or the name of one"),
    **dict.fromkeys(
        ("num_assistant_tokens", "num_draft_tokens", "assistant_confidence_threshold"),
        "draft proposes as many tokens as save time",
    ),
    **dict.fromkeys(("dola_layers",), "there is none"),
    **dict.fromkeys(
        ("epsilon_cutoff", "eta_cutoff", "tfs_z", "top_a", "top_h", "mirostat", "dynatemp_range", "xtc_probability"),
        "there is none; top_k, top_p, min_p and typical_p truncate the distribution",
    ),
    **dict.fromkeys(
        ("guidance_scale", "watermark", "watermarking_config", "exponential_decay_length_penalty", "token_healing"),
        "there is none",
    ),
    **dict.fromkeys(("grammar", "json_schema", "response_format", "guided_json"), "output has no grammar here"),
    **dict.fromkeys(("messages", "tools", "system"), "render a chat as a prompt first"),
    **dict.fromkeys(("max_time", "timeout"), "lm.stream(prompt, ...) can be closed at any time"),
    **dict.fromkeys(("return_tensors", "truncation", "padding"), "pass texts or lists of ids; results have their form"),
    **dict.fromkeys(("renormalize_logits", "remove_invalid_values"), "logits that are not finite are an error"),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), "begin the prompt with that token"),
    **dict.fromkeys(("batch_size",), "lm.generate_each(prompts, batch=16) runs many prompts in batches"),
    **dict.fromkeys(("num_beam_groups", "diversity_penalty"), "there are no groups of beams; num_beams is plain"),
    **dict.fromkeys(("generation_config",), "pass its fields as arguments: generate(prompt, top_p=0.9)"),
    **dict.fromkeys(("device", "device_map"), _DEVICE),
    **dict.fromkeys(("prompt", "prompts", "text", "text_inputs"), "pass it first: generate('Everyone has', ...)"),
    **dict.fromkeys(("tokenizer",), "the model has its own: lm.tokenizer"),
}
"""Name in another tool (transformers, OpenAI, vLLM, llama.cpp, TGI) -> its meaning here."""


def translate(arguments: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Options without those of other tools that ask for nothing (None, False, an empty list), and with `eos_token_id`
    as `stop_token_ids`, which has the same meaning.

    Raises:
        InvalidInput: for another tool's option, with its name here.
    """
    options = {name: value for name, value in arguments.items() if name in known}
    for name, value in arguments.items():
        if name in known or name in _NO_EFFECT:
            continue
        if name == "eos_token_id":
            if not isinstance(options.get("stop_token_ids", "auto"), str):
                raise InvalidInput(describe(name, "either eos_token_id or stop_token_ids", "both"))
            options["stop_token_ids"] = value
        elif name not in HINTS:
            options[name] = value
        elif not (value is None or value is False or (isinstance(value, (list, tuple)) and not value)):
            raise InvalidInput(describe(name, "an option of generation", "the name of another tool", HINTS[name]))
    return options
