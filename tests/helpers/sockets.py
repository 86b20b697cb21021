"""Finds the addresses at which a command's processes listen, from /proc."""

import ipaddress
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

LISTENING = "0A"  # TCP_LISTEN in Linux's /proc/net/tcp


def listening_addresses(process: int) -> set[str]:
    """Returns the addresses at which the process or any of its descendants listens now."""
    inodes = {inode for pid in (process, *descendants(process)) for inode in socket_inodes(pid)}
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == LISTENING and inode in inodes:
                addresses.add(parse_address(local.partition(":")[0]))
    return addresses


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def parse_address(words: str) -> str:
    """Parses an address that the kernel writes as hexadecimal words in native byte order."""
    packed = b"".join(struct.pack("=I", int(words[i : i + 8], 16)) for i in range(0, len(words), 8))
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def descendants(pid: int) -> Iterator[int]:
    """Yields the ids of all descendants of a process."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # the process has just ended
            continue
        for child in map(int, children):
            yield child
            yield from descendants(child)


def socket_inodes(pid: int) -> Iterator[str]:
    """Yields the inodes of a process's open sockets."""
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = str(link.readlink())
        except (FileNotFoundError, ProcessLookupError):  # closed in the meantime
            continue
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            yield match[1]
