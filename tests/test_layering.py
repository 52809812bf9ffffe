"""Layering is a test: allowed imports, the device wheel in a bare venv, and two pyprojects that agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def test_imports_follow_the_design() -> None:
    linter = str(Path(sys.executable).parent / "lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_torch_is_imported_in_the_compress_folder_only() -> None:
    sources = [path for folder in ("agent", "host") for path in (ROOT / folder).rglob("*.py") if "compress" not in path.parts]
    assert sources
    assert [path for path in sources if re.search(r"^\s*(import|from) torch\b", path.read_text(), re.MULTILINE)] == []


def test_both_pyprojects_agree() -> None:
    root, device = toml(ROOT / "pyproject.toml"), toml(ROOT / "agent/pyproject.toml")
    assert root["project"]["dependencies"] == device["project"]["dependencies"]
    for table in ("entry-points", ):
        assert root["project"][table] == device["project"][table]
    assert root["project"]["scripts"]["jetfleet-agent"] == device["project"]["scripts"]["jetfleet-agent"]
    assert root["build-system"] == device["build-system"]
    root_version = ROOT / root["tool"]["hatch"]["version"]["path"]
    device_version = ROOT / "agent" / device["tool"]["hatch"]["version"]["path"]
    assert root_version.samefile(device_version)
    extras = root["project"]["optional-dependencies"]
    for runtime, requirement in device["project"]["optional-dependencies"].items():
        assert set(requirement) <= {*extras["host"], *extras.get(runtime, ())}, f"{runtime} differs between host and device"


def device_python() -> str:
    """Python 3.10 as on JetPack 6 where it is installed, else this interpreter (the test's name in the report says which)."""
    found = shutil.which("python3.10")
    if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
        return found
    pyenv = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.10.*/bin/python"))
    return str(pyenv[-1]) if pyenv else sys.executable


IMPORT_ALL = """
import importlib, pkgutil, sys
count = 0
for name in ("jetfleet_contract", "jetfleet_agent"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if module.name.endswith("__main__"):
            continue
        importlib.import_module(module.name); count += 1
heavy = {"torch", "onnx", "sqlalchemy", "typer", "rich", "matplotlib", "tensorrt", "onnxruntime", "openvino"} & set(sys.modules)
assert not heavy, heavy
assert not any(name.startswith("jetfleet_host") for name in sys.modules)
import jetfleet_agent
print(count, sys.version.split()[0], jetfleet_agent.__file__)
"""


@pytest.fixture(scope="module")
def device_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT / "agent", check=True, capture_output=True)
    wheel = next(folder.glob("*.whl"))
    subprocess.run([device_python(), "-m", "venv", str(folder / "venv")], check=True)
    subprocess.run([str(folder / "venv/bin/python"), "-m", "pip", "-q", "--disable-pip-version-check", "install", str(wheel)], check=True)
    return folder / "venv"


@pytest.mark.timeout(300)
def test_the_device_wheel_in_a_bare_venv(device_venv: Path, tmp_path: Path) -> None:
    python = str(device_venv / "bin/python")
    listed = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True).stdout.lower()
    for unwanted in ("torch", "sqlalchemy", "typer", "rich", "matplotlib", "iotcore"):
        assert f"\n{unwanted}==" not in f"\n{listed}", f"the device wheel pulls {unwanted}"
    done = subprocess.run([python, "-c", IMPORT_ALL], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    count, version, where = done.stdout.split()
    print(f"imported {count} modules on Python {version}")
    assert int(count) > 20
    assert "site-packages" in where
    refused = subprocess.run([python, "-c", "import jetfleet_host"], cwd=tmp_path, capture_output=True, check=False)
    assert refused.returncode != 0


def test_the_device_wheel_carries_board_files_and_tasks(device_venv: Path, tmp_path: Path) -> None:
    agent = str(device_venv / "bin/jetfleet-agent")
    done = subprocess.run([agent, "probe", "--board", "orin-nano", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"orin-nano"' in done.stdout
    code = "from importlib.metadata import entry_points as e; print(sorted(x.name for x in e(group='jetfleet.tasks')))"
    tasks = subprocess.run([str(device_venv / "bin/python"), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert tasks.strip() == "['classify', 'detect-db', 'detect-yolo', 'keypoints', 'raw', 'segment']"


def test_the_two_links_do_not_drift_apart() -> None:
    """Agent and host may not import each other and the contract does no I/O, so the link stands twice; a mend goes into both."""
    agent, host = ROOT / "agent/jetfleet_agent/supervisor/mqtt.py", ROOT / "host/jetfleet_host/mqtt.py"
    assert agent.read_text().splitlines()[2:] == host.read_text().splitlines()[2:]
