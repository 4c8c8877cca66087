"""Who works on a study: names of workers that tell whether one of this machine still lives."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")  # changes when the machine starts anew, and with it all process numbers
_PROCESSES = Path("/proc/self/ns/pid")  # containers of one machine count their processes apart


def worker_name() -> str:
    """This process: a digest of the machine, the process number, and when the process began, where that is known."""
    return f"{_host()}-{os.getpid()}-{_begun(os.getpid())}"


def is_dead(worker: str) -> bool | None:
    """Whether a worker of this machine is gone; None for one of another machine, of which nothing is known here."""
    host, process, begun = worker.split("-")
    if host != _host():
        return None
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _begun(int(process)) != begun


def _host() -> str:
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    space = os.readlink(_PROCESSES) if _PROCESSES.exists() else ""
    return hashlib.sha256(f"{socket.gethostname()} {boot} {space}".encode()).hexdigest()[:8]


def _begun(process: int) -> str:
    """When a process began, in the system's own count; "" where the system does not say."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
