"""How much memory there is."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["available_bytes"]


def available_bytes() -> int:
    """Memory that could be taken now without swapping, in bytes.

    Returns
    -------
    int
        The least of what the kernel and the control group of this process allow; all of it
        where the kernel does not say what is free.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found = [int(line.split()[1]) << 10]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        with suppress(OSError, ValueError):
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(found))
