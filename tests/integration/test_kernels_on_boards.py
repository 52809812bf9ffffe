"""Kernels on their way: signed by a real host to a real agent, and inside the device's wheel."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from brokers import LOOPBACK, mosquitto, until
from fleet_rig import AgentProcess
from served_fleet import fleet_on
from small_cubins import fill

from jetfleet_agent.cubin_files import find_cubin
from jetfleet_contract.errors import InputError, UntrustedError
from jetfleet_contract.kernels import MANIFEST
from jetfleet_host.kernels import building, toolchains
from jetfleet_host.kernels.signed import sign_kernels, withdraw_kernels
from jetfleet_host.kernels.targets import TARGETS, TOOLCHAINS, chosen
from jetfleet_host.kernels.wheel import build_wheel, checkout_agent, read_wheel

ORIN = ((87, 12), (87, 13), (72, 11))


def test_a_board_gets_newer_kernels_without_a_new_wheel(tmp_path: Path) -> None:
    fill(tmp_path / "one", ORIN, source=building.source_digest())
    fill(tmp_path / "two", ((87, 12),), source=building.source_digest(), code=4096)
    with mosquitto() as broker, fleet_on(tmp_path, f"{LOOPBACK}:{broker.port}") as fleet:
        sign_kernels(fleet.project, tmp_path / "one")
        fleet.start()
        agent = AgentProcess(tmp_path / "agent", "bench-1", broker.port, fleet.project.root_file)
        agent.config.write_text('board = "orin-nano"\nsimulate = true\n' + agent.config.read_text())
        folder = tmp_path / "agent" / "state" / "kernels"
        try:
            agent.start()
            until((folder / MANIFEST).exists, f"the kernels; the agent said: {agent.said()[-2000:]}", 60)
            assert sorted(path.name for path in folder.iterdir()) == ["jetfleet.sm_87.cu12.cubin", "jetfleet.sm_87.cu13.cubin", MANIFEST]
            assert find_cubin(87, 13, (("signed", folder),)).origin == "signed"
            sign_kernels(fleet.project, tmp_path / "two")
            until(lambda: len(list(folder.iterdir())) == 2, "the next ones", 60)
            assert (folder / "jetfleet.sm_87.cu12.cubin").read_bytes() == (tmp_path / "two/jetfleet.sm_87.cu12.cubin").read_bytes()
            withdraw_kernels(fleet.project, 1)
            until(lambda: not list(folder.iterdir()), "their end", 60)
        finally:
            agent.stop()


def _nvrtc(cuda: int) -> building.Compiler:
    return building.open_compiler(cuda, toolchains.default_cache(), True, lambda _line: None)


@pytest.fixture
def agent_copy(tmp_path: Path) -> Path:
    """The device's sources alone: a build leaves nothing in the checkout."""
    folder = tmp_path / "checkout"
    shutil.copytree(checkout_agent(), folder / "agent", ignore=shutil.ignore_patterns("__pycache__", "cubins"))
    shutil.copytree(checkout_agent().parent / "firmware_configs", folder / "firmware_configs")
    return folder / "agent"


def test_a_wheel_holds_the_cubins_byte_for_byte_and_a_spoiled_one_is_named(tmp_path: Path, agent_copy: Path) -> None:
    if toolchains.find(TOOLCHAINS[11], tmp_path) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{TOOLCHAINS[11].requirement} is not installed")
    made = [build_wheel(agent_copy, tmp_path / name, chosen((72,)), _nvrtc, lambda _line: None) for name in ("a", "b")]
    assert made[0].digest == made[1].digest == "sha256:" + hashlib.sha256(Path(made[0].path).read_bytes()).hexdigest()
    assert made[0].kernels.source == building.source_digest()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [Path(made[0].path).name]
    spoiled = tmp_path / "spoiled.whl"
    with zipfile.ZipFile(made[0].path) as old, zipfile.ZipFile(spoiled, "w") as new:
        for row in old.infolist():
            data = old.read(row)
            new.writestr(row, data[:-1] + bytes([data[-1] ^ 1]) if row.filename.endswith(".cubin") else data)
    with pytest.raises(UntrustedError, match="sm_72"):
        read_wheel(spoiled)
    shutil.rmtree(agent_copy / "jetfleet_agent" / "cubins")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "bare")], cwd=agent_copy, check=True,
                   capture_output=True)
    with pytest.raises(InputError, match="without cubins"):
        read_wheel(next((tmp_path / "bare").glob("*.whl")))


_FIND = """
import json, sys
from jetfleet_agent.cubin_files import find_cubin, places
print(json.dumps([[sm, cuda, find_cubin(sm, cuda, places(None)).cubin.file] for sm, cuda in json.loads(sys.argv[1])]))
"""


def _answers(python: str) -> bool:
    return bool(python) and subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_an_installed_wheel_finds_a_cubin_for_every_gpu(tmp_path: Path, agent_copy: Path, version: str) -> None:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python")
    python = next(filter(_answers, (shutil.which(f"python{version}") or "", *map(str, pyenv))), "")
    if not python:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"there is no Python {version}")
    made = build_wheel(agent_copy, tmp_path / "dist", TARGETS, _nvrtc, lambda _line: None)
    assert made.size < 4_000_000
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    inside = str(tmp_path / "venv/bin/python")
    subprocess.run([inside, "-m", "pip", "-q", "--disable-pip-version-check", "install", made.path], check=True)
    wanted = [[target.sm, target.cuda] for target in TARGETS]
    done = subprocess.run([inside, "-c", _FIND, json.dumps(wanted)], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[target.sm, target.cuda, target.file] for target in TARGETS]
