"""A port that is free on this machine, another for every seed: `python -m peftkit.slurm.port 123.0`."""

from __future__ import annotations

import random
import socket
import sys

RANGE = (20000, 32000)
"""Below what systems give to outgoing connections (from 32768), so that none of those takes it a moment later."""


def free_port(seed: str) -> int:
    """The first port that can be bound, in the order that the seed gives: jobs beside each other try others."""
    drawn = random.Random(seed)
    while True:
        port = drawn.randrange(*RANGE)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port


if __name__ == "__main__":
    sys.stdout.write(f"{free_port(sys.argv[1])}\n")
