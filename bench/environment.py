"""Where a figure was measured: the columns of a record that describe the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_GPU_FIELDS = (
    "driver_version",
    "clocks.sm",
    "power.draw",
    "temperature.gpu",
    "clocks_throttle_reasons.active",
    "clocks.max.sm",
    "clocks.applications.graphics",
)
_BUSY = 0.25  # of the cores: from here on others are in the way
_GLANCES = 20
_SIZE = 1536  # of the square product whose rate is a CPU's roof


def describe(device: str, threads: int) -> dict[str, Any]:
    """The environment columns; null where the machine does not tell."""
    found: dict[str, Any] = {
        "device": device,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "threads": threads,
        "host": hashlib.sha256(platform.node().encode()).hexdigest()[:12],
    }
    return found | (_gpu() if device == "cuda" else _cpu(threads))


def load() -> float | None:
    """How many other processes run or wait for a core, over a second; without /proc, on average of the last minute.

    An average would hold what this command's own predecessor did, as conformance before benchmarks.
    """
    counts = Path("/proc/loadavg")  # proc(5): its fourth field tells how many run or wait at this moment
    if not counts.exists():
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    seen = []
    for _ in range(_GLANCES):
        time.sleep(1 / _GLANCES)
        seen.append(int(counts.read_text(encoding="ascii").split()[3].partition("/")[0]) - 1)  # this one runs, too
    return sum(seen) / _GLANCES


def busy_cpu(others: float | None) -> str | None:
    """One line if a load says that others compute on this machine."""
    all_cores = os.cpu_count() or 1
    if others is None or others <= _BUSY * all_cores:
        return None
    return f"this machine is busy ({others:.1f} other processes run on {all_cores} cores): times will say little"


def _cpu(threads: int) -> dict[str, Any]:
    tflops, gbs = _roof(threads)
    return {"device_name": _cpu_name(), "clock_mhz": _cpu_mhz(), "peak_tflops": tflops, "peak_gbs": gbs}


def _roof(threads: int) -> tuple[float, float]:
    """What this CPU reaches now: TFLOP/s of a large float32 product, GB/s of a large copy; the best of five."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.randn(_SIZE, _SIZE)
        b = torch.empty_like(a)
        big = torch.empty(64 * 2**20 // 4)
        target = torch.empty_like(big)
        product = min(_seconds(lambda: torch.mm(a, a, out=b)) for _ in range(5))
        copied = min(_seconds(lambda: target.copy_(big)) for _ in range(5))
    finally:
        torch.set_num_threads(before)
    return 2 * _SIZE**3 / product / 1e12, 2 * big.nbytes / copied / 1e9


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_mhz() -> float | None:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None


def _gpu() -> dict[str, Any]:
    from bench.simulate.devices import find

    name = torch.cuda.get_device_name()
    known = find(name)
    return {
        "device_name": name,
        "cuda": torch.version.cuda,
        "peak_tflops": None if known is None else known.half_flops / 1e12,
        "peak_gbs": None if known is None else known.bandwidth / 1e9,
        **_gpu_state(),
    }


def _gpu_state() -> dict[str, Any]:
    """What nvidia-smi tells about the first visible GPU; "unlocked" unless the application clock is the running one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {"clocks_locked": "unlocked"}
    query = [tool, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits", _id()]
    done = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    values = [part.strip() for part in done.stdout.strip().split(",")]
    if done.returncode or len(values) != len(_GPU_FIELDS):
        return {"clocks_locked": "unlocked"}
    at = dict(zip(_GPU_FIELDS, values, strict=True))
    reasons = _number(at["clocks_throttle_reasons.active"], 16)
    return {
        "driver": at["driver_version"],
        "clock_mhz": _number(at["clocks.sm"]),
        "power_w": _number(at["power.draw"]),
        "temperature_c": _number(at["temperature.gpu"]),
        "throttled": None if reasons is None else bool(int(reasons) & ~1),  # bit 0: idle
        "clocks_locked": "locked" if at["clocks.applications.graphics"] == at["clocks.sm"] else "unlocked",
    }


def _id() -> str:
    """The GPU that torch calls the first."""
    return f"--id={os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0] or '0'}"


def busy_gpu() -> str | None:
    """One line if another process computes on the GPU: a busy one is refused."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-compute-apps=pid,used_memory", "--format=csv,noheader", _id()]
    done = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    others = [line for line in done.stdout.splitlines() if line.strip()]
    return f"the GPU is in use by {len(others)} other process(es)" if others else None


def commit() -> dict[str, Any]:
    """Commit and dirty flag of the checkout in the current folder; null outside one."""
    git = shutil.which("git")
    if git is None:
        return {"commit": None, "dirty": None}
    head = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603
    if head.returncode:
        return {"commit": None, "dirty": None}
    status = subprocess.run([git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)  # noqa: S603
    return {"commit": head.stdout.strip(), "dirty": bool(status.stdout.strip())}


def _number(text: str, base: int = 10) -> float | None:
    try:
        return float(int(text, base)) if base != 10 else float(text)
    except ValueError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
