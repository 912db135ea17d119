"""The formats there are: every module of `formats` that has a `FORMAT`."""

from __future__ import annotations

import importlib
import pkgutil

from devicesim.errors import UsageProblem
from devicesim.exports import formats
from devicesim.exports.format import Format


def formats_known() -> dict[str, Format]:
    """Return every format by its name, sorted."""
    names = [f"{formats.__name__}.{module.name}" for module in pkgutil.iter_modules(formats.__path__)]
    modules = map(importlib.import_module, names)
    found = [module.FORMAT for module in modules if hasattr(module, "FORMAT")]
    return {form.name: form for form in sorted(found, key=lambda form: form.name)}


def format_named(name: str) -> Format:
    """Return one format."""
    known = formats_known()
    if name not in known:
        raise UsageProblem(f"there is no format {name!r}", advice=f"one of {', '.join(known)}")
    return known[name]
