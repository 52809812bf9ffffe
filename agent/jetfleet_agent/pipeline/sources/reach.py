"""Why a network camera cannot be opened: name, connection and TLS tried one after the other, once a library has failed without a reason.

The camera's own answer (401, 404) needs no such try; this is for "input/output error". Nothing here sees user or password.
"""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit, urlunsplit

from jetfleet_contract.errors import SourceError

PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "http": 80, "https": 443}
SECURE = frozenset({"rtsps", "https"})
_NETWORK_REMEDY = "check that it is on, on this network, and serves at this address"


def redact(uri: str) -> str:
    """The URI without user, password, query and fragment: what may be logged. A GStreamer pipeline is left out wholly."""
    scheme = uri.partition(":")[0].lower()
    if scheme == "gst":
        return "gst:(pipeline)"
    if "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return scheme + "://(unreadable)"
    return urlunsplit((parts.scheme, host + port, parts.path, "", ""))


def unreachable(uri: str, timeout_s: float, trusted: str = "") -> SourceError | None:
    """What stands between this board and the camera; None when it can be connected to.

    Args:
        timeout_s: for the connection and for the TLS handshake, each. The system's resolver has time-outs of its own.
        trusted: file of certificates that the camera's must lead to; empty: any certificate will do.
    """
    shown = redact(uri)
    try:
        parts = urlsplit(uri)
        scheme = parts.scheme.lower()
        host, port = parts.hostname or "", parts.port or PORTS.get(scheme, 554)
    except ValueError:
        return SourceError("source.address", f"the camera's address {shown} cannot be read", where=shown,
                           remedy="write it as rtsp://user:password@host:port/path, with %40 for @ inside a password")
    try:
        connection = socket.create_connection((host, port), timeout=timeout_s)
    except socket.gaierror:
        return _error("source.dns", shown, "has a host name that cannot be resolved", "check the name, and this board's DNS server")
    except ConnectionRefusedError:
        return _error("source.refused", shown, "refuses the connection", _NETWORK_REMEDY)
    except TimeoutError:
        return _error("source.timeout", shown, f"does not answer within {timeout_s:.0f} s", _NETWORK_REMEDY)
    except (OSError, UnicodeError):
        return _error("source.unreachable", shown, "cannot be reached", _NETWORK_REMEDY)
    with connection:
        return _handshake(connection, host, shown, trusted) if scheme in SECURE else None


def _handshake(connection: socket.socket, host: str, shown: str, trusted: str) -> SourceError | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = bool(trusted)
    context.verify_mode = ssl.CERT_REQUIRED if trusted else ssl.CERT_NONE
    try:
        if trusted:
            context.load_verify_locations(trusted)
        context.wrap_socket(connection, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return _error("source.tls", shown, f"shows a certificate that is not trusted ({error.verify_message})",
                      "put the certificate that signed it into the file that #ca= names")
    except FileNotFoundError:
        return _error("source.tls", shown, "has no file of trusted certificates on this board", "check the path behind #ca=")
    except TimeoutError:
        return _error("source.timeout", shown, "accepts the connection and then says nothing", _NETWORK_REMEDY)
    except (ssl.SSLError, OSError):
        return _error("source.tls", shown, "does not speak TLS there", "check the port, or use rtsp:// when the camera has no TLS")
    return None


def _error(code: str, shown: str, what: str, remedy: str) -> SourceError:
    return SourceError(code, f"the camera {shown} {what}", where=shown, remedy=remedy)
