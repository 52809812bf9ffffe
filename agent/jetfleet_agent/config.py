"""The agent's own config file: who this board is, where its broker and cameras are, how much it may use.

One TOML file, read once at start. Every key has a type and a bound; an unknown key is an error that names the nearest
valid one, because a mistyped limit that is silently ignored is worse than no start. Relative paths are relative to the
file. Camera addresses may hold credentials: they stay on the board and are never printed.
"""

from __future__ import annotations

import difflib
import ipaddress
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from jetfleet_contract.app_config import Governor
from jetfleet_contract.broker_limits import MAX_PACKET_BYTES, MIN_PACKET_BYTES, BrokerLimits, configured
from jetfleet_contract.errors import InputError, MalformedError
from jetfleet_contract.topics import check_name

from .external.settings import ExternalApp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CONFIG_BYTES = 64 * 1024
MAX_SOURCES = 64

EXAMPLE = """\
# jetfleet agent. Every key is optional but device, root and [broker] host.
device = "gate-7"                     # a-z 0-9 . _ -; unique in the fleet
state_dir = "/var/lib/jetfleet"       # models, trust, journal
root = "/etc/jetfleet/root.json"      # from `jetfleet init`: DIR/device/root.json
board = "auto"                        # or a name that `jetfleet-agent probe --boards` lists
simulate = false                      # true: put the board file over this machine (laptops)
threads = 0                           # CPU threads a model may use; 0: the runtime decides
memory_mb = 0                         # budget of one model's process; 0: none
window_s = 10.0                       # telemetry window
stuck_s = 30.0                        # a camera, model or sink that is in one call for so long is taken for hung

[broker]
host = "broker.example.org"
port = 8883
username = ""
password_file = ""
ca = "/etc/jetfleet/ca.pem"           # set: TLS
cert = ""                             # set with key: mutual TLS
key = ""
keepalive_s = 30
profile = ""                          # limits of a known broker: "aws-iot-core", "emqx", "mosquitto", "thingsboard" ...
# max_packet_bytes = 65536            # or by hand, where the broker does not say it itself
max_qos = 2
# max_topic_levels = 8

[local_sources]                       # what `local:NAME` in a deployment means on this board
front = "/dev/video0"

[upload]                              # what the board gives to the host: logs, engines
rate_kbit_s = 8000                    # 0: as fast as the broker takes it
pending_mb = 1024                     # what may wait on this board
pending = 32
keep_h = 168.0                        # after that it is dropped

[mirror]                              # a web server with the project's blobs: the second transport
url = ""                              # set: https://mirror.example.org/blobs
mode = "fallback"                     # when MQTT is silent; "prefer": first; "only": never blobs over MQTT
ca = ""                               # the server's CA; empty: the system's
cert = ""                             # set with key: mutual TLS
key = ""
min_kbit_s = 64.0                     # slower over 10 s is as bad as nothing

[results]                             # where apps' sinks may write and listen on this board
folder = ""                           # result files; empty: results/ in the state folder
max_mb = 1024                         # of one sink's files together, whatever a deployment asks
sockets = ""                          # result sockets APP.sock; empty: with the agent's own. /run/jetfleet-results: for other users
preview_address = "127.0.0.1"         # where previews with a token listen, for example "0.0.0.0"; those without one: always here
webhook_ca = ""                       # the CA of webhooks' servers; empty: the system's

# [external.counter]                  # an app that an existing program runs (runner = "exec"); see docs/external.md
# folder = "/var/lib/jetfleet/external/counter"
# prepare = ["/opt/counter/build-engine"]         # run once a release, with JETFLEET_MODEL and the like in its environment
# switch = ["systemctl", "restart", "counter"]    # make the program use `current`; or let the agent start it: program = [...]

[clock]                               # a board without a battery-backed clock starts in the past
policy = "floor"                      # judge expiry by the newest signed time seen; "strict": nothing new until a time service has set it

[governor]                            # for every app whose own settings have none
enabled = false
margin_c = 8.0                        # begin to give way so many degrees below the board's throttling point
least_fps = 1.0                       # never read a source less often

[metrics]                             # Prometheus text at http://ADDRESS:PORT/metrics
port = 0                              # 0: off
address = "127.0.0.1"

[measure]                             # how candidates are measured before the choice
runs = 30
warmup = 5
timeout_s = 120.0
nice = 10                             # 10: running models keep their cores; 0: truer figures on a busy machine
tune_s = 6.0                          # then settings of the chosen one's runtime are measured so long; 0: its defaults stay
settle_s = 60.0                       # so long must another power mode, or other clocks, stand before models are chosen anew
"""


class BrokerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the broker is. `ca` set means TLS; `cert` and `key` mean mutual TLS. The password is read from a file. `profile` names a known
    broker, for its limits; the three others say them where the broker does not."""

    host: Annotated[str, Meta(min_length=1, max_length=253)]
    port: Annotated[int, Meta(ge=1, le=65535)] = 1883
    username: Annotated[str, Meta(max_length=256)] = ""
    password_file: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    profile: Annotated[str, Meta(max_length=40)] = ""
    max_packet_bytes: Annotated[int, Meta(ge=MIN_PACKET_BYTES, le=MAX_PACKET_BYTES)] | None = None
    max_qos: Annotated[int, Meta(ge=0, le=2)] = 2
    max_topic_levels: Annotated[int, Meta(ge=1, le=65535)] | None = None

    @property
    def limits(self) -> BrokerLimits:
        """What is known of the broker before it speaks. InputError `broker.profile`."""
        return configured(self.profile, max_packet_bytes=self.max_packet_bytes or 0, max_qos=self.max_qos,
                          max_topic_levels=self.max_topic_levels or 0)


class MeasureConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How candidates are measured. `lock` is a file that several agents on one machine share, so that they take turns.

    `nice` is a measurement's priority: at 10 the running models keep their cores; 0 measures truer on a busy machine. `tune_s`: seconds for
    measuring settings of the chosen candidate's runtime; 0: its defaults stay. `settle_s`: how long another power mode, or other clocks,
    must stand before models are chosen anew.
    """

    runs: Annotated[int, Meta(ge=3, le=1000)] = 30
    warmup: Annotated[int, Meta(ge=1, le=100)] = 5
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 120.0
    images: Annotated[int, Meta(ge=1, le=64)] = 1
    nice: Annotated[int, Meta(ge=0, le=19)] = 10
    tune_s: Annotated[float, Meta(ge=0, le=600)] = 6.0
    lock: str = ""
    settle_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0


class UploadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of what the board gives to the host: kbit/s on the link (0: as fast as the broker takes it), how many uploads and how many MB
    may wait on this board, and for how many hours."""

    rate_kbit_s: Annotated[float, Meta(ge=0, le=10_000_000)] = 8000.0
    pending_mb: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024
    pending: Annotated[int, Meta(ge=1, le=1000)] = 32
    keep_h: Annotated[float, Meta(gt=0, le=10_000)] = 168.0


class MirrorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A web server that has the project's blobs, as `jetfleet mirror` or any server with ranges. Every chunk is checked against the signed
    table, so it need not be trusted. `url` empty: none. `min_kbit_s`: slower than that over 10 s is as bad as nothing."""

    url: Annotated[str, Meta(max_length=2000)] = ""
    mode: Literal["fallback", "prefer", "only"] = "fallback"
    ca: str = ""
    cert: str = ""
    key: str = ""
    min_kbit_s: Annotated[float, Meta(ge=0, le=1_000_000)] = 64.0


class ResultsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the sinks of apps may write and listen, and how much: a deployment names a file or a port, this board says where. Empty folders
    are those beside the agent's own."""

    folder: str = ""
    max_mb: Annotated[int, Meta(ge=2, le=10_000_000)] = 1024
    sockets: str = ""
    preview_address: Annotated[str, Meta(max_length=45)] = "127.0.0.1"
    webhook_ca: str = ""


class ClockConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What counts as now while no time service keeps the clock; see `supervisor.trust`."""

    policy: Literal["floor", "strict"] = "floor"


class GovernorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How apps give way to heat whose own settings do not say it; see `jetfleet_contract.app_config.Governor`."""

    enabled: bool = False
    margin_c: Annotated[float, Meta(ge=0.0, le=60.0)] = 8.0
    least_fps: Annotated[float, Meta(gt=0.0, le=1000.0)] = 1.0

    @property
    def rule(self) -> Governor | None:
        return Governor(least_fps=self.least_fps, margin_c=self.margin_c) if self.enabled else None


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where this board's metrics may be scraped; `port` 0: nowhere. They name apps, versions and sources, and hold no secret."""

    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    address: Annotated[str, Meta(min_length=1, max_length=45)] = "127.0.0.1"


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The checked config. `threads` and `memory_mb` 0 mean no limit; `window_s` is the telemetry window in seconds. `stuck_s`: a part of a
    pipeline that has been in one call for so many seconds is taken for hung."""

    device: str
    root: Path
    broker: BrokerConfig
    state_dir: Path = Path("/var/lib/jetfleet")
    board: str = "auto"
    simulate: bool = False
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    memory_mb: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    window_s: Annotated[float, Meta(ge=0.2, le=3600)] = 10.0
    stuck_s: Annotated[float, Meta(ge=1.0, le=3600)] = 30.0
    local_sources: dict[str, str] = {}
    measure: MeasureConfig = MeasureConfig()
    upload: UploadConfig = UploadConfig()
    mirror: MirrorConfig = MirrorConfig()
    clock: ClockConfig = ClockConfig()
    results: ResultsConfig = ResultsConfig()
    governor: GovernorConfig = GovernorConfig()
    metrics: MetricsConfig = MetricsConfig()
    external: dict[str, ExternalApp] = {}


def load(path: Path) -> AgentConfig:
    """Read and check a config file.

    Raises:
        InputError: `config.missing`, `config.syntax`, `config.unknown`, `config.bad` or `config.root`; each names the file,
            the key and what to do.
    """
    config = parse(_read(path), path)
    for what, file in (("password file", config.broker.password_file), ("CA certificate", config.broker.ca),
                       ("client certificate", config.broker.cert), ("client key", config.broker.key)):
        if file and not Path(file).is_file():
            raise InputError("config.missing-file", f"the broker's {what} {file} does not exist", where=str(path),
                             remedy="copy it to that place, or correct the path in [broker]")
    for key in ("ca", "cert", "key"):
        file = getattr(config.mirror, key)
        if file and not Path(file).is_file():
            raise InputError("config.missing-file", f"the mirror's {key} {file} does not exist", where=str(path),
                             remedy="copy it to that place, or correct the path in [mirror]")
    if config.results.webhook_ca and not Path(config.results.webhook_ca).is_file():
        raise InputError("config.missing-file", f"the CA of webhooks {config.results.webhook_ca} does not exist", where=str(path),
                         remedy="copy it to that place, or correct the path in [results]")
    if not config.root.is_file():
        raise InputError("config.root", f"the pinned root metadata {config.root} does not exist", where=f"{path}, key root",
                         remedy="copy device/root.json from the host's project folder (`jetfleet init` makes it) to that place")
    return config


def parse(text: str, path: Path) -> AgentConfig:
    """Check a config's text; `path` is for errors and relative paths. Nothing on disk is looked at."""
    try:
        mapping = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError("config.syntax", f"the config is not TOML: {error}", where=str(path)) from None
    _refuse_unknown(mapping, AgentConfig, "", path)
    try:
        config = msgspec.convert(mapping, AgentConfig, dec_hook=_to_path)
        check_name("device", config.device)
        for name in config.local_sources:
            check_name("local source", name)
        for name in config.external:
            check_name("external app", name)
        _ = config.broker.limits
        _check_mirror(config.mirror.url)
        _check_listening(config.results.preview_address)
    except (msgspec.ValidationError, MalformedError) as error:
        what = error.what if isinstance(error, MalformedError) else str(error)
        raise InputError("config.bad", f"a value does not fit: {what}", where=str(path),
                         remedy="`jetfleet-agent run --example` prints a config with every key") from None
    if len(config.local_sources) > MAX_SOURCES:
        raise InputError("config.bad", f"{len(config.local_sources)} local sources are over the limit of {MAX_SOURCES}", where=str(path))
    return _absolute(config, path.resolve().parent)


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError("config.missing", f"the config {path} cannot be read: {error.strerror}",
                         remedy="`jetfleet-agent run --example > agent.toml` writes one to begin with") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise InputError("config.bad", f"the config has {len(data)} bytes, the limit is {MAX_CONFIG_BYTES}", where=str(path))
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError("config.syntax", "the config is not UTF-8 text", where=str(path)) from None


def _refuse_unknown(mapping: Mapping[str, Any], kind: type[msgspec.Struct], table: str, path: Path) -> None:
    known = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in mapping.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {table}{near[0]}?" if near else f"valid keys: {', '.join(table + name for name in known)}"
            raise InputError("config.unknown", f"unknown key {table + key!r}", where=str(path), remedy=hint)
        inner = known[key]
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and isinstance(value, Mapping):
            _refuse_unknown(value, inner, f"{table}{key}.", path)


def _check_mirror(url: str) -> None:
    """MalformedError `mirror.url` unless it is empty, or http or https with a host and without credentials, which would reach logs."""
    if not url:
        return
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0 and not (parts.query or parts.fragment)
    except ValueError:
        good = False
    if not good or "@" in url or not url.isprintable() or " " in url:
        raise MalformedError("mirror.url", "mirror.url must be http:// or https:// with a host, without user, password or query")


def _check_listening(address: str) -> None:
    """MalformedError `results.address` unless it is an IP address: a name could come to mean another interface."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise MalformedError("results.address", "results.preview_address must be an IP address, as 127.0.0.1, 0.0.0.0 or ::") from None


def _to_path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError(f"expected a path in quotes, got {value!r}")


def _absolute(config: AgentConfig, folder: Path) -> AgentConfig:
    def resolved(name: str) -> str:
        return str(folder / name) if name else ""

    broker = msgspec.structs.replace(config.broker, password_file=resolved(config.broker.password_file), ca=resolved(config.broker.ca),
                                     cert=resolved(config.broker.cert), key=resolved(config.broker.key))
    mirror = msgspec.structs.replace(config.mirror, ca=resolved(config.mirror.ca), cert=resolved(config.mirror.cert),
                                     key=resolved(config.mirror.key))
    results = msgspec.structs.replace(config.results, folder=resolved(config.results.folder), sockets=resolved(config.results.sockets),
                                      webhook_ca=resolved(config.results.webhook_ca))
    external = {name: app.under(folder) for name, app in config.external.items()}
    measure = msgspec.structs.replace(config.measure, lock=resolved(config.measure.lock))
    return msgspec.structs.replace(config, broker=broker, mirror=mirror, results=results, external=external, measure=measure,
                                   root=folder / config.root, state_dir=folder / config.state_dir)
