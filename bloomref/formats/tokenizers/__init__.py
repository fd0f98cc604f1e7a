"""Files of tokenizers: vocabularies, added tokens, chat templates."""
