"""Plain narration is what logs and machines read."""

from __future__ import annotations

import io

import pytest

from jetfleet_host.demo.narration import LiveNarration, PlainNarration


def test_a_step_says_when_it_begins_changes_and_ends() -> None:
    stream = io.StringIO()
    with PlainNarration(stream).step("Build") as advance:
        for text in ("read", "read", "score"):
            advance(0.5, text)
    lines = [line.split("] ", 1)[1] for line in stream.getvalue().splitlines()]
    assert lines[:3] == ["Build ...", "    read", "    score"]
    assert lines[3].startswith("Build: done")


def test_an_error_ends_the_step_and_goes_on() -> None:
    stream = io.StringIO()

    def failing() -> None:
        with PlainNarration(stream).step("Build"):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        failing()
    assert "Build: stopped" in stream.getvalue()


def test_bars_end_as_a_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    tell = LiveNarration()
    with tell.step("Build") as advance:
        advance(0.5, "half")
    tell.say("[not markup]")
    tell.close()
    out = capsys.readouterr().out
    assert "Build" in out
    assert "[not markup]" in out
