"""Finds the addresses at which a command's processes listen."""

import contextlib
import ipaddress

import psutil


def listening_addresses(pid: int) -> set[str]:
    """Returns the addresses at which the process or any of its descendants listens now."""
    addresses: set[str] = set()
    # A process that has ended is gone, or refuses to be read until its parent has its exit code.
    ended = contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied)
    with ended:
        command = psutil.Process(pid)
        for process in (command, *command.children(recursive=True)):
            with ended:
                found = process.net_connections("tcp")
                addresses |= {entry.laddr.ip for entry in found if entry.status == psutil.CONN_LISTEN}
    return addresses


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
