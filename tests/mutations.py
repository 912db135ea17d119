"""Ways to spoil what is sound, one layer each: octets, DER, base64, names; `http_mutations` has HTTP.

Everything is drawn from one `random.Random`, so a seed repeats it. Nothing here knows a server.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.csr_maker import tlv

INTERESTING = (
    *(b"\x00", b"\xff", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b"\r\n ", b"\t", b" ", b":", b"=", b"/", b"%00"),
    *(b"\x7f", b"\x80", b"\x0b", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x80\xa8", b"\xef\xbb\xbf"),
    *(b"-1", b"0", b"4294967295", b"18446744073709551616", b"0x10", b"+5", b"1e3", b"\x30\x80", b"\x00\x00"),
)
GROWN_MAX = 70_000


# --- octets ---------------------------------------------------------------------------------------------------------


def octets(rng: random.Random, data: bytes, *, times: int = 3) -> bytes:
    """Change a few places, whatever they mean."""
    spoiled = bytearray(data)
    for _ in range(rng.randint(1, times)):
        at = rng.randrange(len(spoiled) + 1)
        rng.choice(_OCTETS)(rng, spoiled, at)
    return bytes(spoiled[:GROWN_MAX])


def _flip(rng: random.Random, data: bytearray, at: int) -> None:
    if at < len(data):
        data[at] ^= 1 << rng.randrange(8)


def _put(rng: random.Random, data: bytearray, at: int) -> None:
    data[at : at + 1] = bytes((rng.randrange(256),))


def _insert(rng: random.Random, data: bytearray, at: int) -> None:
    data[at:at] = rng.choice(INTERESTING) * rng.choice((1, 1, 1, 2, 40))


def _noise(rng: random.Random, data: bytearray, at: int) -> None:
    data[at:at] = rng.randbytes(rng.randint(1, 30))


def _cut(rng: random.Random, data: bytearray, at: int) -> None:
    del data[at : at + rng.choice((1, 2, 4, 16, 100))]


def _end(_rng: random.Random, data: bytearray, at: int) -> None:
    del data[at:]


def _double(rng: random.Random, data: bytearray, at: int) -> None:
    piece = data[at : at + rng.choice((1, 4, 20, 100, 1000))]
    data[at:at] = piece * rng.choice((1, 1, 2, 30))


def _move(rng: random.Random, data: bytearray, at: int) -> None:
    piece = data[at : at + rng.randint(1, 60)]
    del data[at : at + len(piece)]
    to = rng.randrange(len(data) + 1)
    data[to:to] = piece


_OCTETS: tuple[Callable[[random.Random, bytearray, int], None], ...] = (
    *(_flip, _put, _insert, _noise, _cut, _end, _double, _move),
)


# --- DER ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Node:
    """One value of a tree of DER; `head` replaces tag and length where they lie."""

    tag: int
    content: bytes = b""
    children: list[Node] = field(default_factory=list)
    prefix: bytes = b""
    head: bytes | None = None

    def write(self) -> bytes:
        inside = self.prefix + b"".join(child.write() for child in self.children) if self.children else self.content
        return tlv(self.tag, inside) if self.head is None else self.head + inside

    def all(self) -> list[Node]:
        return [self, *(below for child in self.children for below in child.all())]


def tree(data: bytes) -> list[Node] | None:
    """Read DER as far down as it goes, into strings that hold DER too; None when it is none."""
    found, at = [], 0
    while at < len(data):
        if len(data) < at + 2:
            return None
        tag, length, start = data[at], data[at + 1], at + 2
        if length > 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[at + 2 : start])
        if tag & 0x1F == 0x1F or length == 0x80 or start + length > len(data):
            return None
        found.append(_node(tag, data[start : start + length]))
        at = start + length
    return found


def _node(tag: int, content: bytes) -> Node:
    prefix = b"\x00" if tag == 0x03 and content[:1] == b"\x00" else b""
    inside = content[len(prefix) :]
    holds = tag & 0x20 or (tag in (0x03, 0x04) and inside[:1] == b"\x30")
    children = tree(inside) if holds and inside else None
    return Node(tag, content, children or [], prefix)


def der(rng: random.Random, data: bytes, *, times: int = 3) -> bytes:
    """Change the tree: tags, lengths, order, number and depth of values, object identifiers, integers, strings."""
    roots = tree(data)
    if not roots:
        return octets(rng, data)
    top = Node(0x30, children=roots)
    for _ in range(rng.randint(1, times)):
        rng.choice(_TREE)(rng, rng.choice(top.all()), top)
    return b"".join(root.write() for root in top.children)[:GROWN_MAX]


def _retag(rng: random.Random, node: Node, _top: Node) -> None:
    node.tag = rng.choice((0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0C, 0x13, 0x16, 0x1E, 0x30, 0x31, 0x80, 0x82, 0xA0,
                           0xA1, 0x1F, 0x00, 0xFF, rng.randrange(256)))  # fmt: skip


def _lie(rng: random.Random, node: Node, _top: Node) -> None:
    """A length that is wrong, or right and not minimal."""
    size = len(node.write())
    length = rng.choice((0, 1, size - 1, size + 1, size, 0x7F, 0x80, 0xFFFF, 0xFFFFFFFF, 1 << 62))
    width = rng.choice((0, 1, 2, 4, 8, 100))
    body = length.to_bytes(width or 1) if length < 1 << 8 * (width or 1) else length.to_bytes(8)
    node.head = bytes((node.tag,)) + (body[-1:] if not width else bytes((0x80 | len(body) & 0x7F,)) + body)


def _indefinite(_rng: random.Random, node: Node, _top: Node) -> None:
    node.head = bytes((node.tag | 0x20, 0x80))
    if node.children:
        node.children.append(Node(0x00))


def _repeat(rng: random.Random, node: Node, _top: Node) -> None:
    if node.children:
        child = rng.choice(node.children)
        node.children[0:0] = [child] * rng.choice((1, 1, 2, 9, 70, 1100))


def _remove(rng: random.Random, node: Node, _top: Node) -> None:
    if node.children:
        node.children.pop(rng.randrange(len(node.children)))
        node.content = b""


def _swap(rng: random.Random, node: Node, _top: Node) -> None:
    rng.shuffle(node.children)


def _graft(rng: random.Random, node: Node, top: Node) -> None:
    """Another value of the same tree in this one's place, or in it."""
    other = rng.choice(top.all()).write()
    if node.children and rng.random() < 0.5:
        node.children.insert(rng.randrange(len(node.children) + 1), Node(0, other, head=b""))
    else:
        node.head, node.children, node.content = b"", [], other


def _nest(rng: random.Random, node: Node, _top: Node) -> None:
    inside = node.write()
    for _ in range(rng.choice((1, 2, 30, 500))):
        inside = tlv(rng.choice((0x30, 0x30, 0x31, 0xA0)), inside)
    node.head, node.children, node.content = b"", [], inside


def _oid(rng: random.Random, node: Node, top: Node) -> None:
    """An object identifier that is another, endless, empty, padded or cut."""
    found = [one for one in top.all() if one.tag == 0x06 and one.head is None]
    if not found:
        return
    chosen = rng.choice(found)
    chosen.content = rng.choice((
        b"", b"\x80", b"\x80\x01", b"\x2a\x80", b"\x2a" + b"\xff" * 80 + b"\x7f", b"\x2a\x86\x48\xff",
        rng.choice(found).content, octets(rng, chosen.content, times=1), b"\x55\x1d" + bytes((rng.randrange(70),)),
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01" + bytes((rng.randrange(16),)), b"\x55\x04" + bytes((rng.randrange(70),)),
    ))  # fmt: skip


def _integer(rng: random.Random, _node_: Node, top: Node) -> None:
    found = [one for one in top.all() if one.tag in (0x01, 0x02, 0x0A) and one.head is None]
    if found:
        chosen = rng.choice(found)
        chosen.content = rng.choice((
            b"", b"\x00", b"\x01", b"\x03", b"\xff", b"\x80", b"\x00\x00", b"\xff\xff", b"\x7f" * 9, b"\xff" * 300,
            b"\x00" + b"\xff" * 4000, b"\x00" * 20 + chosen.content, octets(rng, chosen.content, times=1),
        ))  # fmt: skip


def _string(rng: random.Random, node: Node, _top: Node) -> None:
    if not node.children:
        node.content = rng.choice((octets(rng, node.content), rng.randbytes(rng.randint(0, 40)), name(rng).encode()))
        node.content = node.content[:GROWN_MAX]


_TREE: tuple[Callable[[random.Random, Node, Node], None], ...] = (
    *(_retag, _lie, _indefinite, _repeat, _remove, _swap, _graft, _nest, _oid, _integer, _string, _string),
)


# --- base64 ---------------------------------------------------------------------------------------------------------


def base64_text(rng: random.Random, data: bytes) -> bytes:
    """Write DER as base64 of a kind that somebody might send, or might not."""
    return rng.choice(_BASE64)(rng, base64.b64encode(data), data)[:GROWN_MAX]


_BASE64: tuple[Callable[[random.Random, bytes, bytes], bytes], ...] = (
    lambda rng, text, _: octets(rng, text),
    lambda rng, text, _: text[: rng.randrange(len(text) + 1)],
    lambda rng, text, _: text + b"=" * rng.randint(1, 5),
    lambda _rng, text, _: text.rstrip(b"="),
    lambda rng, text, _: text[:8] + rng.choice((b" ", b"\n", b"\r\n", b"\t")) * rng.choice((3, 60_000)) + text[8:],
    lambda _rng, _text, der: base64.urlsafe_b64encode(der),
    lambda _rng, _text, der: der,
    lambda _rng, text, _: base64.b64encode(text),
    lambda _rng, text, _: text + text,
    lambda rng, text, _: b"\n".join(text[i : i + 1] for i in range(len(text))) + rng.choice((b"", b"\0", b"\xff")),
    lambda rng, text, _: pem(rng, text),
    lambda rng, _text, _der: b"A" * rng.choice((1, 4, 65_000, 65_536)),
    lambda _rng, text, _: text.decode().encode("utf-16"),
)


def pem(rng: random.Random, text: bytes) -> bytes:
    """Armour of several kinds around base64."""
    words = rng.choice((b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST", b"CERTIFICATE", b"", b"A" * 9000, b"x\0y"))
    end = rng.choice((words, words, b"OTHER", b""))
    dashes = rng.choice((b"-----", b"-----", b"----", b"-----" * 2000))
    whole = dashes + b"BEGIN " + words + dashes + b"\n" + text + b"\n" + dashes + b"END " + end + dashes + b"\n"
    return whole * rng.choice((1, 1, 1, 2))


# --- names ----------------------------------------------------------------------------------------------------------


def name(rng: random.Random, sound: str = "sn-1") -> str:
    """A name that is not quite one: control characters, other scripts, wildcards, paths, too much."""
    odd = rng.choice(_NAMES)
    return rng.choice((odd, sound + odd, odd + sound, sound[:2] + odd + sound[2:]))


_NAMES = (
    *("\0", "\r\n", "\n", "\x1b[31m", "\x85", "\u2028", "\ufeff", "\u202e", "\u200b", "\u212a", "\uff0e", "İ", "ß"),
    *("*", "*.*", "..", "/", "../..", "\\", "#", "+", "?", "%00", "%s%n", "{device}", "${jndi:x}", "'; --", "<b>"),
    *(
        ".",
        "-",
        "_",
        " ",
        "",
        "a" * 64,
        "a" * 65,
        "a" * 2049,
        "a." * 200,
        "xn--",
        "xn--a\u00fc",
        "\U0001f600",
        "1.2.3.4",
    ),
    *("\r\nSet-Cookie: x", 'x", realm="y', "a" * 20_000, "\ud7ff", "\ue000", "\ufffd"),
)
