"""How fast a handful of rows gets through weights that lie in memory, by way of multiplying.

    python perf/products.py

perf/README.md tells how it measures; the report goes to perf/results/.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_tts_engine.launch.machine import num_available_cores
from qwen3_tts_engine.model.linear import Int8Linear, Linear
from report import MachineMeter, Provenance, Report, Spread, add_results_option, at_least, progress, table

OUTPUTS, INPUTS = 4096, 1024  # the query, key and value projection of the 0.6B talker
MATRICES = 64  # 512 MiB in bfloat16: none is in a cache when its turn comes
ROWS = (1, 4, 8)
ROUNDS = 7
OWN_KERNEL = Path(__file__).with_name("products.cpp")
READ = "reading"

METHOD = """
{matrices} matrices of {outputs} × {inputs} in bfloat16, which no cache holds together, are multiplied in
turn by 1, 4 and 8 rows on {threads} threads, by every way once in each of {rounds} rounds. Figures are
gigabytes of weights per second, medians over the rounds with lowest and highest in parentheses; int8 has
half the bytes, so the same figure there is twice the speed. "Prepacked oneDNN" and "int8" are the engine's
`Linear` and `Int8Linear`; "inductor's template" is `torch.compile` with max-autotune and nothing but its
C++ GEMM template to choose from, weights frozen; "own kernel" is perf/products.cpp, compiled with `g++ -O3
-march=native`. "Reading" adds up all the weights and multiplies nothing: what the memory can do.
"""

Way = Callable[[Tensor], object]


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    meter = MachineMeter()
    weights = [torch.randn(OUTPUTS, INPUTS).bfloat16() for _ in range(MATRICES)]
    with torch.inference_mode():
        rates = {rows: measure(ways_of(weights, rows), rows, options.rounds) for rows in ROWS}
    write_up(rates, options, Provenance.of(meter)).publish(options.results)


def ways_of(weights: list[Tensor], rows: int) -> Mapping[str, Way]:
    """All of them go through all matrices once."""
    packed, rounded = [Linear(w) for w in weights], [Int8Linear(w) for w in weights]
    ways: dict[str, Way] = {
        READ: lambda x: [w.view(torch.int64).sum() for w in weights],
        "F.linear": lambda x: [F.linear(x, w) for w in weights],
        "prepacked oneDNN": lambda x: [product(x) for product in packed],
        "int8": lambda x: [product(x) for product in rounded],
        "inductor's template": inductors_template(weights),
    }
    kernel = own_kernel(rows)
    return ways if kernel is None else ways | {"own kernel": lambda x: [kernel(w, x) for w in weights]}


def inductors_template(weights: list[Tensor]) -> Way:
    import torch._inductor.config as inductor

    class Products(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(torch.nn.Parameter(w, requires_grad=False) for w in weights)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [F.linear(x, w) for w in self.weights]

    compiled = torch.compile(Products().eval(), dynamic=False)

    def multiply(x: Tensor) -> object:
        with (
            torch.no_grad(),
            inductor.patch(freezing=True, max_autotune=True, max_autotune_gemm_backends="CPP"),
        ):
            return compiled(x)

    return multiply


def own_kernel(rows: int) -> Callable[[Tensor, Tensor], Tensor] | None:
    """None where there is no compiler, or a processor without the instructions."""
    if not (shutil.which("g++") and "avx512_bf16" in Path("/proc/cpuinfo").read_text()):
        progress("no g++ or no AVX512-BF16: leaving the own kernel out")
        return None
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "products.so"
        flags = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
        subprocess.run(["g++", *flags, str(OWN_KERNEL), "-o", str(library)], check=True)
        function = getattr(ctypes.CDLL(str(library)), f"multiply_{rows}")
    sizes = (ctypes.c_long(OUTPUTS), ctypes.c_long(INPUTS))

    def multiply(weight: Tensor, x: Tensor) -> Tensor:
        y = torch.empty(rows, OUTPUTS)
        function(*(ctypes.c_void_p(t.data_ptr()) for t in (weight, x, y)), *sizes)
        return y

    return multiply


def measure(ways: Mapping[str, Way], rows: int, rounds: int) -> Mapping[str, Spread]:
    x = torch.randn(rows, INPUTS).bfloat16()
    for name, way in ways.items():
        progress(f"{rows} rows: warming up {name}")
        way(x)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds):
        for name in list(ways)[:: 1 if i % 2 else -1]:
            started_s = time.perf_counter()
            ways[name](x)
            seconds[name].append(time.perf_counter() - started_s)
    return {name: Spread.of(num_bytes(name) / s / 1e9 for s in taken) for name, taken in seconds.items()}


def num_bytes(way: str) -> int:
    return MATRICES * OUTPUTS * INPUTS * (1 if way == "int8" else 2)


def write_up(
    rates: Mapping[int, Mapping[str, Spread]], options: argparse.Namespace, provenance: Provenance
) -> Report:
    ways = list(next(iter(rates.values())))
    return Report(
        title="Weights through a product",
        name="cpu-products",
        method=METHOD.format(
            matrices=MATRICES, outputs=OUTPUTS, inputs=INPUTS, threads=options.threads, rounds=options.rounds
        ),
        sections=[
            table(
                ["GB/s of weights", *(f"{rows} rows" if rows > 1 else "1 row" for rows in rates)],
                ([way, *(rates[rows][way] for rows in rates)] for way in ways),
            )
        ],
        figures={
            "gigabytes_per_second": {
                str(rows): {way: asdict(rate) for way, rate in of_rows.items()}
                for rows, of_rows in rates.items()
            }
        },
        provenance=provenance,
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=at_least(1), default=num_available_cores())
    parser.add_argument("--rounds", type=at_least(1), default=ROUNDS)
    add_results_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
