"""HOST:PORT, as settings, maps and options spell addresses."""

from __future__ import annotations

import ipaddress

PORT_MAX = 65_535


def split_address(address: str) -> tuple[str, int]:
    """("::1", 7400) of "[::1]:7400". Raises ValueError that says what is wrong."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or (":" in host and not host.startswith("[")):
        raise ValueError("must be HOST:PORT, an IPv6 address in brackets")
    if not port.isascii() or not port.isdigit() or int(port) > PORT_MAX:
        raise ValueError(f"the port must be a number from 0 to {PORT_MAX}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(address: str) -> bool:
    """True if nothing outside this machine can reach the address."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
