"""Backend `rtx-aot`: engines of TensorRT for RTX, built ahead of time on a machine without a GPU.

An engine's name is its key, made of what went in. Two builds of the same inputs differ in a byte, so bytes name nothing: a build whose key
is there, and whose digest is what its passport's record says, is not done again.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from jetfleet_contract.engines import Footing, Passport, Recipe, check_passport, engine_name, key_of
from jetfleet_contract.errors import IncompatibleError, InputError, JetfleetError, MalformedError, RuntimeFailure, StorageError
from jetfleet_contract.messages import decode, encode
from jetfleet_host.compress.loading import load_checked
from jetfleet_host.durable import sync_folder, write_file
from jetfleet_host.engines.jobs import MAGIC, MAX_LINE_BYTES, MAX_RESULT_BYTES, Fault, Progress, RtxJob, RtxResult
from jetfleet_host.engines.records import RECORD, Built, Record, check_engine, read_record, renewed
from jetfleet_host.engines.rtx_wheels import VERSION
from jetfleet_host.engines.sources import Profile, Weights, Wish, precision_of, profile_of

PROGRAM = (sys.executable, "-m", "jetfleet_host.engines.rtx_program")
SMS = (80, 86, 89, 120, 121)
"""Compute capabilities of TensorRT for RTX 1.7 that take every precision; Turing (75) takes fp16 and int8 models only, when asked."""
TURING = 75
PLATFORM = "x86_64"
MEMORY_MB = 16384
NICE = 15
SUFFIX = ".rtx"
_TAIL = 400
Told = Callable[[str, float], None]


def passport_of(weights: Weights, precision: str, profile: Profile, sm: int, builder: str) -> Passport:
    """An engine that is bound to a compute capability and to nothing else of the machine: it is finished on the board, by its driver."""
    footing = Footing("tensorrt-rtx", VERSION, PLATFORM, "", sm=sm)
    recipe = Recipe(weights.digest, precision, profile.shape, batches=profile.batches)
    return check_passport(Passport(footing, recipe, weights.subject, weights.name, builder))


def checked_sms(sms: tuple[int, ...]) -> tuple[int, ...]:
    """The chosen compute capabilities, each once; all of `SMS` when none is.

    Raises:
        InputError: `engine.sm`.
    """
    for sm in sms:
        if sm not in (*SMS, TURING):
            raise InputError("engine.sm", f"TensorRT for RTX {VERSION} builds nothing for sm_{sm}", where="--sm",
                             remedy=f"there are {', '.join(map(str, (TURING, *SMS)))}; Jetson boards build their own engines")
    return tuple(dict.fromkeys(sms)) or SMS


class RtxBuilder:
    """Builds engines one after another, each in a process of its own. Whatever stops it (Ctrl-C, an error) kills that process first, and
    leaves no part of an engine behind."""

    def __init__(self, libraries: Path, *, memory_mb: int = MEMORY_MB, timeout_s: float = 3600.0) -> None:
        self._libraries, self._memory_mb, self._timeout_s = libraries, memory_mb, timeout_s

    def faults(self, model: Path) -> tuple[Fault, ...]:
        """What the library's own parser says against the model."""
        result = self._run(RtxJob(str(model.resolve()), str(self._libraries.resolve()), memory_mb=self._memory_mb), _untold)
        if result.code:
            raise _error(result, model.name)
        return result.faults

    def build(self, weights: Weights, out: Path, sm: int, wish: Wish, *, builder: str = "host",
              told: Told | None = None) -> Built:
        """One engine and its record in `out`.

        Raises:
            InputError, IncompatibleError: of the model, and `engine.operator`, `engine.profile`, `engine.parse`, `engine.model` by node.
            RuntimeFailure: `engine.build`, `engine.crash`, `engine.memory`, `engine.timeout`. StorageError: `store.write`.
        """
        model = load_checked(weights.path)
        profile = profile_of(weights, model, wish)
        passport = passport_of(weights, precision_of(weights, model), profile, sm, builder)
        key = key_of(passport)
        path, record_path = out / (engine_name(key) + SUFFIX), out / (engine_name(key) + RECORD)
        kept = read_record(record_path, path, MAGIC)
        if kept is not None:
            return Built(renewed(kept, passport, record_path), path, fresh=False)
        try:
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=out, prefix=".build-") as work:
                made = Path(work) / "engine"
                result = self._run(RtxJob(str(weights.path.resolve()), str(self._libraries.resolve()), str(made.resolve()), sm,
                                          profile.spans, self._memory_mb), told or _untold)
                if result.code or result.faults:
                    raise _error(result, weights.name)
                check_engine(made, result.digest, result.size, MAGIC)
                made.replace(path)
                sync_folder(out)
        except OSError as error:
            raise StorageError("store.write", f"cannot keep the engine: {error.strerror or error}", where=str(out),
                               remedy="check free space and permissions of the folder") from None
        record = Record(key, passport, result.digest, result.size)
        write_file(record_path, encode(record))
        return Built(record, path, fresh=True)

    def _run(self, job: RtxJob, told: Told) -> RtxResult:
        with tempfile.TemporaryDirectory(prefix="jetfleet-rtx-") as folder:
            request, answer, said = Path(folder) / "job.json", Path(folder) / "result.json", Path(folder) / "said"
            request.write_bytes(encode(job))
            with said.open("wb") as complaints:
                code = self._child([*PROGRAM, str(request), str(answer)], complaints, told)
            if answer.is_file():
                return decode(answer.read_bytes(), RtxResult, limit=MAX_RESULT_BYTES)
            ended = f"signal {-code}" if code < 0 else f"exit code {code}"
            tail = " ".join(said.read_bytes()[-_TAIL:].decode(errors="replace").split())
            return RtxResult(code="engine.crash",
                             detail=f"the process ended with {ended}, its memory limit is {self._memory_mb} MB: {tail}")

    def _child(self, command: list[str], complaints: IO[bytes], told: Told) -> int:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints,
                                 start_new_session=True, env=environment)
        timer = _alarm(child, self._timeout_s)
        said = child.stdout or io.BytesIO()
        try:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, child.pid, NICE)
            for line in iter(lambda: said.readline(MAX_LINE_BYTES), b""):
                with contextlib.suppress(MalformedError):
                    progress = decode(line.strip(), Progress, limit=MAX_LINE_BYTES)
                    told(progress.phase, progress.percent)
            return int(child.wait())
        finally:
            timer.cancel()
            _kill(child)
            child.wait()
            said.close()


def _untold(_phase: str, _percent: float) -> None:
    return


def _error(result: RtxResult, name: str) -> JetfleetError:
    if result.faults:
        first, more = result.faults[0], len(result.faults) - 1
        others = f"; and {more} more" if more else ""
        kind = InputError if first.code in ("engine.model", "engine.profile") else IncompatibleError
        return kind(first.code, f"{name}: {first.what}{others}", where=f"node {first.node}" if first.node else "",
                    remedy=first.remedy or "jetfleet engines check MODEL.onnx --for tensorrt-rtx names all of them")
    if result.code == "engine.library":
        return IncompatibleError("engine.library", f"TensorRT for RTX does not load: {result.detail}",
                                 remedy="delete its folder in the cache and build again; its wheels are for Linux with glibc")
    memory = result.code in ("engine.memory", "engine.crash")
    remedy = "give it more: --memory-mb" if memory else "see what the library says; try another --sm"
    return RuntimeFailure(result.code, f"TensorRT for RTX builds no engine of {name}: {result.detail}", remedy=remedy)


def _alarm(child: subprocess.Popen[bytes], timeout_s: float) -> threading.Timer:
    timer = threading.Timer(timeout_s, _kill, (child,))
    timer.daemon = True
    timer.start()
    return timer


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
