"""`evenkeel doctor`: what this machine offers, and which path serves which function."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SUMMARY = "say which functions run in compiled kernels here, which in torch, and why"

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print (default: text)")


def run(arguments: argparse.Namespace) -> int:
    """Print what was found."""
    found = examined()
    print(json.dumps(found, indent=2) if arguments.format == "json" else "\n".join(_drawn(found)))
    return 0


def examined() -> dict[str, Any]:
    """Versions, threads, the kernels' cache, and for each operator the path that serves each dtype on a CPU."""
    import torch

    importlib.import_module("evenkeel.instruments")  # which has operators of its own
    from ..functional import OPERATORS
    from ..kernels import cpu

    reason = cpu.unavailable_because()
    served = {name: cpu.serves(torch.empty(0, dtype=getattr(torch, name))) for name in _DTYPES}
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": _version("numba"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": {"available": reason is None, "reason": reason, **_cache(reason)},
        "functions": {
            operator: {
                "cpu": {name: "kernel" if served[name] and name in formats else "torch" for name in _DTYPES},
                "elsewhere": "torch",
            }
            for operator, formats in OPERATORS.items()
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cache(reason: str | None) -> dict[str, Any]:
    if reason is not None:
        return {"cache": None, "compiled": 0}
    from ..kernels.cpu._compile import cache_directory

    directory = cache_directory()
    return {
        "cache": None if directory is None else str(directory),
        "compiled": 0 if directory is None else sum(1 for _ in directory.iterdir()),
    }


def _drawn(found: dict[str, Any]) -> Iterator[str]:
    versions = f"torch {found['torch']}, numba {found['numba'] or 'not installed'}"
    yield f"{found['platform']}; Python {found['python']}, {versions}"
    yield f"{found['threads']} threads on {found['cores']} cores (torch.set_num_threads changes it)"
    kernels = found["kernels"]
    if not kernels["available"]:
        yield f"CPU kernels: none, everything runs in torch: {kernels['reason']}"
    elif kernels["cache"] is None:
        yield "CPU kernels: compiled anew in every process, since their cache cannot be written;"
        yield "  set EVENKEEL_CACHE_DIR to a directory that can"
    else:
        yield f"CPU kernels: {kernels['compiled']} compiled, kept in"
        yield f"  {kernels['cache']}"
    yield ""
    width = max(len(name) for name in found["functions"])
    rows = {"on a CPU": dict(zip(_DTYPES, _DTYPES, strict=True))}
    rows |= {name: paths["cpu"] for name, paths in found["functions"].items()}
    for name, row in rows.items():
        yield f"{name:{width}}" + "".join(f"  {row[dtype]:8}" for dtype in _DTYPES).rstrip()
    yield ""
    yield "On every other device all of them run in torch."
