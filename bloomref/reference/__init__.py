"""The specification, executed. Read in this order: ops, cache, model; then for gradients ops_vjp, loss, tape, vjp.

`trace` shows every named intermediate, `lora` adds adapters to weights.
"""
