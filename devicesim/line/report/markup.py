"""HTML and SVG, written so that nothing gets in unescaped: what is not `Markup` is text."""

from __future__ import annotations

from html import escape

_VOID = frozenset({"meta", "br"})


class Markup(str):
    """Something `tag` has made."""

    __slots__ = ()


def tag(name: str, /, *parts: str, **attributes: object) -> Markup:
    """Write an element; `class_` is class, an underscore elsewhere a hyphen; an attribute of None is left out."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{inside(*parts)}</{name}>")


def inside(*parts: str) -> Markup:
    """Join what stands in an element."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))
