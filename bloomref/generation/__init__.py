"""Text generation and scoring, on top of `runtime.engine`. Reading order:

1. `options`: what a caller may set; `prompts`: from texts and token ids to one padded batch.
2. `task`: the arguments of one generation; `decoder`: the sequences of a batch and their KV cache.
3. `row_scores`: scores of one sequence; `logits_processors`: bias, penalties, forbidden sequences; `sampling`: top-k,
   top-p, min-p, typical-p and the draw; `partial_selection` and `shortlist`: the same without a look at every token.
4. `search`: dispatch to a decoding strategy, greedy search, sampling; `beam` and `contrastive`: the other strategies.
5. `speculation`: greedy search and sampling with a draft; `chooser`: one token of a row; `proposals`: the drafts;
   `pace`: how much is proposed.
6. `stopping`: stop tokens and stop strings; `streaming`: text from tokens, as they arrive.
7. `scoring`: log-likelihoods of given tokens; `pairs`: the tokens of a text behind its context; `windows`: of a long
   text; `score_options`: what a caller may set; `scoring_bar`: progress.
8. `many`: many prompts in batches; `other_tools`: names of options elsewhere.
"""
