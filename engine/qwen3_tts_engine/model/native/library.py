"""The compiled library and the structures it is handed, which mirror those of the headers here."""

from __future__ import annotations

import ctypes
import logging
from ctypes import POINTER, Structure, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

# The fastest first, with the flags of /proc/cpuinfo that each needs.
LIBRARIES = {
    "libnative_avx512.so": {
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx512_vnni",
        "avx512_bf16",
    },
    "libnative_avx2.so": {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
}
PLACE = Path(__file__).parent
NUMBERS = {torch.float32: 0, torch.bfloat16: 1}


class Product(Structure):
    _fields_ = (
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
    )


class Layer(Structure):
    _fields_ = (
        ("attention_norm", c_void_p),
        ("head_norm", c_void_p),
        ("feed_forward_norm", c_void_p),
        ("qkv", Product),
        ("out", Product),
        ("gate_up", Product),
        ("down", Product),
    )


class Decoder(Structure):
    _fields_ = (
        ("layers", POINTER(Layer)),
        ("norm", c_void_p),
        ("rope_table", c_void_p),
        ("num_layers", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_size", c_int64),
        ("feed_forward", c_int64),
        ("eps", c_float),
    )


class Rows(Structure):
    _fields_ = (("count", c_int64), ("slots", c_void_p), ("positions", c_void_p))


class Cache(Structure):
    _fields_ = (("keys", POINTER(c_void_p)), ("values", POINTER(c_void_p)), ("capacity", c_int64))


class Rules(Structure):
    _fields_ = (("sampled", c_void_p), ("temperature", c_void_p), ("kth", c_void_p), ("tail", c_void_p))


class FrameModel(Structure):
    _fields_ = (
        ("predictor", Decoder),
        ("first_head", Product),
        ("heads", POINTER(Product)),
        ("projection", Product),
        ("projection_bias", c_void_p),
        ("embeddings", c_void_p),
        ("suppressed", c_void_p),
        ("hidden", c_int64),
        ("codes", c_int64),
        ("first_vocab", c_int64),
        ("vocab", c_int64),
        ("eos", c_int64),
        ("min_frames", c_int64),
    )


class Slots(Structure):
    _fields_ = (
        ("count", c_int64),
        ("hidden", c_void_p),
        ("next_input", c_void_p),
        ("text_table", c_void_p),
        ("text", c_void_p),
        ("num_frames", c_void_p),
        ("spoken", c_void_p),
        ("penalty", c_void_p),
        ("first", Rules),
        ("rest", Rules),
        ("noise", c_void_p),
        ("codes", c_void_p),
    )


class Beats(Structure):
    _fields_ = (("slots", c_void_p), ("pairs", c_void_p), ("positions", c_void_p))


class Snake(Structure):
    _fields_ = (("alpha", c_void_p), ("inverse_beta", c_void_p), ("channels", c_int64))


SIGNATURES = {
    "lanes": (c_int64, ()),
    "layers_scratch_bytes": (c_int64, (POINTER(Decoder), c_int64, c_int64, c_int64)),
    "run_layers": (
        None,
        (POINTER(Decoder), c_int, POINTER(Rows), c_void_p, c_void_p, POINTER(Cache), c_void_p, c_int64),
    ),
    "frame_scratch_bytes": (c_int64, (POINTER(FrameModel), c_int64, c_int64, c_int64)),
    "speak_frame": (
        None,
        (
            POINTER(FrameModel),
            c_int,
            POINTER(Slots),
            POINTER(Beats),
            c_int64,
            POINTER(Cache),
            c_void_p,
            c_int64,
        ),
    ),
    "snake_float32": (None, (POINTER(Snake), c_void_p, c_void_p, c_int64, c_int64)),
    "snake_bfloat16": (None, (POINTER(Snake), c_void_p, c_void_p, c_int64, c_int64)),
}


@cache
def library() -> ctypes.CDLL | None:
    """The one that was compiled for this processor, or None: then PyTorch computes.

    It is threaded with the OpenMP of the PyTorch in this process, whose symbols are global: with one of its
    own, two sets of threads would wait for each other's cores.
    """
    features = processor_features()
    suitable = [PLACE / name for name, needed in LIBRARIES.items() if needed <= features]
    compiled = next((path for path in suitable if path.exists()), None)
    if compiled is None:
        reason = "was not compiled" if suitable else "is not for this processor"
        logger.info("the native library %s; PyTorch computes everything", reason)
        return None
    try:
        return _declared(ctypes.CDLL(str(compiled)))
    except OSError as error:
        logger.warning("%s cannot be loaded (%s); PyTorch computes everything", compiled.name, error)
        return None


def processor_features() -> set[str]:
    """What the kernel says that this processor has, and lets programs use."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return set()
    flags = (line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    return set(next(flags, "").split())


def native() -> ctypes.CDLL:
    """The library, where `library` has said that there is one."""
    compiled = library()
    assert compiled is not None
    return compiled


def _declared(compiled: ctypes.CDLL) -> ctypes.CDLL:
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(compiled, name)
        function.restype, function.argtypes = result, arguments
    return compiled
