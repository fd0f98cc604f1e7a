"""Notes on the flags of vectors: the bug behind each, and its effect on results."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """Why vectors carry a flag.

    Args:
        bug: what implementations of BLOOM have done wrong.
        effect: the effect on results.
        mistakes: names in the catalogue of known mistakes (docs/proof.md); the vectors with the flag detect each.
    """

    bug: str
    effect: str
    mistakes: tuple[str, ...] = ()


def _note(bug: str, effect: str, mistakes: str = "") -> Note:
    return Note(bug, effect, tuple(mistakes.split()))


NOTES: dict[str, Note] = {
    "big": _note("activations are cut off, or GELU is right in its middle only", "large inputs give wrong outputs", "residual-clipped"),
    "cache-length": _note("what stands behind the last column in a cache is seen", "results depend on the capacity", "unwritten-seen"),
    "causal": _note("a query sees later keys, or not its own", "early positions change when tokens are appended", "not-causal strictly-causal causal-plus-one"),
    "config": _note("another key, another default, or no check of values", "another model is built, without a word"),
    "distance": _note("the bias has the wrong sign or size, is scaled, rounded, or missing", "attention looks at the wrong distance", "no-alibi alibi-sign alibi-twice window"),
    "embedding-norm": _note("the norm behind the embedding is left out, or made twice; ids are shifted", "everything behind is wrong", "no-embedding-norm embedding-norm-twice position-vectors ids-off-by-one"),
    "empty": _note("no rows, or no columns, raise an error", "a caller with nothing left to ask fails"),
    "eps-sensitive": _note("the embedding is scaled, or epsilon stands elsewhere: with usual weights neither shows", "the size of the first hidden state is wrong", "scaled-embedding epsilon-of-embedding"),
    "epsilon": _note("epsilon is built in", "the config's is ignored", "epsilon-fixed"),
    "epsilon-place": _note("epsilon is added to the deviation, not to the variance; or is 1e-6 or 1e-12", "norms of small vectors are wrong", "epsilon-outside epsilon-1e-6 epsilon-1e-12"),
    "front-door": _note("what the specification refuses is taken for something else", "wrong results instead of an error", "negative-id-wraps large-id-clipped id-in-32-bits float-ids-truncated mask-above-one mask-broadcast"),
    "full-precision": _note("something is rounded to 16 or 8 bits on the way: where weights have few bits it hides", "a float32 model with errors of a 16-bit one", "cache-in-bfloat16 logits-in-bfloat16 inputs-in-bfloat16 weights-in-int8 gelu-table-in-float16 softmax-in-bfloat16 probabilities-in-bfloat16 scores-in-float16 scores-before-scale-in-float16 scores-in-tf32 norm-in-bfloat16 residual-in-bfloat16 variance-in-float16 query-in-int8"),
    "gelu": _note("the exact form, another approximation, or other constants", "errors from 1e-4 up in every layer", "gelu-erf gelu-quick silu relu gelu-without-cubic no-gelu gelu-cubic-0.04715 gelu-cubic-0.0447 gelu-constant-0.7978 gelu-constant-0.79788"),
    "gradients": _note("padding or ignored labels counted, labels not shifted, a use of the tied head left out", "training goes elsewhere"),
    "greedy": _note("padding decides, the length counts new tokens only, or stop tokens of the prompt count", "other texts than alone, of another length"),
    "head": _note("a head that is not the embedding, logits scaled, capped or shifted", "wrong logits from right hidden states", "head-fresh-though-tied scaled-logits log-softmax capped-logits logits-shifted head-rows-missing"),
    "head-merge": _note("heads are joined without being transposed", "channels of heads are mixed up", "heads-not-transposed heads-interleaved"),
    "id-types": _note("some integer types are not taken, or floats and truth values are", "errors on legal ids, or results of illegal ones", "float-ids-truncated"),
    "id-wraps": _note("ids outside the vocabulary are wrapped, clipped, or cut to 32 bits", "results of other tokens", "negative-id-wraps large-id-clipped id-in-32-bits"),
    "last-id": _note("ids are clipped one too low", "the last token becomes the one before", "last-id-clipped"),
    "layers": _note("layers are exchanged, repeated or left out", "a deep model is wrong where a shallow one is right", "first-layer-repeated layers-reversed last-layer-skipped mlp-residual-from-start"),
    "left-pad": _note("padding is seen, or the mask is read the wrong way", "a padded prompt gives other results than alone", "padding-ignored mask-inverted"),
    "long": _note("positions or biases are kept in 8 bits, in 16-bit floats, or in a table that ends", "right up to 128 or 256 positions, then wrong", "positions-wrap positions-clipped alibi-in-bfloat16 positions-in-bfloat16 slopes-in-bfloat16 alibi-in-float16"),
    "lora": _note("the scale, the order of rows, or what is tied is another", "an adapter does something else than it was trained for", "lora-alpha-not-divided lora-scale-by-root lora-rslora-ignored lora-scale-forgotten lora-scaled-twice lora-alpha-pattern-ignored lora-alpha-of-another lora-rank-pattern-ignored lora-a-transposed lora-b-transposed lora-b-in-blocks lora-not-on-key lora-before-norm lora-before-gelu lora-bias-dropped lora-first-layer-only lora-embedding-ignored lora-embedding-behind-norm lora-embedding-in-head lora-dropped-out lora-forgotten-over-cache lora-merged-in-bfloat16 lora-merged-and-added lora-in-bfloat16"),
    "mask-hole": _note("positions are counted over the real tokens", "a hole moves what is behind it", "positions-by-cumsum"),
    "mask-rows": _note("one row's mask or slopes are used for all rows", "a row depends on the others", "mask-of-first-row slopes-by-row"),
    "mask-shape": _note("a mask of another shape is stretched", "the wrong columns are hidden", "mask-broadcast"),
    "mask-values": _note("values other than 0 and 1 are taken as real, or as numbers to add or multiply", "wrong distances and sums", "mask-above-one"),
    "mlp-bias": _note("a bias of the MLP is left out: with biases of zero it hides", "everything behind is off", "up-bias-dropped down-bias-dropped"),
    "mlp-width": _note("4 D is built in", "other models fail, or lose channels", "last-channel-lost"),
    "no-layers": _note("the stack of blocks is taken for non-empty", "an error, or a norm too few", "no-final-norm final-norm-of-embedding"),
    "no-mask": _note("a missing mask means no columns, or the mask of the call before", "nothing is seen"),
    "norms": _note("a block works on its input without a norm, or both blocks on one; gains count from zero", "everything behind is wrong", "no-attention-norm no-mlp-norm one-norm-per-block norm-gain-plus-one"),
    "odd-heads": _note("2^(-8 i/H) for every H, or another order of the slopes beyond the power of two", "other models than those of 1, 2, 4, 8, 16 heads are wrong", "naive-slopes extra-slopes-without-stride extra-slopes-even extra-slopes-first slopes-of-next-power"),
    "pad-id": _note("the row of the pad token is taken as zero", "a text that contains it is wrong", "pad-row-zeroed"),
    "padded-rows": _note("a query that sees nothing divides zero by zero", "NaN spreads to real tokens in the next layer", "nan-from-padding"),
    "padding-row": _note("a row of nothing but padding gives NaN", "the whole batch is lost"),
    "penalty": _note("a negative score is divided, or a token counts twice", "repetition is encouraged"),
    "pieces": _note("columns, masks or positions of a later call begin at 0 again, or keys are put elsewhere", "the first call is right, the later ones are not", "cache-slot-late value-slot-early cache-overwritten earlier-keys-unseen first-column-forgotten prefix-mask-forgotten causal-offset-forgotten causal-forgotten-later alibi-restarted alibi-lost-later alibi-table-short embedding-norm-lost-later cache-rows-exchanged one-cache-for-all-layers keys-unbiased-later"),
    "policy": _note("an integer type is taken, or sums are kept in 16 bits", "no digits are left"),
    "post-ln": _note("`apply_residual_connection_post_layernorm` is ignored, or honoured in one block", "models that have it are wrong", "post-norm-ignored post-norm-in-attention-only post-norm-in-mlp-only"),
    "qkv-layout": _note("the fused rows are read as three blocks, or in another order within a head", "nothing is right, though all shapes fit", "qkv-in-blocks qkv-by-channel query-key-swapped key-value-swapped value-first qkv-bias-in-blocks qkv-bias-dropped one-key-head qkv-transposed qkv-heads-reversed qkv-scaled-whole"),
    "residual": _note("a residual is missing, comes from elsewhere, or from the norm", "blocks do not add up", "post-norm-always no-attention-residual no-mlp-residual parallel-blocks dropout-scale"),
    "right-pad": _note("padding behind the text is seen", "results depend on the longest text of the batch", "not-causal"),
    "rounding": _note("digits are cut off, ties go away from zero, or rounding happens twice", "weights are off by one bit"),
    "scale": _note("scores are scaled by D, not K; by 1/K; or not at all", "attention is too flat or too sharp", "scale-by-width no-scale scale-without-root alibi-before-scaling alibi-by-layer"),
    "sharding": _note("what is added once is added on every device, or every device has the slopes of the first", "a split model differs from a whole one", "bias-on-every-rank mlp-bias-on-every-rank slopes-of-rank first-slopes-on-every-rank qkv-blocks-in-rank sum-over-ranks-forgotten head-of-one-rank"),
    "sharp": _note("hidden keys get a finite score: -100, -10000 or 0", "where real scores are lower, hidden keys are seen", "mask-100 mask-10000 mask-set-to-minus-50 mask-multiplied"),
    "slopes": _note("slopes start at 1, fall twice as fast, or come in another order", "every score is wrong", "slopes-from-one max-bias-16 slopes-reversed one-slope"),
    "softmax": _note("over queries, twice, with one more in the sum, or before hidden keys are removed", "probabilities do not add up to one", "mask-added-as-one mask-after-softmax softmax-over-queries softmax-plus-one softmax-twice"),
    "ties": _note("of equal scores the last wins, or any", "texts differ between machines"),
    "top-p": _note("the token that crosses p is left out, or none is left", "samples from another distribution"),
    "untied": _note("the embedding is used although the model has a head of its own", "wrong logits", "head-tied-though-untied"),
    "weights": _note("arrays of equal shapes are exchanged, or read transposed", "nothing complains, and nothing is right", "norms-exchanged output-biases-exchanged attention-output-transposed norm-bias-dropped norm-gain-dropped unbiased-variance mean-not-subtracted attention-bias-dropped"),
    "weights-file": _note("damaged or foreign files are read as far as they go", "a model of random numbers, or worse"),
}  # fmt: skip
"""All flags, in alphabetical order."""
