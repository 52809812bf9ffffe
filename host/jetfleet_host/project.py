"""A project folder: config, keys, metadata and blobs of one fleet.

    jetfleet.toml        settings; an unknown key is an error
    keys/                private keys, mode 0600
    repo/                TUF metadata
    blobs/<hex>          every published blob, and the pages of their chunk tables
    device/root.json     what boards pin
    uploads/<device>/    what boards gave: logs, engines
    harvest/             pictures of what boards were not sure of
    jetfleet.db          the fleet's database, made by `serve`
"""

from __future__ import annotations

import secrets
import shutil
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from jetfleet_contract.broker_limits import MAX_PACKET_BYTES, MIN_PACKET_BYTES, PROFILES, BrokerLimits, configured
from jetfleet_contract.budgets import check_hours
from jetfleet_contract.chunks import CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES
from jetfleet_contract.errors import InputError, StorageError
from jetfleet_contract.topics import check_blob
from jetfleet_contract.unknown_keys import refuse_unknown
from jetfleet_contract.uploads import Bounds, Kind
from jetfleet_host.durable import sweep_partials, sync_folder, write_file
from jetfleet_host.keys import KeyFolder
from jetfleet_host.repository import Repository, check_threshold

CONFIG = "jetfleet.toml"
MAX_CONFIG_BYTES = 64 * 1024
EMBEDDED_PORT = 18_830


class BrokerSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the broker is. `embedded`: `serve` starts its own on loopback at `port` (0: any free one). `profile` names a known broker, for
    its limits; `max_packet_bytes`, `max_qos` and `max_topic_levels` are said here where the broker does not say them itself."""

    embedded: bool = True
    host: Annotated[str, Meta(min_length=1, max_length=253)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = EMBEDDED_PORT
    username: str = ""
    password_file: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    profile: Annotated[str, Meta(max_length=40)] = ""
    max_packet_bytes: Annotated[int, Meta(ge=MIN_PACKET_BYTES, le=MAX_PACKET_BYTES)] | None = None
    max_qos: Annotated[int, Meta(ge=0, le=2)] = 2
    max_topic_levels: Annotated[int, Meta(ge=1, le=65_535)] | None = None

    @property
    def limits(self) -> BrokerLimits:
        """What is known of the broker before it speaks. InputError `broker.profile`."""
        profile = self.profile or ("embedded" if self.embedded else "")
        return configured(profile, max_packet_bytes=self.max_packet_bytes or 0, max_qos=self.max_qos,
                          max_topic_levels=self.max_topic_levels or 0)


class DatabaseSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SQLAlchemy's address of the fleet database; empty means ``jetfleet.db`` in the project folder."""

    url: str = ""


class DeliverySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of the distributor: `rate_mbit_s` paces it (0: as fast as the broker takes it). `chunk_kb` (KiB) is how blobs are cut when
    they are published: less where the broker takes no messages of 64 KiB. `mb_per_day` (10^6 bytes, 0: no bound) and `hours` (UTC,
    [FROM, TO); none: always) bound what the whole host publishes."""

    rate_mbit_s: Annotated[float, Meta(ge=0, le=100_000)] = 0.0
    mb_per_day: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    hours: tuple[tuple[int, int], ...] = ()
    chunk_kb: Annotated[int, Meta(ge=MIN_CHUNK_BYTES // 1024, le=MAX_CHUNK_BYTES // 1024)] = CHUNK_BYTES // 1024


class UploadsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What boards may give: MB a blob by kind (0: none of this kind), MB a board in 24 hours, and the kinds that may come `unasked`."""

    logs_mb: Annotated[int, Meta(ge=0, le=100_000)] = 16
    snapshot_mb: Annotated[int, Meta(ge=0, le=100_000)] = 64
    harvest_mb: Annotated[int, Meta(ge=0, le=100_000)] = 512
    engine_mb: Annotated[int, Meta(ge=0, le=100_000)] = 2048
    bench_mb: Annotated[int, Meta(ge=0, le=100_000)] = 1
    device_mb_per_day: Annotated[int, Meta(ge=0, le=10_000_000)] = 8192
    unasked: tuple[Kind, ...] = ()

    @property
    def bounds(self) -> Bounds:
        most = {"logs": self.logs_mb, "snapshot": self.snapshot_mb, "harvest": self.harvest_mb, "engine": self.engine_mb,
                "bench": self.bench_mb}
        return Bounds({kind: mb << 20 for kind, mb in most.items()}, self.device_mb_per_day << 20, self.unasked)


class HarvestSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Crops of what boards are not sure of: so many a minute from one board, so many waiting for the model, its `threads` (0: the runtime
    decides), and how many MB of the hard-example set are kept (the oldest go)."""

    crops_per_minute: Annotated[int, Meta(ge=1, le=100_000)] = 240
    waiting: Annotated[int, Meta(ge=1, le=10_000)] = 64
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    keep_mb: Annotated[int, Meta(ge=0, le=10_000_000)] = 2048


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The checked content of jetfleet.toml."""

    broker: BrokerSection = BrokerSection()
    database: DatabaseSection = DatabaseSection()
    delivery: DeliverySection = DeliverySection()
    uploads: UploadsSection = UploadsSection()
    harvest: HarvestSection = HarvestSection()


class BlobFolder:
    """Published blobs by digest. Implements the distributor's `BlobSource`; names are checked before they become paths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, blob: str) -> Path:
        return self.folder / check_blob(blob)

    def size(self, blob: str) -> int | None:
        """Bytes of the blob, None when it is not here."""
        try:
            return self.path(blob).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, blob: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`. StorageError `blob.unreadable`."""
        try:
            with self.path(blob).open("rb") as stream:
                stream.seek(offset)
                return stream.read(length)
        except OSError as error:
            raise StorageError("blob.unreadable", f"blob {blob[:16]} cannot be read: {error.strerror}", where=str(self.folder),
                               remedy="publish the bundle again") from None


class Project:
    """One project folder, open."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.dir = folder
        self.settings = settings
        self.keys_dir = folder / "keys"
        self.repo_dir = folder / "repo"
        self.keys = KeyFolder(self.keys_dir)
        self.repository = Repository(self.repo_dir, self.keys)
        self.blobs = BlobFolder(folder / "blobs")

    @property
    def database_url(self) -> str:
        return self.settings.database.url or f"sqlite:///{self.dir / 'jetfleet.db'}"

    @property
    def root_file(self) -> Path:
        """The root metadata that boards pin."""
        return self.dir / "device" / "root.json"

    @classmethod
    def load(cls, folder: Path) -> Project:
        """Open a project folder.

        Raises:
            InputError: `project.not-found`, `config.syntax`, `config.unknown`, `config.value`.
        """
        folder = folder.absolute()
        path = folder / CONFIG
        if not path.is_file():
            raise InputError("project.not-found", f"{folder} is no project folder: it has no {CONFIG}", where=str(folder),
                             remedy=f"make one with: jetfleet init {folder}")
        return cls(folder, read_settings(path))

    @classmethod
    def init(cls, folder: Path, *, broker: str = "embedded", root_keys: int = 1, root_threshold: int = 1) -> Project:
        """Make a project folder: keys, first metadata, config. Whole or not at all; jetfleet.toml comes last.

        Args:
            broker: ``embedded``, ``embedded:PORT`` or ``HOST:PORT``.
            root_keys, root_threshold: how many root keys are made, and how many have to sign a new root.

        Raises:
            InputError: `project.exists`, `project.not-empty`, `config.broker`, `keys.threshold`. StorageError.
        """
        section = parse_broker(broker)
        check_threshold(root_keys, root_threshold)
        folder = folder.absolute()
        if (folder / CONFIG).exists():
            raise InputError("project.exists", f"{folder} is a project already", where=str(folder), remedy="use it, or give another folder")
        if folder.exists() and (not folder.is_dir() or any(p for p in folder.iterdir() if not p.name.startswith(".init-"))):
            raise InputError("project.not-empty", f"{folder} is not an empty folder", where=str(folder), remedy="give a new folder")
        try:
            return cls._make(folder, section, root_keys, root_threshold)
        except OSError as error:
            raise StorageError("store.write", f"cannot make the project: {error.strerror or error}", where=str(error.filename or folder),
                               remedy="check free space and permissions of the folder") from None

    @classmethod
    def _make(cls, folder: Path, section: BrokerSection, root_keys: int, root_threshold: int) -> Project:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".init-*"):
            shutil.rmtree(leftover)
        partial = folder / f".init-{secrets.token_hex(4)}"
        (partial / "blobs").mkdir(parents=True)
        (partial / "device").mkdir()
        made = cls(partial, Settings(broker=section))
        made.repository.create(root_keys, root_threshold)
        write_file(made.root_file, (made.repo_dir / "1.root.json").read_bytes())
        for name in ("keys", "repo", "blobs", "device"):
            sync_folder(partial / name)
            (partial / name).rename(folder / name)
        partial.rmdir()
        write_file(folder / CONFIG, _config_text(section).encode())
        return cls.load(folder)

    def rotate(self, role: str) -> str:
        """Replace the keys of a role; new boards pin the new root. Returns the (first) new public key in hex."""
        public = self.repository.rotate(role)
        self.pin_newest_root()
        return public

    def pin_newest_root(self) -> None:
        """What new boards pin is the root in force."""
        newest = self.repository.load().root.signed.version
        sweep_partials(self.root_file.parent)
        write_file(self.root_file, (self.repo_dir / f"{newest}.root.json").read_bytes())


def parse_broker(text: str) -> BrokerSection:
    """``embedded``, ``embedded:PORT`` or ``HOST:PORT`` (an IPv6 address in brackets). InputError `config.broker`."""
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
    remedy = "give embedded, embedded:PORT or HOST:PORT"
    if text == "embedded":
        return BrokerSection()
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536) or not host.strip("[]") or any(c in host for c in " /@"):
        raise InputError("config.broker", f"{text[:80]!r} is no broker", where="--broker", remedy=remedy)
    return BrokerSection(embedded=host == "embedded", host="127.0.0.1" if host == "embedded" else host.strip("[]"), port=int(port))


def read_settings(path: Path) -> Settings:
    """Read and check jetfleet.toml; paths in [broker] are relative to it."""
    try:
        data = path.read_bytes()
        if len(data) > MAX_CONFIG_BYTES:
            raise InputError("config.syntax", f"{path} is over the limit of {MAX_CONFIG_BYTES} bytes", where=str(path))
        table = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError("config.syntax", f"{path.name} cannot be read: {error}", where=str(path),
                         remedy="see `jetfleet init --help`") from None
    refuse_unknown(table, Settings, "config.unknown", path.name, str(path))
    try:
        settings = msgspec.convert(table, Settings)
    except msgspec.ValidationError as error:
        raise InputError("config.value", f"a value in {path.name} is wrong: {error}", where=str(path),
                         remedy="correct the value at the place named after the '$'") from None
    check_hours(settings.delivery.hours, f"{path.name}: delivery.hours")
    _ = settings.broker.limits  # an unknown profile is an error here, not at the first connection
    return msgspec.structs.replace(settings, broker=_resolved(settings.broker, path.parent))


def _resolved(broker: BrokerSection, folder: Path) -> BrokerSection:
    named = {name: getattr(broker, name) for name in ("password_file", "ca", "cert", "key")}
    for name, value in named.items():
        if value and not (folder / value).is_file():
            raise InputError("config.value", f"broker.{name} names {value}, which is no file", where=str(folder / CONFIG),
                             remedy="give the path of a file, relative to the project folder or absolute")
    return msgspec.structs.replace(broker, **{name: str(folder / value) if value else "" for name, value in named.items()})


def _config_text(broker: BrokerSection) -> str:
    where = f'embedded = {str(broker.embedded).lower()}\nhost = {broker.host!r}\nport = {broker.port}\n'
    return f"""# A jetfleet project. Private keys are in keys/: keep a copy of them off this machine.

[broker]
# embedded = true: `jetfleet serve` starts a broker on this machine, reachable from this machine only.
{where}# username = "jetfleet"
# password_file = "broker.password"
# ca = "ca.pem"            # set: TLS
# cert = "host.pem"        # set with key: mutual TLS
# key = "host.key"
# profile = "aws-iot-core"   # limits of a known broker: {", ".join(sorted(PROFILES))}
# max_packet_bytes = 65536   # or by hand; what the broker says itself counts besides
# max_qos = 1
# max_topic_levels = 8

[database]
# url = "postgresql+psycopg://jetfleet@db/jetfleet"    # default: jetfleet.db in this folder

[delivery]
# rate_mbit_s = 200        # 0: as fast as the broker takes it
# mb_per_day = 5000        # what the host publishes in a UTC day at the most; 0: no bound
# hours = [[22, 6]]        # UTC hours in which it publishes; none: always
# chunk_kb = 64            # KiB a message when a model is published; a broker's packet limit may want less

[uploads]
# logs_mb = 16             # the largest blob of each kind that boards may give; 0: none
# snapshot_mb = 64
# harvest_mb = 512
# engine_mb = 2048
# bench_mb = 1
# device_mb_per_day = 8192
# unasked = ["engine"]     # kinds that may come without a command

[harvest]                  # pictures of what boards are not sure of; an app's privacy policy has to allow them first
# crops_per_minute = 240   # from one board
# waiting = 64             # for the model that answers
# threads = 0              # of that model; 0: the runtime decides
# keep_mb = 2048           # of the hard-example set; the oldest go
"""
