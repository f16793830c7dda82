"""How large a model is, and what a GPU holds of it.

shapes   parameters, an adapter's parameters, bytes of a KV cache
memory   GPU memory by phase, and whether a profile fits
gpus     the GPUs that this process may use
"""
