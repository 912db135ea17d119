"""What a plain `pip install estline` can do, and how it says what it cannot."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = {argv!r}
from {module} import main
main()
"""
EXTRAS = (
    "pydantic",
    "flask",
    "sqlalchemy",
    "alembic",
    "gunicorn",
    "paho",
    "rich",
    "prometheus_client",
    "amqtt",
    "stdnum",
    "segno",
    "PIL",
)


def run(module: str, *argv: str) -> subprocess.CompletedProcess[str]:
    program = BLOCKED.format(blocked=EXTRAS, argv=list(argv), module=module)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)


def test_the_server_without_its_extra_says_what_to_install() -> None:
    done = run("estserver.__main__", "estserver", "--help")
    assert done.returncode == 3
    assert "estline[server]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_est_client_needs_no_extra() -> None:
    done = run("devicesim.cli", "devicesim", "est", "enroll", "--help")
    assert done.returncode == 0, done.stderr
    assert "--password-file" in done.stdout


def test_a_command_without_its_extra_says_what_to_install() -> None:
    done = run("devicesim.cli", "devicesim", "line", "run", "--help")
    assert done.returncode == 2
    assert "estline[line]" in done.stderr
    assert "Traceback" not in done.stderr
