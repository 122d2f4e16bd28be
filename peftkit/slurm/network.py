"""The network card that leads to an address: `python -m peftkit.slurm.network node1`.

gloo would take the one that this machine's own name stands for; on many machines that is the loopback, or there is none.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys

SIOCGIFADDR = 0x8915


def card_towards(host: str) -> str | None:
    """The card's name; None if the way there begins at no card with an IPv4 address."""
    mine = address_towards(host)
    return next((name for _, name in socket.if_nameindex() if address_of(name) == mine), None)


def address_towards(host: str) -> str:
    """This machine's own address as the other one sees it. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def address_of(card: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", card.encode()[:15]))
        except OSError:  # it has none
            return None
    return socket.inet_ntoa(answer[20:24])


if __name__ == "__main__":
    try:
        found = card_towards(sys.argv[1])
    except OSError:
        found = None
    if found is None:
        sys.exit(1)
    sys.stdout.write(f"{found}\n")
