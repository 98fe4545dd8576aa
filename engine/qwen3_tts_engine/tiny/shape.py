"""The dimensions of a checkpoint, from toy to published."""

from __future__ import annotations

from dataclasses import dataclass, replace

CODEBOOKS = 16
CODES = 2048  # entries of a codebook


@dataclass(frozen=True)
class Transformer:
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Shape:
    """What may vary. The rest (the codebooks, 12.5 frames a second at 24 kHz, a codec window
    of 72 frames, the codec's ids) is the same in every published checkpoint, and here."""

    talker: Transformer
    predictor: Transformer
    codec: Transformer
    codec_codebook: int  # width of a codebook vector before the decoder
    codec_latent: int  # width between the codec's transformer and its convolutions
    codec_channels: int  # width of the first convolution; each of the four upsampling stages halves it
    speaker_channels: int
    text_hidden: int
    text_vocab: int = 768  # rows of the text embedding
    tokenizer_vocab: int = 768  # tokens in the tokenizer, filled up with tokens that no text reaches
    mean_frames: float | None = 24.0  # mean utterance at default sampling; None speaks until the frame cap
    dtype: str = "float32"  # what the talker is drawn in; the file holds bfloat16 either way

    def __post_init__(self) -> None:
        if self.tokenizer_vocab > self.text_vocab:
            raise ValueError(
                f"{self.tokenizer_vocab} tokens need as many rows of text embedding, not {self.text_vocab}"
            )

    @property
    def model_size(self) -> str:
        return "0b6" if self.predictor.hidden == self.talker.hidden else "1b7"

    def without_projection(self) -> Shape:
        """The 0.6B models have a code predictor as wide as their talker, hence nothing to project."""
        return replace(self, predictor=replace(self.predictor, hidden=self.talker.hidden))


TINY = Shape(
    talker=Transformer(hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, head_dim=16),
    predictor=Transformer(hidden=32, ffn=64, layers=2, heads=2, kv_heads=1, head_dim=16),
    codec=Transformer(hidden=32, ffn=64, layers=2, heads=2, kv_heads=2, head_dim=16),
    codec_codebook=32,
    codec_latent=64,
    codec_channels=64,
    speaker_channels=32,
    text_hidden=48,
)

SMALL = replace(
    TINY,
    talker=Transformer(hidden=256, ffn=768, layers=8, heads=4, kv_heads=2, head_dim=64),
    predictor=Transformer(hidden=128, ffn=384, layers=3, heads=2, kv_heads=1, head_dim=64),
    codec_channels=96,
    text_hidden=128,
)

PUBLISHED_1B7 = Shape(
    talker=Transformer(hidden=2048, ffn=6144, layers=28, heads=16, kv_heads=8, head_dim=128),
    predictor=Transformer(hidden=1024, ffn=3072, layers=5, heads=16, kv_heads=8, head_dim=128),
    codec=Transformer(hidden=512, ffn=1024, layers=8, heads=16, kv_heads=16, head_dim=64),
    codec_codebook=512,
    codec_latent=1024,
    codec_channels=1536,
    speaker_channels=512,
    text_hidden=2048,
    text_vocab=151936,
    mean_frames=None,
    dtype="bfloat16",  # drawing 1.9 billion normals in float32 takes four times as long, and twice the memory
)

PUBLISHED_0B6 = replace(
    PUBLISHED_1B7, talker=Transformer(hidden=1024, ffn=3072, layers=28, heads=16, kv_heads=8, head_dim=128)
)

SHAPES = {"tiny": TINY, "small": SMALL, "published-0.6b": PUBLISHED_0B6, "published-1.7b": PUBLISHED_1B7}
