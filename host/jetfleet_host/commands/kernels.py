"""Commands `kernels build/list`: CUDA kernels compiled to cubins on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from jetfleet_contract.messages import encode

_TOOLCHAINS = typer.Option(None, "--toolchains", help="Where NVRTC is kept (default: the user's cache).")
_JSON = typer.Option(False, "--json", help="Print JSON.")

_BUILD = """Compile the pre-processing kernels for every GPU that boards have, and check each cubin by its ELF headers.

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


def register(app: typer.Typer) -> None:
    """Add the group `kernels`."""
    group = typer.Typer(name="kernels", help="CUDA kernels for boards, compiled here without a GPU.", no_args_is_help=True)
    group.command("build", help=_BUILD)(build)
    group.command("list", help=_LIST)(list_folder)
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
