"""Commands `kernels build/list`: CUDA kernels compiled to cubins on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from jetfleet_contract.messages import encode

_TOOLCHAINS = typer.Option(None, "--toolchains", help="Where NVRTC is kept (default: the user's cache).")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")

_BUILD = """Compile the kernels of pre-processing and decoding for every GPU that boards have, and check each cubin by its ELF headers.

No GPU, driver or CUDA toolkit is needed: NVIDIA's NVRTC comes from PyPI, in the version that suits each JetPack, and is kept in a cache.
Only what changed is compiled; the same source gives the same bytes.

Examples:

    jetfleet kernels build --out cubins

    jetfleet kernels build --out cubins --sm 87 --sm 110

    jetfleet kernels build --out cubins --offline --json
"""
_LIST = """Check a folder of cubins and list it: which GPU, which compiler, how many kernels.

Examples:

    jetfleet kernels list cubins

    jetfleet kernels list cubins --json
"""


_WHEEL = """Build the device's wheel with the cubins inside, and check every one of them in the finished file.

From a checkout. The same checkout and compilers give the same bytes. A board that installs it compiles nothing and needs no CUDA toolkit.

Examples:

    jetfleet kernels wheel --out dist

    jetfleet kernels wheel --out dist --sm 87 --offline --json
"""
_PUBLISH = """Sign a folder of cubins as the fleet's kernels: boards fetch those of their GPU, without a new wheel and without a rollout.

They replace the kernels of the boards' wheels and those that were signed before, at each pipeline's next start.

Examples:

    jetfleet kernels build --out cubins && jetfleet kernels publish cubins --dir fleet
"""
_SIGNED = """List the kernels that boards may fetch now.

Examples:

    jetfleet kernels signed --dir fleet

    jetfleet kernels signed --dir fleet --json
"""
_WITHDRAW = """Take the signed kernels back: boards use those of their own wheels again.

Examples:

    jetfleet kernels withdraw --dir fleet
"""


def register(app: typer.Typer) -> None:
    """Add the group `kernels`."""
    group = typer.Typer(name="kernels", help="CUDA kernels for boards, compiled here without a GPU.", no_args_is_help=True)
    group.command("build", help=_BUILD)(build)
    group.command("list", help=_LIST)(list_folder)
    group.command("wheel", help=_WHEEL)(wheel)
    group.command("publish", help=_PUBLISH)(publish)
    group.command("signed", help=_SIGNED)(signed)
    group.command("withdraw", help=_WITHDRAW)(withdraw)
    app.add_typer(group)


def build(out: Path = typer.Option(..., "--out", "-o", help="Folder of the cubins; made when it is missing."),  # noqa: B008 - typer's way
          sm: list[int] = typer.Option([], "--sm", min=1, help="Only this GPU, as 87; may be given again. All by default."),  # noqa: B008
          toolchains: Path | None = _TOOLCHAINS,
          offline: bool = typer.Option(False, "--offline", help="Fetch nothing: NVRTC must be there."),
          as_json: bool = _JSON) -> None:
    """See `_BUILD`."""
    from jetfleet_host.kernels import building
    from jetfleet_host.kernels.targets import chosen
    from jetfleet_host.kernels.toolchains import default_cache

    cache = toolchains or default_cache()

    def told(line: str) -> None:
        typer.echo(f"kernels: {line}", err=True)

    done = building.build(out, chosen(tuple(sm)), lambda cuda: building.open_compiler(cuda, cache, not offline, told), told)
    if as_json:
        rows = [{**json.loads(encode(built.cubin)), "compiled": built.fresh} for built in done]
        typer.echo(json.dumps({"out": str(out), "cubins": rows}, indent=2))
        return
    fresh = sum(built.fresh for built in done)
    size = sum(built.cubin.size for built in done)
    typer.echo(f"{len(done)} cubins, {size / 1e6:.2f} MB, are in {out}: {fresh} compiled, {len(done) - fresh} unchanged.")


def list_folder(folder: Path = typer.Argument(..., metavar="DIR", help="A folder that `kernels build` made."),  # noqa: B008 - typer's way
                as_json: bool = _JSON) -> None:
    """See `_LIST`."""
    from jetfleet_host.kernels.building import read_folder
    from jetfleet_host.kernels.targets import TARGETS

    found = read_folder(folder)
    if as_json:
        typer.echo(json.dumps(json.loads(encode(found)), indent=2))
        return
    boards = {target.file: target.boards for target in TARGETS}
    for cubin in found.cubins:
        typer.echo(f"sm_{cubin.sm:<4} CUDA {cubin.cuda}  NVRTC {cubin.nvrtc:<8} {cubin.size:>8} bytes  {cubin.digest[7:19]}  "
                   f"{boards.get(cubin.file, '')}".rstrip())
    typer.echo(f"{len(found.kernels)} kernels each, of source {found.source[7:19]}; every file is what was built.")


def wheel(out: Path = typer.Option(..., "--out", "-o", help="Folder of the wheel."),  # noqa: B008 - typer's way
          agent: Path | None = typer.Option(None, "--agent", help="Folder `agent` of a checkout (default: the one this runs from)."),  # noqa: B008
          sm: list[int] = typer.Option([], "--sm", min=1, help="Only this GPU, as 87; may be given again. All by default."),  # noqa: B008
          toolchains: Path | None = _TOOLCHAINS,
          offline: bool = typer.Option(False, "--offline", help="Fetch nothing: NVRTC must be there."),
          as_json: bool = _JSON) -> None:
    """See `_WHEEL`."""
    from jetfleet_host.kernels import building
    from jetfleet_host.kernels.targets import chosen
    from jetfleet_host.kernels.toolchains import default_cache
    from jetfleet_host.kernels.wheel import build_wheel, checkout_agent

    cache = toolchains or default_cache()

    def told(line: str) -> None:
        typer.echo(f"kernels: {line}", err=True)

    made = build_wheel(agent or checkout_agent(), out, chosen(tuple(sm)),
                       lambda cuda: building.open_compiler(cuda, cache, not offline, told), told)
    if as_json:
        typer.echo(json.dumps(json.loads(encode(made)), indent=2))
        return
    typer.echo(f"{made.path}: {made.size / 1e6:.2f} MB, of that {made.cubin_bytes / 1e6:.2f} MB for {len(made.kernels.cubins)} cubins of "
               f"source {made.kernels.source[7:19]}; {made.digest}")


def publish(folder: Path = typer.Argument(..., metavar="CUBINS", help="A folder that `kernels build` made."),  # noqa: B008 - typer's way
            project: Path = _DIR, as_json: bool = _JSON) -> None:
    """See `_PUBLISH`."""
    from jetfleet_contract.kernel_sets import sms_of
    from jetfleet_host.kernels.signed import sign_kernels
    from jetfleet_host.project import Project

    done = sign_kernels(Project.load(project), folder)
    if as_json:
        typer.echo(json.dumps(json.loads(encode(done)), indent=2))
        return
    typer.echo(f"{len(done.cubins)} cubins for {sms_of(done.cubins)}, {done.size / 1e6:.2f} MB, source {done.source[7:19]}, are "
               f"{'signed' if done.new else 'signed already'}.")
    if done.waits:
        typer.echo("Hand the targets over where snapshot and timestamp are signed: boards see nothing of it before.")


def signed(project: Path = _DIR, as_json: bool = _JSON) -> None:
    """See `_SIGNED`."""
    from jetfleet_host.kernels.signed import read_signed, signed_kernels
    from jetfleet_host.project import Project

    opened = Project.load(project)
    sets = [read_signed(opened, target) for target in signed_kernels(opened)]
    if as_json:
        typer.echo(json.dumps([json.loads(encode(found)) for found in sets], indent=2))
        return
    for found in sets:
        typer.echo(f"interface {found.interface}, source {found.source[7:19]}, {len(found.kernels)} kernels")
        for cubin in found.cubins:
            typer.echo(f"  sm_{cubin.sm:<4} CUDA {cubin.cuda}  NVRTC {cubin.nvrtc:<8} {cubin.size:>8} bytes  {cubin.digest[7:19]}")
    if not sets:
        typer.echo(f"No kernels are signed: boards use those of their wheels. Sign some: jetfleet kernels publish CUBINS --dir {project}")


def withdraw(interface: int = typer.Option(0, "--interface", min=0, help="Of agents of another age; this version's by default."),
             project: Path = _DIR, as_json: bool = _JSON) -> None:
    """See `_WITHDRAW`."""
    from jetfleet_contract.kernel_sets import INTERFACE
    from jetfleet_host.kernels.signed import withdraw_kernels
    from jetfleet_host.project import Project

    number = interface or INTERFACE
    withdraw_kernels(Project.load(project), number)
    typer.echo(json.dumps({"interface": number}) if as_json else f"The kernels of interface {number} are withdrawn.")
