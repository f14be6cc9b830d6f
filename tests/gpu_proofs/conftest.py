"""Proofs of the GPU's kernels on a CPU: `make test-gpu-proofs`, which sets Triton's interpreter on."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

if find_spec("triton") is None:
    pytest.skip("Triton is not installed (make test-gpu-proofs)", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") != "1" or "UNTYPED" not in os.environ:
    pytest.skip("needs TRITON_INTERPRET=1 UNTYPED=1 (make test-gpu-proofs)", allow_module_level=True)
