"""From a labelled trajectory to an adapter: token tree, packed rows, loss, fit.

tree (tokens and targets) -> attention (kernels) -> mask (rows, who sees whom) -> loss -> batches -> fit; model loads
and saves students, and session leads from records on disk to an adapter on disk.
"""

import logging

# On CPUs with AVX512-bf16 bitsandbytes warns at import that an optional bf16 kernel is missing; we compute in fp32.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
