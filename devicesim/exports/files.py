"""Files of an export: new ones only, readable by their owner alone, on the disk before they have their name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from devicesim.errors import Conflict, StorageError


@contextmanager
def new_file(path: Path) -> Iterator[IO[str]]:
    """Write a text file that is not there yet, UTF-8, line ends as they are given."""
    with storage_problems(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file


def new_bytes(path: Path, data: bytes) -> None:
    """Write a file of octets that is not there yet."""
    with storage_problems(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)


def new_directory(path: Path) -> Path:
    """Make a directory that is not there yet."""
    with storage_problems(path):
        path.mkdir(mode=0o700)
    return path


def publish(staged: Path, target: Path) -> list[Path]:
    """Move what lies in `staged` into `target` under the same names; what is there already is never written over."""
    with storage_problems(target):
        names = sorted(entry.name for entry in staged.iterdir())
        taken = [name for name in names if os.path.lexists(target / name)]
        if taken:
            raise Conflict(f"{target / taken[0]} exists", advice="an export writes over nothing: choose another --out")
        os.sync()  # once for all: a folder a device, each file synced by itself, would take minutes
        for name in names:
            if (staged / name).is_dir():
                (staged / name).rename(target / name)
            else:
                os.link(staged / name, target / name)  # unlike a rename, this fails if the name was taken meanwhile
                (staged / name).unlink()
        sync_directory(target)
    return [target / name for name in names]


def sync_directory(path: Path) -> None:
    """Make sure that the names in a directory are on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def storage_problems(path: Path) -> Iterator[None]:
    """Turn what the disk says into our errors."""
    try:
        yield
    except FileExistsError as error:
        raise Conflict(f"{path} exists", advice="an export writes over nothing: choose another --out") from error
    except OSError as error:
        raise StorageError(f"cannot write {error.filename or path}: {error.strerror}") from error
