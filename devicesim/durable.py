"""Files that are there, whole, after a power cut, or not at all: written beside, synced, moved into place."""

from __future__ import annotations

import os
from pathlib import Path

from devicesim.errors import StorageError


def write_new(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read and that was not there, onto the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, data: bytes) -> None:
    """Write a file in the place of whatever was there."""
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    write_new(beside, data)
    beside.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have the names in a directory on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Do as `replace`, in a folder that is made where there is none.

    Raises:
        StorageError: nothing was written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace(path, data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
