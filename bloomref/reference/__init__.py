"""The specification, executed. Read in this order: ops, cache, model; trace shows every named intermediate."""
