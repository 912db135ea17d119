"""How many connections this process can hold: one file descriptor each, and some for everything else."""

from __future__ import annotations

import resource

SPARE_DESCRIPTORS = 128


def raise_descriptor_limit(connections: int) -> int:
    """Raise the soft limit of open files as far as needed and allowed; give how many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    fits = connections if soft == resource.RLIM_INFINITY else soft - SPARE_DESCRIPTORS
    return max(1, min(connections, fits))
