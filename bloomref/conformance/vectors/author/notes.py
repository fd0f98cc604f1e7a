"""Notes on the flags of vectors: the bug behind each, and its effect on results."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """Description of a flag of the vectors.

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
    "big": _note("activations are clipped, or GELU is accurate near zero only", "large inputs give wrong outputs", "residual-clipped"),
    "cache-length": _note("cache entries after the last column are visible", "results depend on the capacity", "unwritten-seen"),
    "causal": _note("a query attends to later keys, or not to its own", "early positions change when tokens are appended", "not-causal strictly-causal causal-plus-one"),
    "config": _note("another key, another default, or no check of values", "another model is built silently"),
    "distance": _note("the bias has the wrong sign or size, is scaled, rounded, or missing", "attention favours the wrong distances", "no-alibi alibi-sign alibi-twice window"),
    "draw": _note("another generator, a seed of 32 bits, or probabilities added in another order than that of ids", "samples have the right distribution, but other tokens than those of the seed"),
    "embedding-norm": _note("the layer norm after the embedding is missing or applied twice; ids are shifted", "all later results are wrong", "no-embedding-norm embedding-norm-twice position-vectors ids-off-by-one"),
    "empty": _note("no rows, or no columns, raise an error", "a caller with an empty batch fails"),
    "eps-sensitive": _note("the embedding is scaled, or epsilon is in another place: with usual weights neither is visible", "the size of the first hidden state is wrong", "scaled-embedding epsilon-of-embedding"),
    "epsilon": _note("epsilon is a constant of the code", "the epsilon of the config is ignored", "epsilon-fixed"),
    "epsilon-place": _note("epsilon is added to the deviation, not to the variance; or is 1e-6 or 1e-12", "norms of small vectors are wrong", "epsilon-outside epsilon-1e-6 epsilon-1e-12 epsilon-as-floor epsilon-in-float16"),
    "front-door": _note("illegal inputs are accepted and interpreted", "wrong results instead of an error", "negative-id-wraps large-id-clipped id-in-32-bits float-ids-truncated mask-above-one mask-broadcast"),
    "full-precision": _note("an intermediate is rounded to 16 or 8 bits, which is invisible if weights have few bits", "a float32 model with errors of a 16-bit one", "cache-in-bfloat16 logits-in-bfloat16 inputs-in-bfloat16 weights-in-int8 matrices-in-int8 gelu-table-in-float16 softmax-in-bfloat16 probabilities-in-bfloat16 scores-in-float16 scores-before-scale-in-float16 scores-in-tf32 norm-in-bfloat16 residual-in-bfloat16 variance-in-float16 query-in-int8 mean-in-float16 exp-in-float16 linear-in-tf32 linear-in-two-bfloat16 accumulated-in-float16 accumulated-in-bfloat16 scaled-query-in-bfloat16 cache-in-float16 residual-in-float16 logits-in-float16 one-newton-step two-newton-steps"),
    "gelu": _note("the exact form, another approximation, or other constants", "errors from 1e-4 up in every layer", "gelu-erf gelu-quick silu relu gelu-without-cubic no-gelu gelu-cubic-0.04715 gelu-cubic-0.0447 gelu-constant-0.7978 gelu-constant-0.79788 tanh-by-fraction tanh-of-11-bits gelu-by-interpolation gelu-saturated gelu-exact-constant"),
    "gradients": _note("padding or ignored labels are counted, labels are not shifted, or a use of the tied head is missing", "training converges to another model", "loss-over-all-positions loss-summed loss-mean-of-rows loss-gradient-of-sum labels-not-shifted labels-shifted-twice padding-counted token-after-padding-counted ignored-label-counted tied-gradient lookup-gradient repeated-token-overwrites gelu-gradient-without-cube gelu-gradient-exact softmax-gradient-without-sum query-gradient-unscaled key-gradient-unscaled query-key-gradients-swapped value-gradient-lost qkv-gradient-in-blocks norm-gradient-without-mean norm-gradient-without-variance bias-gradient-lost bias-gradient-of-one-row residual-gradient-lost post-norm-gradient-past-norm zero-gradients gradients-negated gradients-in-bfloat16 gradients-of-last-layer-only"),
    "greedy": _note("padding changes the choice, the length counts new tokens only, or stop tokens of the prompt end a row", "a prompt in a batch gives another text than alone, or another length"),
    "head": _note("the head is not the embedding, or logits are scaled, capped or shifted", "wrong logits from right hidden states", "head-fresh-though-tied scaled-logits log-softmax capped-logits logits-shifted head-rows-missing"),
    "head-merge": _note("heads are joined without being transposed", "channels of heads are mixed up", "heads-not-transposed heads-interleaved"),
    "id-types": _note("some integer dtypes are refused, or floats and bools are accepted", "errors on legal ids, or results of illegal ones", "float-ids-truncated"),
    "id-wraps": _note("ids outside the vocabulary are wrapped, clipped, or cut to 32 bits", "results of other tokens", "negative-id-wraps large-id-clipped id-in-32-bits"),
    "large-mean": _note("the variance is the mean of squares minus the square of the mean, in float32", "norms lose their digits where the mean is much larger than the spread", "variance-by-moments"),
    "last-id": _note("ids are clipped one too low", "the last token becomes the one before", "last-id-clipped"),
    "layers": _note("layers are exchanged, repeated or left out", "a deep model is wrong where a shallow one is right", "first-layer-repeated layers-reversed last-layer-skipped mlp-residual-from-start"),
    "left-pad": _note("padding is visible, or the mask is inverted", "a padded prompt gives other results than alone", "padding-ignored mask-inverted"),
    "long": _note("positions or biases are stored in 8 bits, in 16-bit floats, or in a table that is too short", "right up to 128 or 256 positions, then wrong", "positions-wrap positions-clipped alibi-in-bfloat16 positions-in-bfloat16 slopes-in-bfloat16 alibi-in-float16 positions-in-8-bits slopes-in-float16"),
    "lora": _note("the scale, the order of rows, or the treatment of the tied head is wrong", "the adapter has another effect than in training", "lora-alpha-not-divided lora-scale-by-root lora-rslora-ignored lora-scale-forgotten lora-scaled-twice lora-alpha-pattern-ignored lora-alpha-of-another lora-rank-pattern-ignored lora-a-transposed lora-b-transposed lora-b-in-blocks lora-not-on-key lora-before-norm lora-before-gelu lora-bias-dropped lora-first-layer-only lora-embedding-ignored lora-embedding-behind-norm lora-embedding-in-head lora-dropped-out lora-forgotten-over-cache lora-merged-in-bfloat16 lora-merged-and-added lora-in-bfloat16"),
    "mask-hole": _note("positions are counted over the real tokens", "a hole shifts the tokens after it", "positions-by-cumsum"),
    "mask-rows": _note("one row's mask or slopes are used for all rows", "a row depends on the others", "mask-of-first-row slopes-by-row"),
    "mask-shape": _note("a mask of another shape is broadcast", "the wrong columns are hidden", "mask-broadcast"),
    "mask-values": _note("values other than 0 and 1 are treated as real, or as numbers to add or multiply", "wrong distances and sums", "mask-above-one"),
    "mlp-bias": _note("a bias of the MLP is missing, which is invisible if biases are zero", "all later results are off", "up-bias-dropped down-bias-dropped"),
    "mlp-width": _note("the MLP width is assumed to be 4 D", "other models fail, or lose channels", "last-channel-lost"),
    "no-layers": _note("the code assumes at least one layer", "an error, or a missing layer norm", "no-final-norm final-norm-of-embedding"),
    "no-mask": _note("a missing mask means no visible columns, or the mask of the previous call", "no key is visible"),
    "norms": _note("a block has no layer norm, both blocks share one, or LayerNorm weights are offsets from 1", "all later results are wrong", "no-attention-norm no-mlp-norm one-norm-per-block norm-gain-plus-one variance-over-padding mean-over-padding"),
    "odd-heads": _note("2^(-8 i/H) for every H, or another order of the slopes beyond the power of two", "other models than those of 1, 2, 4, 8, 16 heads are wrong", "naive-slopes extra-slopes-without-stride extra-slopes-even extra-slopes-first slopes-of-next-power slopes-continued"),
    "pad-id": _note("the embedding of the pad token is treated as zero", "a text that contains it is wrong", "pad-row-zeroed"),
    "padded-rows": _note("a query without visible keys divides zero by zero", "NaN spreads to real tokens in the next layer", "nan-from-padding"),
    "padding-row": _note("a row that is all padding gives NaN", "the whole batch is lost"),
    "penalty": _note("a negative score is divided, or a token counts twice", "repetition is encouraged"),
    "pieces": _note("columns, masks or positions of a later call begin at 0 again, or keys are written to wrong places", "the first call is right, the later ones are not", "cache-slot-late value-slot-early cache-overwritten earlier-keys-unseen first-column-forgotten prefix-mask-forgotten causal-offset-forgotten causal-forgotten-later alibi-restarted alibi-lost-later alibi-table-short embedding-norm-lost-later cache-rows-exchanged one-cache-for-all-layers keys-unbiased-later cache-stride"),
    "policy": _note("an integer dtype is accepted, or sums are computed in 16 bits", "no digits are left"),
    "post-ln": _note("`apply_residual_connection_post_layernorm` is ignored, or implemented in one block only", "models with this option are wrong", "post-norm-ignored post-norm-in-attention-only post-norm-in-mlp-only"),
    "qkv-layout": _note("the fused rows are read as three blocks, or in another order within a head", "all results are wrong, although all shapes are right", "qkv-in-blocks qkv-by-channel query-key-swapped key-value-swapped value-first qkv-bias-in-blocks qkv-bias-dropped one-key-head qkv-transposed qkv-heads-reversed qkv-scaled-whole"),
    "residual": _note("a residual is missing, comes from elsewhere, or from the norm", "blocks do not add up", "post-norm-always no-attention-residual no-mlp-residual parallel-blocks dropout-scale residual-in-place"),
    "right-pad": _note("padding after the text is visible", "results depend on the longest text of the batch", "not-causal"),
    "rounding": _note("digits are truncated, ties are rounded away from zero, or numbers are rounded twice", "weights are off by one bit"),
    "scale": _note("scores are scaled by D, not K; by 1/K; or not at all", "attention is too flat or too sharp", "scale-by-width no-scale scale-without-root alibi-before-scaling alibi-by-layer"),
    "sharding": _note("a bias is added on every device instead of once, or every device has the slopes of the first", "a split model differs from a whole one", "bias-on-every-rank mlp-bias-on-every-rank slopes-of-rank first-slopes-on-every-rank qkv-blocks-in-rank sum-over-ranks-forgotten head-of-one-rank"),
    "sharp": _note("masked keys get a finite score: -100, -10000 or 0", "if real scores are lower, masked keys are visible", "mask-100 mask-10000 mask-set-to-minus-50 mask-multiplied softmax-without-maximum max-over-hidden softmax-from-first-key softmax-maximum-clipped scores-clipped exp-clipped log-sum-exp"),
    "slopes": _note("slopes start at 1, decrease twice as fast, or have another order", "every score is wrong", "slopes-from-one max-bias-16 slopes-reversed one-slope"),
    "softmax": _note("softmax is over queries, applied twice, has an extra 1 in the sum, or is applied before masking", "probabilities do not add up to one", "mask-added-as-one mask-after-softmax softmax-over-queries softmax-plus-one softmax-twice online-softmax-not-rescaled online-sum-not-rescaled split-keys-averaged split-keys-without-maxima log-sum-exp-of-another-base exp-of-bits exp-by-cubic log2e-of-five-digits epsilon-in-softmax small-probabilities-dropped reciprocal-of-12-bits"),
    "ties": _note("of equal scores the last is chosen, or any", "texts differ between machines"),
    "top-p": _note("the token that crosses p is excluded, or no token is left", "samples have another distribution"),
    "truncated-draw": _note("top-k and top-p are exchanged, come before the temperature, or keep one token too few or too many", "samples have another distribution"),
    "untied": _note("the embedding is used as head although the model has an untied LM head", "wrong logits", "head-tied-though-untied"),
    "weights": _note("arrays of equal shapes are exchanged, or read transposed", "there is no error, and all results are wrong", "norms-exchanged output-biases-exchanged attention-output-transposed norm-bias-dropped norm-gain-dropped unbiased-variance mean-not-subtracted attention-bias-dropped"),
    "weights-file": _note("damaged or foreign files are read partially", "a model of random numbers, or worse"),
}  # fmt: skip
"""All flags, in alphabetical order."""
