"""CPU kernels in numba: Python functions over flat NumPy arrays, compiled on first call and kept in a disk cache.

`available()` says whether this platform can run them; where it cannot, every function takes its torch path.
"""

from __future__ import annotations

import functools
import os
import platform

import torch

SWITCH = "EVENKEEL_KERNELS"
_DTYPES = {torch.float32, torch.bfloat16, torch.float16}


@functools.cache
def unavailable_because() -> str | None:
    """Why there are no CPU kernels here, or None where there are."""
    if os.environ.get(SWITCH) == "off":
        return f"{SWITCH}=off"
    try:
        import numba  # noqa: F401
    except Exception as error:  # numba refuses interpreters and NumPy versions that it does not know in many ways
        return f"numba cannot be imported: {error}"
    return None


@functools.cache
def _converts_float16() -> bool:
    """Whether the processor widens float16 itself: every 64-bit ARM does, x86 from F16C (2012) on."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("f16c"))


def serves(*tensors: torch.Tensor) -> bool:
    """Whether kernels can take these tensors: real CPU tensors of one dtype among float32, bfloat16 and float16."""
    dtype = tensors[0].dtype
    if dtype not in _DTYPES:
        return False
    for tensor in tensors:
        if tensor.dtype != dtype or not tensor.is_cpu:
            return False
    return unavailable_because() is None and (dtype != torch.float16 or _converts_float16())
