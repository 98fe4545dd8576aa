"""Upstream's `qwen_tts`, imported without the parts of it that break and that nobody here calls."""

import sys
from types import ModuleType

_TOKENIZER_25HZ = "qwen_tts.core.tokenizer_25hz.modeling_qwen3_tts_tokenizer_v1"


class Qwen3TTSTokenizerV1Model:
    """Holds the place of the 25 Hz speech tokenizer in upstream's registry; no public checkpoint uses it."""

    @classmethod
    def from_pretrained(cls, path: str, **_: object) -> None:
        raise NotImplementedError(f"{path} holds a 25 Hz speech tokenizer; only the 12 Hz one is supported")


def import_qwen_tts() -> ModuleType:
    """Import `qwen_tts` with a placeholder for its 25 Hz speech tokenizer.

    `import qwen_tts` always imports that tokenizer, and it alone needs torchaudio (PyPI's wheel is built for
    CUDA: next to a CPU torch its import is an OSError about libc10_cuda.so), onnxruntime, flash-attn and the
    `sox` binary (missing ones are announced on stdout and stderr). Call this before anything of `qwen_tts`
    is imported; afterwards `from qwen_tts.core.models import ...` works as usual.
    """
    if "qwen_tts" not in sys.modules:
        placeholder = ModuleType(_TOKENIZER_25HZ)
        placeholder.Qwen3TTSTokenizerV1Model = Qwen3TTSTokenizerV1Model  # type: ignore[attr-defined]
        sys.modules[_TOKENIZER_25HZ] = placeholder

    import qwen_tts

    return qwen_tts
