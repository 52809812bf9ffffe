"""docs/attacks.md is held to the truth: no attack of the list is missing, every test exists, every code is asked for and raised."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIST = (
    "arbitrary software", "rollback", "fast-forward", "freeze", "endless data", "slow retrieval", "mix-and-match", "wrong class",
    "wrong software", "key compromise", "key rotation", "forged chunks", "duplicated chunks", "oversized chunks", "wants that amplify",
    "hostile retained messages", "forged commands", "forged reply topics", "replayed deployments", "same seq with another body",
    "path traversal", "decompression bombs", "cloned client id", "client without a certificate",
)
ROW = re.compile(r"\| (?P<attack>[^|]+) \| (?P<path>tests/[\w/]+\.py)::(?P<test>\w+) \| (?P<codes>[^|]*)\|")


def rows() -> list[tuple[str, str, str, tuple[str, ...]]]:
    found = []
    for line in (ROOT / "docs" / "attacks.md").read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| attack "):
            row = ROW.fullmatch(line)
            assert row is not None, f"not a row of attack, test and codes: {line}"
            found.append((row["attack"], row["path"], row["test"], tuple(re.findall(r"`([^`]+)`", row["codes"]))))
    return found


@cache
def sources_of(path: str) -> dict[str, str]:
    """The source of each test of a file by its name, its decorators included."""
    text = (ROOT / path).read_text()
    lines = text.splitlines()
    return {node.name: "\n".join(lines[min((d.lineno for d in node.decorator_list), default=node.lineno) - 1 : node.end_lineno])
            for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@cache
def product() -> str:
    return "\n".join(path.read_text() for folder in ("agent", "host") for path in (ROOT / folder).rglob("*.py"))


def test_no_attack_of_the_list_is_missing() -> None:
    staged = [attack for attack, *_ in rows()]
    assert [name for name in LIST if not any(attack.startswith(name) for attack in staged)] == []
    assert len(staged) == len(set(staged))


@pytest.mark.parametrize(("attack", "path", "test", "codes"), rows(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_row_is_true(attack: str, path: str, test: str, codes: tuple[str, ...]) -> None:
    source = sources_of(path).get(test)
    assert source is not None, f"{attack}: {path} has no {test}"
    for code in codes:
        assert f'"{code}"' in source, f"{attack}: {test} does not ask for {code}"
        assert f'"{code}"' in product(), f"{attack}: nothing raises {code}"
