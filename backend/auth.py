"""Who asks, and from where. Local mode: no login, one synthetic owner, and only pages of our own may write.

A browser page anywhere on the web can reach a loopback address; the Host list stops rebinding, and Sec-Fetch-Site or
Origin stops foreign pages. Programs such as curl send neither and are served.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.datastructures import Headers

from backend.errors import BadRequest, Forbidden
from backend.models import LOCAL_OWNER
from backend.settings import Settings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"^(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?$")


def current_owner() -> str:
    """The owner of everything in a single-user installation; with accounts on this asks the session or the key."""
    return LOCAL_OWNER


def check_host(values: list[str], settings: Settings) -> None:
    """BadRequest unless there is exactly one Host header and it names this studio."""
    match = _HOST.fullmatch(values[0]) if len(values) == 1 else None
    allowed = _LOOPBACK | {settings.host.lower()} | {host.lower() for host in settings.allowed_hosts}
    if match is None or match["name"].lower() not in allowed:
        raise BadRequest(
            "This studio is not served under that host name. Add it to MOONGATE_ALLOWED_HOSTS if it should be.",
            code="bad-host",
        )


def check_origin(method: str, headers: Headers) -> None:
    """Forbidden when a foreign page tries to change something."""
    if method in SAFE_METHODS:
        return
    site, origin = headers.getlist("sec-fetch-site"), headers.getlist("origin")
    if site:
        own = site in (["same-origin"], ["none"])
    else:
        own = not origin or (
            len(origin) == 1
            and origin[0].lower() in {f"{s}://{headers['host'].lower()}" for s in ("http", "https")}
        )
    if not own:
        raise Forbidden("Only pages of this studio may do this.", code="foreign-origin")


def check_bind(settings: Settings) -> None:
    """ValueError when the studio would be open to the network without accounts (promise P20)."""
    if settings.insecure_public_bind or settings.host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(
            "MOONGATE_HOST is not a loopback address, and there are no accounts yet: everybody who reaches it could "
            "use the studio. Set MOONGATE_INSECURE_PUBLIC_BIND=true if that is what you want."
        )
