"""A builder board on the bench, over SSH. The one file that imports asyncssh.

Host keys are checked against known_hosts, users are known by their keys or agent: no password is ever asked for or kept. The weights stay
on the board under their digest, so that the next build of them copies nothing; a copy that broke off is gone on with where it stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import re
import secrets
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from jetfleet_contract.errors import IncompatibleError, InputError, MalformedError, RuntimeFailure, TransportError, UntrustedError
from jetfleet_contract.evaluation import MAX_RESULT_BYTES, EvaluationJob, EvaluationResult
from jetfleet_contract.messages import Capability, decode, encode
from jetfleet_host.engines.board_builds import Told
from jetfleet_host.engines.local_machine import PROBE, capability_of
from jetfleet_host.engines.sources import Weights

FOLDER = ".cache/jetfleet/bench"
NICE = 15
CONNECT_S = 20.0
BUILD_S = 3600.0
_CHUNK = 1 << 20
_ADDRESS = re.compile(r"(?:([A-Za-z0-9_][A-Za-z0-9_.-]*)@)?([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:]+\])(?::([0-9]{1,5}))?")


class Address(msgspec.Struct, frozen=True):
    """USER@HOST:PORT; an empty user is the one of this process, port 0 the usual."""

    user: str
    host: str
    port: int


def address_of(text: str) -> Address:
    """As it stands behind ``ssh:``.

    Raises:
        InputError: `engine.ssh_address`.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3] or 0) > 65535:
        raise InputError("engine.ssh_address", f"{text[:80]!r} is no USER@HOST or USER@HOST:PORT", where="--with",
                         remedy="for example --with ssh:jetson@orin-bench.local")
    return Address(match[1] or "", match[2].strip("[]"), int(match[3] or 0))


class SshMachine:
    """See `board_builds.Machine`. Whatever stops a build kills its process on the board and removes the job's folder there.

    Args:
        python: the interpreter of the agent there. key: a private key file; None takes the user's own and the SSH agent's.
    """

    def __init__(self, address: Address, *, python: str = "python3", key: Path | None = None, known_hosts: Path | None = None) -> None:
        self.name = re.sub(r"[^A-Za-z0-9_.-]", "-", address.host)[:63]
        self._address, self._python, self._key = address, python, key
        self._known_hosts = known_hosts or Path.home() / ".ssh" / "known_hosts"

    def probe(self) -> Capability:
        """Raises as `build`, and RuntimeFailure `engine.probe`."""
        return asyncio.run(self._probe())

    def build(self, job: EvaluationJob, weights: Weights, engine: Path, told: Told) -> EvaluationResult:
        """Copy, run, fetch, clean up.

        Raises:
            UntrustedError: `engine.ssh_host_key`. TransportError: `engine.ssh`. RuntimeFailure: `engine.remote`.
            InputError: `engine.ssh_key`. IncompatibleError: `engine.ssh_library` when asyncssh is not installed.
        """
        return asyncio.run(self._build(job, weights, engine, told))

    async def _probe(self) -> Capability:
        async with self._connected() as board:
            done = await board.run(shlex.join([self._python, *PROBE]), encoding=None)
            if done.exit_status:
                tail = " ".join(bytes(done.stderr)[-300:].decode(errors="replace").split())
                raise RuntimeFailure("engine.probe", f"the agent on {self.name} does not answer: {tail}",
                                     remedy="install it there, or say where its Python is: --remote-python /opt/jetfleet/bin/python")
            return capability_of(bytes(done.stdout), self.name)

    async def _build(self, job: EvaluationJob, weights: Weights, engine: Path, told: Told) -> EvaluationResult:
        async with self._connected() as board, board.start_sftp_client() as files:
            await files.makedirs(FOLDER, exist_ok=True)
            root = await files.realpath(FOLDER)
            folder = posixpath.join(root, f"job-{secrets.token_hex(8)}")
            await files.mkdir(folder)
            try:
                model = await self._copied(board, files, weights, root, told)
                made = posixpath.join(folder, "engine")
                order = msgspec.structs.replace(job, model=model, export=made)
                await _write(files, posixpath.join(folder, "job.json"), encode(order))
                told("Compiling on the board", 50.0)
                result = await self._run(board, files, folder)
                if result.engine is not None:
                    told("Fetching the engine", 90.0)
                    await files.get(made, str(engine))
                told("Fetched", 100.0)
                return result
            finally:
                await asyncio.shield(self._clean(board, folder))

    async def _copied(self, board: Any, files: Any, weights: Weights, root: str, told: Told) -> str:
        """The weights' path on the board, where they have their digest."""
        path = posixpath.join(root, f"{weights.digest}.onnx")
        if await self._digest(board, path) == weights.digest:
            return path
        part = path + ".part"
        size = weights.path.stat().st_size
        there = (await files.stat(part)).size if await files.exists(part) else 0
        there = there if 0 < there <= size else 0
        async with files.open(part, "r+b" if there else "wb") as target:
            with weights.path.open("rb") as source:
                source.seek(there)
                while chunk := source.read(_CHUNK):
                    await target.write(chunk, there)
                    there += len(chunk)
                    told("Copying the model", 50.0 * there / size)
        if await self._digest(board, part) != weights.digest:
            await files.remove(part)
            raise MalformedError("engine.copy", f"the model arrived damaged on {self.name}", remedy="build again: it is copied anew")
        await files.posix_rename(part, path)
        return path

    async def _digest(self, board: Any, path: str) -> str:
        done = await board.run(f"sha256sum -- {shlex.quote(path)}")
        return str(done.stdout).partition(" ")[0] if done.exit_status == 0 else ""

    async def _run(self, board: Any, files: Any, folder: str) -> EvaluationResult:
        program = shlex.join([self._python, "-m", "jetfleet_agent.pipeline.evaluate", "job.json", "result.json"])
        command = f"cd {shlex.quote(folder)} && echo $$ > pid && exec nice -n {NICE} {program}"
        done = await board.run(f"exec sh -c {shlex.quote(command)}", timeout=BUILD_S)
        answer = posixpath.join(folder, "result.json")
        if not await files.exists(answer):
            tail = " ".join(str(done.stderr)[-300:].split())
            raise RuntimeFailure("engine.remote", f"the build on {self.name} ended without an answer ({done.exit_status}): {tail}",
                                 remedy="look at the board's memory; dmesg there says whether it was killed for it")
        async with files.open(answer, "rb") as stream:
            return decode(await stream.read(MAX_RESULT_BYTES + 1), EvaluationResult, limit=MAX_RESULT_BYTES)

    async def _clean(self, board: Any, folder: str) -> None:
        quoted = shlex.quote(folder)
        with contextlib.suppress(OSError):
            await board.run(f"kill -9 $(cat {quoted}/pid) 2>/dev/null; rm -rf -- {quoted}")

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        try:
            import asyncssh
        except ImportError:
            raise IncompatibleError("engine.ssh_library", "asyncssh is not installed", remedy="pip install 'jetfleet[ssh]'") from None
        if not self._known_hosts.is_file():
            raise self._unknown_host()
        more: dict[str, Any] = {}
        if self._key is not None:
            more["client_keys"] = [str(self._key)]
        if self._address.port:
            more["port"] = self._address.port
        if self._address.user:
            more["username"] = self._address.user
        try:
            async with asyncssh.connect(self._address.host, known_hosts=str(self._known_hosts), connect_timeout=CONNECT_S,
                                        preferred_auth="publickey", password=None, keepalive_interval=15, **more) as board:
                yield board
        except asyncssh.HostKeyNotVerifiable:
            raise self._unknown_host() from None
        except asyncssh.PermissionDenied:
            raise TransportError("engine.ssh", f"{self.name} takes none of this user's keys",
                                 remedy="put the public key into the board's authorized_keys, or give a private one: --ssh-key") from None
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise InputError("engine.ssh_key", f"the private key cannot be used: {error}",
                             remedy="give one without a passphrase, or load it into the SSH agent and leave --ssh-key out") from None
        except (asyncssh.Error, OSError, asyncio.TimeoutError) as error:
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise TransportError("engine.ssh", f"the connection to {self.name} failed: {said}",
                                 remedy="check that the board is on and that ssh to it works") from None

    def _unknown_host(self) -> UntrustedError:
        return UntrustedError("engine.ssh_host_key", f"the host key of {self.name} is not in known_hosts, or another",
                              where=str(self._known_hosts),
                              remedy="compare the key on the board's console, then add it: ssh-keyscan HOST >> known_hosts")


async def _write(files: Any, path: str, data: bytes) -> None:
    async with files.open(path, "wb") as stream:
        await stream.write(data)
