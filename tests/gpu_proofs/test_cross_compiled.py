"""The kernel compiled for GPUs that are not here: it fits into their registers and shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a program may take (CUDA C programming guide, 20.1)
REGISTERS = 65536  # of a processor
FEATURES = {"WINDOW": True, "SOFTCAP": True, "SINKS": True}
CASES = [
    *({"arch": arch, "rows": rows, "dim": dim, "dtype": "bf16", "options": {}}
      for arch in SHARED for rows, dim in [(4, 64), (32, 128), (256, 128), (256, 256)]),
    {"arch": 90, "rows": 256, "dim": 128, "dtype": "fp16", "options": FEATURES},
    {"arch": 90, "rows": 32, "dim": 128, "dtype": "bf16", "options": {"PAGE": 16}},
    {"arch": 90, "rows": 256, "dim": 64, "dtype": "bf16", "options": {"CAUSAL": True}},
    {"arch": 90, "rows": 32, "dim": 80, "dtype": "bf16", "options": {"MERGE": False, "WORDS": 3}},
    {"arch": 80, "rows": 32, "dim": 128, "dtype": "fp32", "options": {}},
]  # fmt: skip


def test_programs_fit(tmp_path: Path) -> None:
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    if not any(tools.glob("ptxas*")):
        pytest.skip(f"this Triton brings no ptxas ({tools})")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    del environment["TRITON_INTERPRET"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.gpu_proofs.cross", json.dumps(CASES)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == len(CASES)
    for report in reports:
        assert report["spilled"] == 0, report
        assert report["registers"] <= 255, report
        assert report["registers"] * report["threads"] <= REGISTERS, report
        assert report["shared"] <= SHARED[report["arch"]], report
        assert report["vector_loads"] > 0, report  # keys and values are read 16 bytes at a time
