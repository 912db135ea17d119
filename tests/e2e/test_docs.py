"""Every command in the docs does what its page says: each page is run, in its order, as one shell script."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("operator.md", "device-developer.md", "line-engineer.md", "rollover.md")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+)\)")


def script_of(page: Path, port: int) -> str:
    blocks = [
        text if language == "sh" else f"python - <<'PYTHON'\n{text}PYTHON\n"
        for language, text in BLOCK.findall(page.read_text("utf-8"))
    ]
    script = "set -euo pipefail\ntrap 'kill $(jobs -p)' EXIT\nset -x\n" + "\n".join(blocks)
    for wanted, found in (("8443", port), ("9464", free_port()), ("8080", free_port())):
        script = script.replace(wanted, str(found))
    return script


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.e2e
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_works(page: str, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script_of(ROOT / "docs" / page, free_port())],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text("utf-8")) if not link.startswith("https://")]
    assert all((page.parent / link).exists() for link in links), links


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200
