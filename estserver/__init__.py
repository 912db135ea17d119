"""Estline's EST server: a certificate authority behind Enrollment over Secure Transport (RFC 7030)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from estserver.config import Settings
    from estserver.web import create_app

__version__ = "0.1.0"
__all__ = ["Settings", "__version__", "create_app"]


def __getattr__(name: str) -> object:
    """Import the two public names on first use, so that a command that needs no Flask does not load it."""
    if name == "create_app":
        from estserver.web import create_app  # noqa: PLC0415 - lazy on purpose

        return create_app
    if name == "Settings":
        from estserver.config import Settings  # noqa: PLC0415 - lazy on purpose

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
