"""From a request to the rows the talker reads before its first frame, as token ids.

Every row is the sum of a text embedding and a codec embedding. Layouts (upstream: `generate` in
`modeling_qwen3_tts.py`, qwen-tts 0.1.1), one column a row, `·` for nothing:

              instruct  role  language, speaker  start  the text       first frame
    text      i1 … iI   r1-3  pad … pad          bos    t1 … tT  eos   pad            non_streaming_mode
    codec     ·      ·  ·     prefix  speaker    pad    pad …    pad   bos

    text      i1 … iI   r1-3  pad … pad          bos    t1             otherwise; t2 … tT and eos
    codec     ·      ·  ·     prefix  speaker    pad    bos            follow, one with each frame

A base checkpoint's speaker is an embedding. With reference codes (in-context cloning), after the start:

    text      t1 … tT  eos  pad  pad … pad       non_streaming_mode;
    codec     pad …    pad  bos  f1 … fN         t begins with the reference's own text

    text      t1 t2 … tN+1                       otherwise: cut, or padded, to N + 1 rows;
    codec     bos f1 … fN                        what was cut and eos follow, one with each frame
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from qwen3_tts_engine.errors import InvalidRequest
from qwen3_tts_engine.model.config import SpeechConfig
from qwen3_tts_engine.model.text import TextTokenizer
from qwen3_tts_engine.request import SpeechRequest, VoicePrompt, check_embedding, check_reference

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Template:
    """How upstream wraps a text, and how many tokens the wrapping has in front of it and behind."""

    pattern: str
    before: int
    after: int


TEXT = Template("<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>assistant\n", 3, 5)
REFERENCE_TEXT = Template("<|im_start|>assistant\n{}<|im_end|>\n", 3, 2)
INSTRUCT = Template("<|im_start|>user\n{}<|im_end|>\n", 3, 2)

# What a row of the codec track holds instead of a code:
NOTHING = -1
SPEAKER = -2  # the voice's speaker embedding
REFERENCE = -3  # the next of the voice's reference frames
MAX_CHARACTERS_PER_TOKEN = (
    16  # far above what speech in any language needs; refuses a flood before tokenising it
)


@dataclass
class Prompt:
    """One request as the talker sees it.

    `trailing` holds the text tokens that join the frames to come, the first of them the next frame. When it
    has run out, padding takes its place, as upstream has it.
    """

    text: list[int]
    codec: list[int]
    num_text_tokens: int
    voice: VoicePrompt | None = None
    trailing: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text)

    def append(self, text: list[int], codec: list[int]) -> None:
        self.text += text
        self.codec += codec


class PromptWriter:
    """Checks a request against one checkpoint and lays out its prompt.

    Args:
        config: the checkpoint's.
        tokenizer: the checkpoint's.
        max_text_tokens: the longest text, and the longest instruction.
    """

    def __init__(self, config: SpeechConfig, tokenizer: TextTokenizer, max_text_tokens: int) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._max_text_tokens = max_text_tokens
        self._warn_once = _Once(logger.warning)

    def write(self, request: SpeechRequest) -> Prompt:
        """The prompt of a request.

        Raises:
            InvalidRequest: for a language, speaker, text or instruction this checkpoint cannot speak with.
        """
        self._check_voice(request.voice)
        text = self._tokens("text", request.text, TEXT)
        role, spoken = text[: TEXT.before], text[TEXT.before : -TEXT.after]
        prompt = Prompt(text=[], codec=[], num_text_tokens=len(spoken), voice=request.voice)
        instruct = self._instruct_tokens(request)
        prompt.append(instruct, [NOTHING] * len(instruct))
        prompt.append(role, [NOTHING] * len(role))
        self._append_start(prompt, request)
        whole_text_first = self._whole_text_first(request)
        if request.voice is not None and request.voice.ref_codes is not None:
            wrapped = self._tokens("ref_text", request.voice.ref_text.strip(), REFERENCE_TEXT)
            reference = wrapped[REFERENCE_TEXT.before : -REFERENCE_TEXT.after]
            num_frames = len(request.voice.ref_codes)
            self._append_reference(
                prompt, [*reference, *spoken], num_frames, whole_text_first=whole_text_first
            )
        else:
            self._append_text(prompt, spoken, whole_text_first=whole_text_first)
        return prompt

    def _whole_text_first(self, request: SpeechRequest) -> bool:
        """`non_streaming_mode`; left out, cloning streams its text and the others do not, as upstream."""
        if request.non_streaming_mode is not None:
            return request.non_streaming_mode
        return self._config.tts_model_type != "base"

    def _append_start(self, prompt: Prompt, request: SpeechRequest) -> None:
        config, talker = self._config, self._config.talker
        codec = [*self._language_prefix(request), *self._speaker_codes(request), talker.codec_pad_id]
        prompt.append([config.tts_pad_token_id] * (len(codec) - 1) + [config.tts_bos_token_id], codec)

    def _append_text(self, prompt: Prompt, spoken: list[int], *, whole_text_first: bool) -> None:
        config, talker = self._config, self._config.talker
        if whole_text_first:
            prompt.append([*spoken, config.tts_eos_token_id], [talker.codec_pad_id] * (len(spoken) + 1))
            prompt.append([config.tts_pad_token_id], [talker.codec_bos_id])
        else:
            prompt.append(spoken[:1], [talker.codec_bos_id])
            prompt.trailing += [*spoken[1:], config.tts_eos_token_id]

    def _append_reference(
        self, prompt: Prompt, words: list[int], num_frames: int, *, whole_text_first: bool
    ) -> None:
        config, talker = self._config, self._config.talker
        text = [*words, config.tts_eos_token_id]
        codec = [talker.codec_bos_id] + [REFERENCE] * num_frames
        if whole_text_first:
            prompt.append(text, [talker.codec_pad_id] * len(text))
            prompt.append([config.tts_pad_token_id] * len(codec), codec)
        else:
            padding = [config.tts_pad_token_id] * (len(codec) - len(text))
            prompt.append(text[: len(codec)] + padding, codec)
            prompt.trailing += text[len(codec) :]

    def _instruct_tokens(self, request: SpeechRequest) -> list[int]:
        if self._config.tts_model_type == "voice_design" and not (request.instruct or "").strip():
            raise InvalidRequest("instruct is missing; describe the voice that should speak")
        if not request.instruct:
            return []
        if self._config.tts_model_size == "0b6":
            self._warn_once("instruct is ignored: 0.6B checkpoints were not trained to follow one")
            return []
        return self._tokens("instruct", request.instruct, INSTRUCT)

    def _language_prefix(self, request: SpeechRequest) -> list[int]:
        talker = self._config.talker
        language = self._language_id(request)
        if language is None:
            return [talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id]
        return [talker.codec_think_id, talker.codec_think_bos_id, language, talker.codec_think_eos_id]

    def _language_id(self, request: SpeechRequest) -> int | None:
        """A speaker of a dialect speaks it unless another language is asked for."""
        name = request.language.lower()
        if name not in (language.lower() for language in self._config.languages):
            raise InvalidRequest(
                f"language is {request.language[:80]!r}; this model has {', '.join(self._config.languages)}"
            )
        dialect = self._config.speaker_dialects.get(self._speaker(request))
        if dialect and name in ("auto", "chinese"):
            name = dialect
        return None if name == "auto" else self._config.language_ids[name]

    def _speaker(self, request: SpeechRequest) -> str:
        return (request.speaker or next(iter(self._config.speakers), "")).lower()

    def _speaker_codes(self, request: SpeechRequest) -> list[int]:
        if request.voice is not None:
            return [SPEAKER]
        name = self._speaker(request)
        if name and name not in self._config.speaker_ids:
            known = ", ".join(self._config.speakers) or "no built-in speakers"
            raise InvalidRequest(f"speaker is {str(request.speaker)[:80]!r}; this model has {known}")
        return [self._config.speaker_ids[name]] if name else []

    def _check_voice(self, voice: VoicePrompt | None) -> None:
        """Refuse a voice that this checkpoint was not trained to speak with."""
        if voice is None:
            if self._config.tts_model_type == "base":
                raise InvalidRequest("there is no voice to speak with; give voice, or speaker_embedding")
            return
        size, expected = voice.speaker_embedding.shape, (self._config.talker.hidden_size,)
        if size != expected:
            raise InvalidRequest(
                f"speaker_embedding has {size[0]} values; this checkpoint's voices have {expected[0]}: "
                "the voice was made by a model of another size"
            )
        check_embedding(voice.speaker_embedding)
        if voice.ref_codes is not None:
            num_codes = self._config.talker.code_predictor_config.vocab_size
            check_reference(voice.ref_codes, voice.ref_text, num_codes)

    def _tokens(self, field: str, text: str, template: Template) -> list[int]:
        """The text's tokens with their wrapping."""
        self._tokenizer.refuse_control_tokens(field, text)
        limit = self._max_text_tokens
        if len(text) > limit * MAX_CHARACTERS_PER_TOKEN:
            raise InvalidRequest(
                f"{field} has {len(text)} characters; at most {limit} tokens are spoken at once"
            )
        tokens = self._tokenizer.encode(template.pattern.replace("{}", text))
        count = len(tokens) - template.before - template.after
        if count > limit:
            raise InvalidRequest(f"{field} has {count} tokens; at most {limit} are spoken at once")
        return tokens


class _Once:
    """Says each message a single time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()

    def __call__(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._say(message)
