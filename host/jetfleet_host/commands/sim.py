"""The command `sim`: a fleet of virtual devices to rehearse a rollout on."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from jetfleet_contract.errors import InputError

if TYPE_CHECKING:
    from jetfleet_host.sim.links import Address
    from jetfleet_host.sim.run import Settings

MAX_DEVICES = 4000

_HELP = """Rehearse a rollout: virtual devices over a real broker and the real server, with everything going wrong by a fault file.

Each device runs the contract's own machines (transfer, A/B slots, sketches, signed messages) over its own MQTT connection; its camera and
accelerator are a distribution of latencies. Version 1 is installed everywhere, then faults begin and version 2 is rolled out with a canary
and waves. At the end an oracle apart from the machines looks for anything that was lost: exit status 0 only if nothing was.

The same seed gives the same schedule of faults; real time still interleaves them differently from run to run.

Examples:

    jetfleet sim --devices 100

    jetfleet sim --faults-example > faults.toml; jetfleet sim --devices 300 --faults faults.toml --seed 7 --json

    jetfleet sim --devices 100 --scenario bad-model --mosquitto --plot sim.png
"""

_FAULTS = typer.Option(None, "--faults", "-f", metavar="FILE", help="What goes wrong; without it, the default mix.")
_BUNDLE = typer.Option([], "--bundle", metavar="DIR", help="A real bundle for the old version; a second one for the new version.")
_PLOT = typer.Option(None, "--plot", metavar="PNG", help="Draw the devices by phase over time.")
_KEEP = typer.Option(None, "--keep", metavar="DIR", help="Leave project, database and logs there.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("sim", help=_HELP)(sim)


def sim(
    devices: int = typer.Option(100, "--devices", "-n", min=2, max=MAX_DEVICES, help="How many."),
    faults: Path | None = _FAULTS,
    faults_example: bool = typer.Option(False, "--faults-example", help="Print the default mix with comments, and end."),
    calm: bool = typer.Option(False, "--calm", help="No faults at all."),
    seed: int = typer.Option(1, "--seed", "-s", min=0, help="Of everything that is drawn by lot."),
    scenario: str = typer.Option("canary", "--scenario", help="canary: has to succeed; bad-model: the fleet has to stop and undo it."),
    bundle_mb: float = typer.Option(0.25, "--bundle-mb", min=0.001, max=512.0, help="MiB of weights of a made-up version."),
    bundle: list[Path] = _BUNDLE,
    broker: str = typer.Option("", "--broker", metavar="HOST:PORT", help="An empty broker that runs already; it is not restarted."),
    mosquitto: bool = typer.Option(False, "--mosquitto", help="Start mosquitto in place of the embedded broker."),
    canary: int = typer.Option(0, "--canary", min=0, help="Devices in the first wave; 0: one in 25, at least 6."),
    wave: int = typer.Option(0, "--wave", min=0, help="Devices in each later wave; 0: three waves."),
    hold: float = typer.Option(2.0, "--hold", min=0.0, help="Seconds to watch a wave before the next."),
    window: float = typer.Option(0.0, "--window", min=0.0, max=60.0, help="Seconds of a telemetry window; 0: by the number of devices."),
    deadline: float = typer.Option(600.0, "--deadline", min=10.0, help="Seconds until a rollout that does not end is given up."),
    plot: Path | None = _PLOT,
    keep: Path | None = _KEEP,
    as_json: bool = typer.Option(False, "--json", help="Print the outcome as JSON."),
) -> None:
    from jetfleet_host.sim.faults import EXAMPLE, Faults, default_faults, read_faults
    from jetfleet_host.sim.run import Settings

    if faults_example:
        typer.echo(EXAMPLE, nl=False)
        return
    if scenario not in ("canary", "bad-model"):
        raise InputError("sim.scenario", f"{scenario[:40]!r} is no scenario", where="--scenario", remedy="canary or bad-model")
    if len(bundle) > 2 or (broker and mosquitto) or (calm and faults):
        raise InputError("sim.options", "these options do not go together", where="--bundle, --broker, --mosquitto, --calm, --faults",
                         remedy="at most two --bundle; one of --broker and --mosquitto; one of --calm and --faults")
    mix = Faults() if calm else read_faults(faults) if faults else default_faults()
    where = _address(broker) if broker else "mosquitto" if mosquitto else "embedded"
    settings = Settings(devices, seed, mix, scenario, int(bundle_mb * (1 << 20)), tuple(bundle), where, canary, wave,  # type: ignore[arg-type]
                        hold, window, deadline)
    signal.signal(signal.SIGTERM, _interrupt)  # so that a killed rehearsal takes its children with it
    outcome = asyncio.run(_rehearse(settings, keep, plot, as_json))
    if as_json:
        typer.echo(json.dumps(outcome, indent=2, sort_keys=True))
    else:
        _show(outcome)
    if outcome["lost"]:
        raise typer.Exit(1)


async def _rehearse(settings: Settings, keep: Path | None, plot: Path | None, as_json: bool) -> dict[str, Any]:
    from jetfleet_host.sim.progress import bar
    from jetfleet_host.sim.run import Simulation, run_folder

    async with run_folder(keep) as folder:
        with bar(visible=sys.stderr.isatty() or not as_json) as progress:
            simulation = Simulation(settings, folder, progress)
            outcome = await simulation.run()
    if plot is not None:
        from jetfleet_host.sim.plot import phases_plot

        title = f"{settings.devices} devices, {settings.scenario}, seed {settings.seed}"
        outcome["plot"] = str(phases_plot(plot, simulation.samples, title))
    return outcome


def _address(text: str) -> Address:
    from jetfleet_host.project import parse_broker
    from jetfleet_host.sim.links import Address

    section = parse_broker(text)
    if section.embedded:
        raise InputError("config.broker", "--broker names a broker that runs already", where="--broker",
                         remedy="give HOST:PORT, or leave it out")
    return Address(section.host, section.port)


def _interrupt(_number: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _show(outcome: dict[str, Any]) -> None:
    from rich.console import Console

    from jetfleet_host.sim.summary import tables

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    for table in tables(outcome):
        console.print(table)
    if "plot" in outcome:
        console.print(f"plot {outcome['plot']}", markup=False, soft_wrap=True)
    console.print("[red]\u2718[/] Something was lost." if outcome["lost"] else "[green]\u2714[/] Nothing was lost.")
