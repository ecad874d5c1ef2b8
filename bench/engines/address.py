"""Whether Ray is installed, and whether one answers at an address."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys

from conformance.discovery import UsageError

PATIENCE = 30.0  # seconds


def check_ray(address: str | None) -> None:
    """Ask before ``ray.init`` does, which waits for many minutes where no Ray is.

    Raises:
        UsageError: Ray is not installed, or there is none at the address.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray: Ray is not installed: pip install 'lora-conformance[ray]'")
    if address is None:
        return
    if address != "auto":
        _knock(address)
    ask = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(ask, capture_output=True, check=False, timeout=PATIENCE)  # noqa: S603 - Ray's command
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        raise UsageError(f"--address {address}: no Ray answers there (`ray start` prints the address of one)")


def _knock(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--address {address}: neither HOST:PORT nor auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"--address {address}: nothing answers there ({error})") from None
