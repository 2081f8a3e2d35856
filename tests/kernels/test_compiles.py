"""Every kernel compiles for NVIDIA GPUs, which needs none, and pipelines its loads."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton comes with torch for Linux")
SCRIPT = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from robreg.kernels import triton_kernels as kernels

F, B, I = "*fp32", "*bf16", "i32"


def compiled(kernel, types, constants, **options):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in types if types[name] != I}
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    found = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    assert found.asm["cubin"]
    return found.asm["ptx"]


def convolution(c_in, c_out, stride, transposed, block, size=3, **options):
    types = dict.fromkeys(("x", "w", "out", "residual", "activation"), B) | {"positions": I}
    types |= dict.fromkeys(("before", "scale", "after", "residual_bias"), F)
    constants = {"H": 32, "W": 32, "OH": 32 // stride, "OW": 32 // stride, "CI": c_in, "CO": c_out, "SIZE": size}
    constants |= {"STRIDE": stride}
    constants |= {"TRANSPOSED": transposed, "HAS_BEFORE": not transposed, "HAS_SCALE": True}
    constants |= {"AFTER": 0 if transposed else 1 if size == 3 else c_out}
    constants |= {"CR": c_in, "RH": 32, "RW": 32, "RSTRIDE": stride, "HAS_RESIDUAL_BIAS": not transposed}
    constants |= {"RELU": not transposed, "MASKED": transposed, "BM": block}
    constants |= {"BK": min(64, c_in), "BN": min(128, c_out)}
    return compiled(kernels.convolve, types, constants, **options)


forward = convolution(64, 64, 1, False, 128, num_warps=4, num_stages=4)
assert "mma" in forward and "cp.async" in forward
assert forward != convolution(64, 64, 1, False, 128, num_warps=4, num_stages=2)
convolution(16, 32, 2, False, 64, num_warps=4)
convolution(32, 16, 2, True, 64, num_warps=4)
products = convolution(256, 128, 1, False, 128, size=1, num_warps=8, num_stages=4)
assert "mma" in products and "cp.async" in products
strides = dict.fromkeys(("SB", "SC", "SH", "SW", "positions"), I)
image = {"H": 32, "W": 32, "CI": 3, "CO": 16, "BM": 64}
arguments = dict.fromkeys(("x", "w", "mean", "std", "after"), F) | {"out": B} | strides
compiled(kernels.stem, arguments, image | {"AFTER": 1})
arguments = dict.fromkeys(("w", "std", "clean", "point", "found", "eps", "step"), F) | {"gradient": B} | strides
compiled(kernels.stem_step, arguments, image | {"KEEP": False})
arguments = {"activation": B, "out": B, "w": F, "bias": F, "before": F, "label": "*i64"}
sizes = {"HW": 64, "C": 64, "CLASSES": 10, "BP": 64, "BC": 64, "BL": 16}
compiled(kernels.head, arguments, sizes | {"HAS_BEFORE": True})
"""


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_every_kernel_compiles(capability, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", SCRIPT, str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
