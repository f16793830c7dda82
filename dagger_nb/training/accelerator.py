"""Where served students are trained: on the GPU, if there is one, which then has to be one that torch can use."""

from __future__ import annotations

import os

import torch

from dagger_nb.errors import EnvironmentProblem
from dagger_nb.sizing.gpus import ORDER, local_gpus


def accelerator() -> str:
    """`cuda`, or `cpu` where there is no GPU.

    Raises:
        EnvironmentProblem: there is a GPU that torch cannot use; on the processor a fit would take weeks.
    """
    os.environ.setdefault(*ORDER)
    if torch.cuda.is_available():
        return "cuda"
    if local_gpus():
        raise EnvironmentProblem(unusable())
    return "cpu"


def unusable() -> str:
    """Why torch cannot use the GPU of this machine, and what to do; empty where it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} uses no GPU; make install-gpu"
    if not torch.cuda.is_available():
        drivers = ", ".join(sorted({gpu.driver for gpu in local_gpus()}))
        return (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda} and finds no GPU with driver {drivers}; "
            "install a driver for that CUDA or a torch for an older one, and see that CUDA_VISIBLE_DEVICES hides no GPU"
        )
    return ""
