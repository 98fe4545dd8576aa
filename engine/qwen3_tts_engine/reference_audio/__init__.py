"""Reference recordings: from whatever a caller sends to mono float32 PCM at 24 kHz, as upstream reads it.

    limits      what a recording may be
    kinds       base64 and data: URLs undone, the kind told by the first bytes, never by a name
    complete    whether the file is all there, by its own structure
    decoding    samples out of the file, bounded while they come; mean of the channels; resampled
    decoder     the process of its own that `decoding` runs in, because the file comes from a stranger

One PCM serves both readers of upstream's `create_voice_clone_prompt` (qwen_tts/inference/qwen3_tts_model.py,
`Qwen3TTSTokenizer.encode` in qwen3_tts_tokenizer.py): each takes soundfile's float32 samples, their mean over
the channels, then `librosa.resample` with its default, soxr at high quality, padded or cut to
ceil(n · 24000 / rate) samples. The same calls are made here, without librosa.
"""

from qwen3_tts_engine.reference_audio.decoder import Decoder, Recording
from qwen3_tts_engine.reference_audio.limits import SAMPLE_RATE, Limits

__all__ = ["SAMPLE_RATE", "Decoder", "Limits", "Recording"]
