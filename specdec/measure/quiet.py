"""Record what else ran on the machine during a timed run, and the energy of the run.

Other processes take cores, memory bandwidth and clock frequency from a timed run: with and without them, speedups of
0.56x and 3.5x were measured. One `Watch` around each timed run tells such runs apart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch

BUSY = 0.10  # share of the machine's cores that others may use before a run counts as disturbed
SHORT = 0.05  # seconds; for shorter runs the operating system's counters (10 ms) are too coarse
RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Conditions:
    """State of the machine during one timed run.

    Args:
        seconds: wall time.
        cpu_seconds: CPU time of this process, all threads.
        others: share of the machine's cores that other processes used.
        stolen: share of the machine's cores that the hypervisor gave to other machines.
        switches: involuntary context switches of this process.
        load: runnable processes, averaged over the last minute; None if unknown.
        clock_mhz: clock of the CPU at the end; None if unknown.
        gpu: clock, temperature and throttling reasons of the GPU; None without a GPU or if unknown.
        joules: energy of the CPU package or the GPU; None if unknown.
    """

    seconds: float
    cpu_seconds: float
    others: float
    stolen: float
    switches: int
    load: float | None
    clock_mhz: float | None
    gpu: Mapping[str, Any] | None
    joules: float | None

    @property
    def disturbed(self) -> str | None:
        """Line about what disturbed the run, or None if the machine was quiet enough."""
        if self.seconds < SHORT:
            return None
        if self.others > BUSY:
            return f"other processes used {self.others:.0%} of the machine's cores"
        if self.stolen > BUSY:
            return f"{self.stolen:.0%} of the machine's cores was given to other machines"
        if self.gpu is not None and self.gpu["throttled"]:
            return f"the GPU was throttled ({', '.join(self.gpu['throttled'])})"
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


class Watch:
    """Context manager around one timed run; `conditions` is set at the end.

    It takes 0.1 ms before and after the body.
    """

    conditions: Conditions

    def __init__(self, device: torch.device | None = None) -> None:
        self._gpu = _Gpu.of(device)
        self._rapl = _rapl_files() if self._gpu is None else []

    def __enter__(self) -> Watch:
        self._before = self._counters()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        before, after = self._before, self._counters()
        wall = max(after.wall - before.wall, 1e-9)
        all_cores = wall * (os.cpu_count() or 1)
        own = after.cpu - before.cpu
        stolen = after.stolen - before.stolen
        self.conditions = Conditions(
            seconds=wall,
            cpu_seconds=own,
            others=_share(after.busy - before.busy - own, all_cores),
            stolen=_share(stolen, all_cores),
            switches=after.switches - before.switches,
            load=psutil.getloadavg()[0],
            clock_mhz=_clock(),
            gpu=None if self._gpu is None else self._gpu.state(),
            joules=_spent(before.microjoules, after.microjoules),
        )

    def _counters(self) -> _Counters:
        process, machine = psutil.Process(), psutil.cpu_times()
        times = process.cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        stolen = getattr(machine, "steal", 0.0)
        guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)  # counted as user time as well
        return _Counters(
            wall=time.perf_counter(),
            cpu=times.user + times.system,
            busy=sum(machine) - guests - idle - stolen,
            stolen=stolen,
            switches=process.num_ctx_switches().involuntary,
            microjoules=self._gpu.microjoules() if self._gpu is not None else _read(self._rapl),
        )


@dataclass(frozen=True)
class _Counters:
    wall: float
    cpu: float
    busy: float
    stolen: float
    switches: int
    microjoules: list[tuple[int, int]]  # (counter, value at which it wraps around to 0; 0 if never)


class _Gpu:
    """One NVIDIA GPU through NVML. The driver installs NVML; CUDA builds of torch install its Python binding."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def of(cls, device: torch.device | None) -> _Gpu | None:
        if device is None or device.type != "cuda":
            return None
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
        except Exception:  # no binding, no driver or no permission: the figures are left out
            return None

    def microjoules(self) -> list[tuple[int, int]]:
        try:
            return [(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) * 1000, 0)]
        except self._nvml.NVMLError:
            return []

    def state(self) -> dict[str, Any]:
        nvml = self._nvml
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
        known = {
            "power limit": nvml.nvmlClocksThrottleReasonSwPowerCap,
            "heat": nvml.nvmlClocksThrottleReasonSwThermalSlowdown | nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
            "power brake": nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
        }
        return {
            "clock_mhz": nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM),
            "celsius": nvml.nvmlDeviceGetTemperature(self._handle, nvml.NVML_TEMPERATURE_GPU),
            "throttled": [name for name, bits in known.items() if reasons & bits],
        }


def _share(seconds: float, of: float) -> float:
    return min(max(seconds / of, 0.0), 1.0)


def _clock() -> float | None:
    try:
        found = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return None if found is None else float(found.current)


def _rapl_files() -> list[tuple[Path, int]]:
    """Return the readable energy counters of CPU packages, each with the value at which it wraps around to 0."""
    found = []
    for folder in sorted(RAPL.glob("*rapl:[0-9]*")):
        if folder.name.count(":") > 1:  # a part of a package, counted in it
            continue
        try:
            (folder / "energy_uj").read_text()
            found.append((folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())))
        except (OSError, ValueError):
            continue
    return found


def _read(files: list[tuple[Path, int]]) -> list[tuple[int, int]]:
    try:
        return [(int(file.read_text()), end) for file, end in files]
    except (OSError, ValueError):
        return []


def _spent(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> float | None:
    """Return the joules between two readings, or None if unknown; a counter may have wrapped around once."""
    if not before or len(before) != len(after):
        return None
    used = [new - old if new >= old else new - old + end for (old, end), (new, _) in zip(before, after, strict=True)]
    return sum(used) / 1e6
