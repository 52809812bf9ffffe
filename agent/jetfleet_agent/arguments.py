"""The arguments of `jetfleet-agent`: names, help and examples; what each command does is the composition root's."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from jetfleet_contract import __version__

DEFAULT_CONFIG = Path("/etc/jetfleet/agent.toml")
BENCH_SOURCE = "synthetic:1280x720?frames=100"

Command = Callable[[argparse.Namespace], int]

_EPILOG = """\
examples:
  jetfleet-agent run --example > agent.toml
  jetfleet-agent doctor --config agent.toml
  jetfleet-agent run --config agent.toml
  jetfleet-agent probe --board orin-nano

exit codes: 0 done, 1 a check failed, 2 wrong input, 3 to 10 by kind of error, 130 interrupted"""


def parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The whole command line; `commands` are run, probe, explain, bench, doctor, status and audit."""
    made = argparse.ArgumentParser(prog="jetfleet-agent", description="The on-device daemon of jetfleet, and its tools.",
                                   formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_EPILOG)
    made.add_argument("--version", action="version", version=f"jetfleet-agent {__version__}")
    group = made.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, summary: str, *examples: str) -> argparse.ArgumentParser:
        lines = "\n  ".join(("examples:", *(f"jetfleet-agent {name} {example}".rstrip() for example in examples)))
        command = group.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=lines,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
        command.set_defaults(command=commands[name])
        command.add_argument("--json", action="store_true", help="print JSON on standard output")
        command.add_argument("--verbose", "-v", action="store_true", help="log what happens to standard error")
        return command

    _run(add("run", "run the agent until it is stopped", "--config /etc/jetfleet/agent.toml", "--example > agent.toml"))
    _probe(add("probe", "show what this board can do", "", "--board orin-nano --json", "--boards"))
    _explain(add("explain", "say why a model runs the way it does here", "--config agent.toml --app reader", "--bundle ./text-1.bundle"))
    _bench(add("bench", "measure every candidate here, one process each: the session alone beside a frame's whole work",
               "--bundle ./text-1.bundle --rounds 3",
               "--bundle ./text-1.bundle --source rtsp://camera/stream --candidate fp32@openvino:bf16",
               "--model yolo.onnx --size 640x640 --task detect-yolo --source gate.mp4 --threads 2 --json"))
    _config(add("doctor", "check whether this board is fit to run", "--config agent.toml"))
    _config(add("status", "show what runs here now", "--config agent.toml --json"))
    _audit(add("audit", "list every picture that left this board, and when the rules changed", "--config agent.toml",
               "--config agent.toml --app reader --last 20 --json"))
    return made


def _run(command: argparse.ArgumentParser) -> None:
    _config(command)
    command.add_argument("--example", action="store_true", help="print a config with every key, and end")


def _probe(command: argparse.ArgumentParser) -> None:
    _board(command)
    command.add_argument("--boards", action="store_true", help="list the known boards instead")


def _explain(command: argparse.ArgumentParser) -> None:
    _config(command)
    command.add_argument("--app", default="", help="only this app (default: every choice kept on this board)")
    command.add_argument("--bundle", type=Path, metavar="DIR", help="measure this bundle folder now instead")
    _board(command)
    _threads(command)


def _bench(command: argparse.ArgumentParser) -> None:
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", type=Path, metavar="DIR", help="a bundle folder")
    source.add_argument("--model", type=Path, metavar="FILE", help="an ONNX file with one image input")
    command.add_argument("--size", default="640x640", metavar="WxH", help="input size of --model (default %(default)s)")
    command.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "int8", "uint8"), help="what --model's weights are")
    command.add_argument("--task", default="raw", metavar="KIND", help="what decodes --model's outputs (default %(default)s)")
    command.add_argument("--source", default=BENCH_SOURCE, metavar="URI",
                         help="where frames come from: a video, a folder of images, a camera (default %(default)s)")
    command.add_argument("--candidate", action="append", default=[], metavar="NAME",
                         help="only this one, as fp32@openvino:bf16; may be repeated")
    command.add_argument("--runs", type=_count, default=50, help="timed frames (default %(default)s)")
    command.add_argument("--warmup", type=_count, default=10, help="untimed ones before (default %(default)s)")
    command.add_argument("--rounds", type=_count, default=1, help="how often, in turns; the best counts (default %(default)s)")
    command.add_argument("--tune", type=_seconds, default=4.0, metavar="S",
                         help="seconds for the settings of each candidate's runtime; 0: its defaults (default %(default)s)")
    command.add_argument("--provider", default="", metavar="NAME",
                         help="ONNX Runtime's execution provider or OpenVINO's device, where it is not the CPU; never a silent fall-back")
    command.add_argument("--timeout", type=_seconds, default=600.0, metavar="S", help="for one process (default %(default)s)")
    command.add_argument("--record", type=Path, metavar="FILE",
                         help="also write the figures with their provenance, for `jetfleet matrix --record FILE` on the host")
    _board(command)
    _threads(command)


def _audit(command: argparse.ArgumentParser) -> None:
    _config(command)
    command.add_argument("--app", default="", help="only this app (default: all)")
    command.add_argument("--last", type=_count, default=50, metavar="N", help="at most so many lines, the newest (default %(default)s)")


def _config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="the agent's config (default %(default)s)")


def _board(command: argparse.ArgumentParser) -> None:
    command.add_argument("--board", default="auto", metavar="NAME",
                         help="board file to use; another board than this one is simulated (default: the board that this is)")


def _threads(command: argparse.ArgumentParser) -> None:
    command.add_argument("--threads", type=_count, default=0, metavar="N", help="CPU threads for the runtime (default: its own choice)")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return seconds


def _count(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100000")
    return int(text)
