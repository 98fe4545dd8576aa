"""Text to token ids, exactly as upstream's processor makes them from the same directory."""

from __future__ import annotations

from pathlib import Path

from qwen3_tts_engine.errors import InvalidRequest


class TextTokenizer:
    """The checkpoint's Qwen2 tokenizer.

    `fix_mistral_regex` is what `Qwen3TTSModel.from_pretrained` passes: with a directory and a vocabulary
    above 100,000 tokens, transformers 4.57 then replaces the pre-tokenizer, which splits words such as
    "McDonald" differently. A parity test holds this class against upstream's processor in both cases.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import Qwen2TokenizerFast

        self._tokenizer = Qwen2TokenizerFast.from_pretrained(str(directory), fix_mistral_regex=True)
        self._control = sorted(self._tokenizer.get_added_vocab(), key=len, reverse=True)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def refuse_control_tokens(self, field: str, text: str) -> None:
        """Raise InvalidRequest for text that would leave its place in the prompt."""
        for token in self._control:
            if token in text:
                raise InvalidRequest(f"{field} contains the control token {token}; only plain text is spoken")
