"""Compile the tree kernel for GPUs that this machine does not have, and print what each program needs, as JSON lines.

Runs in a process of its own: under TRITON_INTERPRET=1 Triton compiles nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specdec.model.attention import tree_flash_kernel
from specdec.model.attention.tree_flash_launch import Tile

POINTERS = {"bits": "*i64", "first": "*i64", "lengths": "*i64", "table": "*i64", "sinks": "*fp32", "part": "*fp32",
            "stats": "*fp32", "arrived": "*i32"}  # fmt: skip
FLOATS = {"scale": "fp32", "softcap": "fp32"}
ALIGNED = {"q_b", "q_h", "q_n", "k_b", "k_h", "k_s", "v_b", "v_h", "v_s", "o_b", "o_h", "o_n", "dim"}
PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin"


def compiled(arch: int, rows: int, dim: int, dtype: str, options: dict[str, object]) -> dict[str, object]:
    """Compile one program and return its registers, spills, shared memory and instructions.

    Args:
        arch: compute capability, such as 90.
        rows: query rows of a KV head.
        dim: head size.
        dtype: of queries, keys and values, in Triton's words.
        options: constants of the kernel other than its tile's.
    """
    function = tree_flash_kernel.tree_attention
    tile = Tile.of(rows, dim, 4 if dtype == "fp32" else 2)
    constants = {"WORDS": 1, "GROUPS": 4, "SPLITS": 16, "LEAST": 256, "PAGE": 0, "CAUSAL": False, "WINDOW": False,
                 "SOFTCAP": False, "SINKS": False, "MERGE": True, "WIDE": dtype == "fp32", "M": tile.rows,
                 "N": tile.slots, "D": tile.dim, **options}  # fmt: skip
    typed = dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}") | POINTERS | FLOATS
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else typed.get(name, "i32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names)
               if typed.get(name, "").startswith("*") or name in ALIGNED}  # fmt: skip
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32),
                          options={"num_warps": tile.warps, "num_stages": tile.stages})  # fmt: skip
    report = _assembled(made.asm["ptx"], arch)
    return report | {"arch": arch, "rows": tile.rows, "dim": dim, "dtype": dtype, "options": options,
                     "threads": 32 * tile.warps, "shared": made.metadata.shared,
                     "vector_loads": len(re.findall(r"ld\.global.*\.v4", made.asm["ptx"]))
                     + made.asm["ptx"].count("cp.async.cg")}  # fmt: skip


def _assembled(ptx: str, arch: int) -> dict[str, int]:
    names = ("ptxas",) if arch < 90 else ("ptxas-blackwell", "ptxas")  # as Triton chooses; older ones bring one only
    ptxas = next(PTXAS / name for name in names if (PTXAS / name).is_file())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx, "utf-8")
        done = subprocess.run([ptxas, "-v", f"--gpu-name=sm_{arch}{'a' * (arch >= 90)}", file, "-o", "/dev/null"],
                              capture_output=True, text=True, check=True)  # fmt: skip
    registers = re.findall(r"Used (\d+) registers", done.stderr)
    spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    return {"registers": int(registers[0]), "spilled": sum(int(n) for pair in spilled for n in pair)}


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        print(json.dumps(compiled(**case)), flush=True)
