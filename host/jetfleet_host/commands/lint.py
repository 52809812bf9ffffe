"""Command: lint."""

from __future__ import annotations

import json
from pathlib import Path

import typer

_MODEL = typer.Argument(..., metavar="MODEL.onnx", help="The quantized model.")
_LAST_OPSET = typer.Option(0, "--last-opset", min=0, help="Newest operator set that the target's parser reads (default: TensorRT 10.3's).")
_NOTES = typer.Option(True, "--notes/--no-notes", help="Show layers that int8 is unlikely to pay for.")
_JSON = typer.Option(False, "--json", help="Print JSON.")


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("lint")(lint)


def lint(model: Path = _MODEL, last_opset: int = _LAST_OPSET, notes: bool = _NOTES, as_json: bool = _JSON) -> None:
    """Check a model's Q/DQ nodes against TensorRT's rules, without a GPU: what it would refuse, what would not run in int8, and why.

    Ends with 1 when there is an error or a warning.

    Example:

        jetfleet lint model.int8.onnx
    """
    from jetfleet_host.compress.graphs import GraphView
    from jetfleet_host.compress.linting import LAST_OPSET, passes
    from jetfleet_host.compress.linting import lint as check
    from jetfleet_host.compress.loading import load_checked
    from jetfleet_host.compress.worth import judge_worth

    proto = load_checked(model)
    found = check(proto, last_opset=last_opset or LAST_OPSET)
    shown = tuple(finding for finding in found if notes or finding.level != "note")
    quantized = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    verdict = None if quantized else judge_worth(GraphView(proto))
    if as_json:
        levels = ("error", "warning", "note")
        print(json.dumps({
            "model": str(model), "quantized": quantized, "passes": passes(found), "worth": verdict.reason if verdict else "",
            "counts": {level: sum(finding.level == level for finding in found) for level in levels},
            "findings": [{name: getattr(finding, name) for name in finding.__struct_fields__} for finding in shown],
        }, indent=2))
    else:
        for finding in shown:
            remedy = finding.remedy[:1].upper() + finding.remedy[1:]
            print(f"{finding.level:<8} {finding.code:<22} {finding.node}: {finding.what}. {remedy}.")
        print(_summary(model, found, quantized))
        if verdict is not None:
            print(f"{verdict.reason[:1].upper()}{verdict.reason[1:]}.")
    if not passes(found):
        raise typer.Exit(1)


def _summary(model: Path, found: tuple, quantized: bool) -> str:  # type: ignore[type-arg]
    counts = ", ".join(f"{number} {level}{'s' if number != 1 else ''}" for level in ("error", "warning", "note")
                       if (number := sum(finding.level == level for finding in found)))
    if not quantized:
        return f"{model.name}: no QuantizeLinear in it{f'; {counts}' if counts else ''}."
    return f"{model.name}: {counts or 'nothing to say'}."
