"""Which sinks an app may have: what the host refuses before it signs, and what a board leaves out, so that the others still run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from .app_config import JsonlSink, PreviewSink, SinkSpec, WebhookSink
from .errors import InputError
from .topics import check_name, is_name

SECRET = "secret:"  # noqa: S105  the mark of a name, no secret
MIN_TOKEN = 16
MAX_TOKEN = 80
MAX_SINKS = 8
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def sink_name(spec: SinkSpec, index: int = 0) -> str:
    """What a sink is called in counters and logs: its kind, and what tells it from another of that kind. Never its address."""
    if isinstance(spec, JsonlSink):
        return f"jsonl-{spec.name}" if is_name(spec.name) else "jsonl"
    if isinstance(spec, WebhookSink):
        return f"webhook-{index}"
    return "preview" if isinstance(spec, PreviewSink) else "socket"


def check_sink(spec: SinkSpec) -> None:
    """One sink by itself, as it stands in a deployment.

    Raises:
        MalformedError: `name.bad`. InputError: `webhook.url`, `webhook.secret`, `preview.token`.
    """
    if isinstance(spec, JsonlSink):
        check_name("result file", spec.name)
    elif isinstance(spec, WebhookSink):
        _check_address(spec.url)
    elif isinstance(spec, PreviewSink) and spec.token:
        if not spec.token.startswith(SECRET):
            raise InputError("preview.token", "a preview's token stands open in the settings, which the broker can read",
                             remedy="write secret:NAME, and seal the token to the board: jetfleet device secret set DEVICE NAME")
        check_name("secret", spec.token.removeprefix(SECRET))


def check_sinks(specs: Sequence[SinkSpec]) -> None:
    """All sinks of an app together.

    Raises:
        InputError: as `check_sink`, and `sink.many`, `sink.twice`. MalformedError: `name.bad`.
    """
    if len(specs) > MAX_SINKS:
        raise InputError("sink.many", f"{len(specs)} sinks are over the limit of {MAX_SINKS}")
    for spec in specs:
        check_sink(spec)
    places = [_place(spec) for spec in specs]
    if len(set(places)) != len(places):
        raise InputError("sink.twice", "two sinks have the same file, address or socket", remedy="name each once; an app has one preview")


def without_doubles(specs: Sequence[SinkSpec]) -> tuple[SinkSpec, ...]:
    """The first sink of each place, at most `MAX_SINKS`: what a board runs of settings that no host of ours has checked."""
    found: dict[tuple[str, str], SinkSpec] = {}
    for spec in specs:
        found.setdefault(_place(spec), spec)
    return tuple(found.values())[:MAX_SINKS]


def _place(spec: SinkSpec) -> tuple[str, str]:
    kind = type(spec).__name__
    return kind, spec.name if isinstance(spec, JsonlSink) else spec.url if isinstance(spec, WebhookSink) else ""


def _check_address(url: str) -> None:
    """An address that travels in a deployment is seen by the broker: it holds no password and no query."""
    if url.startswith(SECRET):
        check_name("secret", url.removeprefix(SECRET))
        return
    if not is_http(url):
        raise InputError("webhook.url", "a webhook's address is not http:// or https:// with a host",
                         remedy="https://host/path, or secret:NAME")
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise InputError("webhook.secret", "a webhook's address carries a password or a query, which the broker can read",
                         remedy="write secret:NAME, and seal the whole address to the board: jetfleet device secret set DEVICE NAME")


def is_http(url: str) -> bool:
    """Whether this can be asked with HTTP at all."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0 and url.isprintable() and " " not in url
    except ValueError:
        return False


def check_preview(spec: PreviewSink, purposes: Sequence[str], address: str) -> str:
    """Where a preview may listen, its token being opened already: on the loopback, or on the board's `address` for previews.

    Raises:
        InputError: `preview.token` (not opened, too short or too long), `preview.privacy`.
    """
    if not spec.token:
        return LOOPBACK[0]
    if spec.token.startswith(SECRET) or not MIN_TOKEN <= len(spec.token) <= MAX_TOKEN:
        raise InputError("preview.token", f"the preview's token is not known here, or has not {MIN_TOKEN} to {MAX_TOKEN} characters",
                         remedy="jetfleet device secret set DEVICE NAME, then roll out again")
    if address not in LOOPBACK and "preview" not in purposes:
        raise InputError("preview.privacy", "pixels would leave the board, and the app's privacy policy does not allow it",
                         remedy='set privacy = { purposes = ["preview"] } for the app, or preview_address = "127.0.0.1" on the board')
    return address


def file_limits(spec: JsonlSink, local_mb: int) -> tuple[int, int]:
    """Bytes of one file and how many are kept, the open one included: what is asked, within `local_mb` of the board in all."""
    size = min(spec.max_mb, max(1, local_mb // 2))
    return size << 20, max(1, min(spec.keep, local_mb // size))
