"""The tree over a ledger's events: hashes as in Certificate Transparency (RFC 9162 §2.1.1), SHA-256.

A root stands for every event before it, in order. That some of them are under it takes a few hashes to show
(`Tree.prove`, `root_of`), however many there are; `Frontier` grows the root without keeping the leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Self

HASH_BYTES = 32
EMPTY_ROOT = sha256().digest()


def leaf_hash(entry: bytes) -> bytes:
    """Hash one entry (RFC 9162 §2.1.1)."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into one (RFC 9162 §2.1.1)."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """A tree that only grows: of all its leaves, the roots of its full subtrees, largest first.

    Their sizes are the binary digits of `size`, so that these hashes and the size are all there is to keep.
    """

    def __init__(self, size: int = 0, subtrees: bytes = b"") -> None:
        self.size = size
        self._roots = [subtrees[at : at + HASH_BYTES] for at in range(0, len(subtrees), HASH_BYTES)]
        if len(subtrees) % HASH_BYTES or len(self._roots) != size.bit_count():
            raise ValueError("these are not the subtrees of a tree of this size")

    def push(self, leaf: bytes) -> None:
        """Add one leaf hash; every full pair becomes one subtree."""
        self._roots.append(leaf)
        self.size += 1
        for _ in range((self.size & -self.size).bit_length() - 1):
            right, left = self._roots.pop(), self._roots.pop()
            self._roots.append(node_hash(left, right))

    def root(self) -> bytes:
        """Return the root over everything pushed."""
        if not self._roots:
            return EMPTY_ROOT
        root = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            root = node_hash(left, root)
        return root

    def subtrees(self) -> bytes:
        """Return what to keep, to go on from here."""
        return b"".join(self._roots)

    def copy(self) -> Self:
        """Return the same tree, to grow on its own."""
        return type(self)(self.size, self.subtrees())


class Tree:
    """A whole tree, to prove from."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [list(leaves)]
        while len(below := self._levels[-1]) > 1:
            pairs = [node_hash(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)]
            self._levels.append(pairs + below[len(pairs) * 2 :])  # an odd one goes up as it is

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self._levels[0])

    def prove(self, wanted: Sequence[int]) -> list[bytes]:
        """Return the hashes that, with the wanted leaves (ascending indices), make the root: `root_of` takes them."""
        return list(self._missing(0, self.size, wanted))

    def _missing(self, low: int, high: int, wanted: Sequence[int]) -> Iterator[bytes]:
        if not wanted:
            level = (high - low - 1).bit_length()
            yield self._levels[level][low >> level]
        elif high - low > 1:
            middle = _split(low, high)
            yield from self._missing(low, middle, [index for index in wanted if index < middle])
            yield from self._missing(middle, high, [index for index in wanted if index >= middle])


def root_of(size: int, leaves: Mapping[int, bytes], hashes: Sequence[bytes]) -> bytes:
    """Return the root of a tree of `size` leaves from some of them and the hashes `Tree.prove` gave; else ValueError.

    With one leaf this is its inclusion proof (RFC 9162 §2.1.3), the hashes in the order of the leaves they cover.
    """
    if not leaves or not all(0 <= index < size for index in leaves):
        raise ValueError("the leaves are not in the tree")
    rest = iter(hashes)

    def root(low: int, high: int, inside: Sequence[int]) -> bytes:
        if not inside:
            return next(rest)
        if high - low == 1:
            return leaves[low]
        middle = _split(low, high)
        left = root(low, middle, [index for index in inside if index < middle])
        return node_hash(left, root(middle, high, [index for index in inside if index >= middle]))

    try:
        found = root(0, size, sorted(leaves))
    except StopIteration:
        raise ValueError("hashes are missing") from None
    if next(rest, None) is not None:
        raise ValueError("there are more hashes than the tree has room for")
    return found


def _split(low: int, high: int) -> int:
    """Return where a subtree divides: the largest power of two below its size (RFC 9162 §2.1.1)."""
    return low + (1 << ((high - low - 1).bit_length() - 1))
