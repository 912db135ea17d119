"""The import law (docs/architecture.md): who may know whom, kept by reading the sources."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for package in ("estserver", "devicesim") for path in (ROOT / package).rglob("*.py"))

OWNERS: dict[str, tuple[str, ...]] = {
    "flask": ("estserver.web",),
    "werkzeug": ("estserver.web",),
    "sqlalchemy": ("estserver.inventory",),
    "alembic": ("estserver.inventory",),
    "asn1crypto": ("estserver.asn1", "devicesim"),
    "gunicorn": ("estserver.serving",),
    "OpenSSL.SSL": ("estserver.serving", "devicesim"),
    "OpenSSL": ("estserver.serving", "estserver.identity.paths", "estserver.keys", "devicesim"),
    "prometheus_client": ("estserver.observe",),
    "paho": ("estserver.announce", "devicesim.mqtt"),
    "amqtt": ("devicesim.mqtt",),
    "sqlite3": ("estserver.inventory", "devicesim.mqtt", "devicesim.line"),
    "estserver": ("estserver",),
    "estserver.observe": ("estserver.observe", "estserver.web", "estserver.cli"),
    "devicesim": ("devicesim",),
    "estserver.cli": ("estserver.cli", "estserver.__main__"),
    "devicesim.cli": ("devicesim.cli", "devicesim.__main__"),
}
"""Module → the only rooms that may import it."""

PRIVATE_KEYS = re.compile(r"\b(load_pem_private_key|load_der_private_key|generate_private_key|\w+PrivateKey)\b")
TIME_AND_WORLD = re.compile(
    r"\b(datetime\.now|datetime\.utcnow|date\.today|time\.time|os\.environ|os\.getenv|sys\.argv)\b"
)
MAY_READ_THE_WORLD = ("estserver.cli", "estserver.serving", "estserver.announce", "estserver.web")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a source imports, wherever in it."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(found)


def code_of(path: Path) -> str:
    """The source without docstrings and comments."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.unparse(tree)


@pytest.mark.parametrize("owned", OWNERS)
def test_each_library_has_its_rooms(owned: str) -> None:
    strangers = [
        (module_of(path), found)
        for path in SOURCES
        for found in imports(path)
        if within(found, owned) and not any(within(module_of(path), room) for room in OWNERS[owned])
    ]
    assert strangers == []


def test_serving_knows_nothing_of_ours() -> None:
    for path in (ROOT / "estserver" / "serving").rglob("*.py"):
        ours = [found for found in imports(path) if within(found, "estserver")]
        assert all(within(found, "estserver.serving") for found in ours), path


def test_values_and_errors_know_nothing_of_ours() -> None:
    for room in ("model", "errors"):
        assert not [found for found in imports(ROOT / "estserver" / f"{room}.py") if within(found, "estserver")]


def test_what_is_told_knows_only_the_front_and_the_errors() -> None:
    """`observe` is handed what it tells; it asks nobody."""
    for path in (ROOT / "estserver" / "observe").rglob("*.py"):
        ours = [found for found in imports(path) if within(found, "estserver")]
        rooms = ("observe", "serving", "errors")
        assert all(any(within(found, f"estserver.{room}") for room in rooms) for found in ours), path


def test_exports_know_a_ledger_in_one_place_and_the_line_knows_no_export() -> None:
    """A format sees a neutral value; how a ledger is kept may change without it."""
    for path in SOURCES:
        module, found = module_of(path), imports(path)
        if within(module, "devicesim.exports") and module != "devicesim.exports.ledger":
            assert not [f for f in found if within(f, "devicesim.line") and not within(f, "devicesim.line.findings")], (
                path
            )
        if within(module, "devicesim.line"):
            assert not [f for f in found if within(f, "devicesim.exports")], path


CORE = (
    *("model", "records", "errors", "asn1", "csr", "binding", "events", "ca", "keys", "policy", "identity", "config"),
    *("csrattrs", "possession", "enveloped", "sealing", "keygen", "crl", "ocsp", "rollover"),
)
ABOVE_THE_CORE = (
    *("enroll", "assembly", "home", "web", "announce", "serving", "observe", "cli", "inventory", "fetches"),
    *("key_update", "status", "refusals"),
)


@pytest.mark.parametrize("room", CORE)
def test_the_core_does_not_look_up(room: str) -> None:
    """A core module imports no use case, no storage, no web."""
    for path in SOURCES:
        if within(module_of(path), f"estserver.{room}"):
            found = [f for f in imports(path) if any(within(f, f"estserver.{above}") for above in ABOVE_THE_CORE)]
            assert found == [], path


def test_private_keys_exist_in_keys_only() -> None:
    """`serving` loads the TLS key, which OpenSSL needs itself; everybody else holds a Signer."""
    found = {module_of(p) for p in SOURCES if within(module_of(p), "estserver") and PRIVATE_KEYS.search(code_of(p))}
    assert found <= {"estserver.keys", "estserver.serving.context"}


def test_clock_environment_and_arguments_are_passed_in() -> None:
    found = {
        module_of(path)
        for path in SOURCES
        if within(module_of(path), "estserver") and TIME_AND_WORLD.search(code_of(path))
    }
    assert not [module for module in found if not any(within(module, room) for room in MAY_READ_THE_WORLD)]


def test_what_is_public_is_sorted() -> None:
    for path in SOURCES:
        for node in tree_of(path).body:
            if isinstance(node, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
            ):
                names = ast.literal_eval(node.value)
                assert list(names) == sorted(set(names), key=_isort), path


def _isort(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as ruff's RUF022 sorts."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def test_files_stay_small_enough_to_read() -> None:
    assert [p for p in SOURCES if len(p.read_text("utf-8").splitlines()) > 400] == []


BLOCKED = """
import sys
allowed = set(sys.stdlib_module_names) | {"cryptography", "asn1crypto", "OpenSSL", "click", "devicesim",
                                          "_cffi_backend", "cffi", "typing_extensions"}
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"blocked: {name}")
sys.meta_path.insert(0, Wall())
import devicesim, devicesim.client, devicesim.device, devicesim.csr, devicesim.cli
"""


def test_the_device_side_needs_four_libraries() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_of_both_programs_loads_nothing_heavy() -> None:
    heavy = {"flask", "sqlalchemy", "alembic", "gunicorn", "paho", "prometheus_client", "rich"}
    for program in ("estserver", "devicesim"):
        code = f"import sys, {program}.cli; print([m for m in {heavy!r} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n", program
