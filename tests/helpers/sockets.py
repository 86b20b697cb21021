"""Which sockets of a command's processes listen, by /proc."""

import ipaddress
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

LISTENING = "0A"  # TCP_LISTEN of Linux, in /proc/net/tcp


def listening_addresses(process: int) -> set[str]:
    """The addresses at which the process, or one that it has started, listens now."""
    inodes = {inode for pid in (process, *descendants(process)) for inode in sockets_of(pid)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == LISTENING and inode in inodes:
                found.add(address_of(local.partition(":")[0]))
    return found


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def address_of(words: str) -> str:
    """The address that the kernel writes as hexadecimal words of its own byte order."""
    packed = b"".join(struct.pack("=I", int(words[i : i + 8], 16)) for i in range(0, len(words), 8))
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process has started, and those that they have."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            started = task.read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        for child in map(int, started):
            yield child
            yield from descendants(child)


def sockets_of(pid: int) -> Iterator[str]:
    """The inodes of the sockets that a process has open."""
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = str(link.readlink())
        except (FileNotFoundError, ProcessLookupError):  # closed meanwhile
            continue
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            yield match[1]
