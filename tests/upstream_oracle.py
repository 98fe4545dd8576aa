"""qwen_tts as the oracle: what upstream makes of a `SpeechRequest`, on the same weights, in float32."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3_tts_engine.request import FRAME_SAMPLES, SpeechRequest, VoicePrompt
from qwen3_tts_engine.upstream import import_qwen_tts


class Upstream:
    """One checkpoint in upstream's hands."""

    def __init__(self, directory: Path) -> None:
        self.model = import_qwen_tts().Qwen3TTSModel.from_pretrained(str(directory), dtype=torch.float32)
        self._spoken: dict[SpeechRequest, NDArray[np.int64]] = {}

    def codes(self, request: SpeechRequest) -> NDArray[np.int64]:
        """[frames, 16]; asked twice, it remembers what it said."""
        if request not in self._spoken:
            self._spoken[request] = self._speak(request)
        return self._spoken[request]

    def voice_in(self, file: Path, ref_text: str = "", x_vector_only: bool = False) -> VoicePrompt:
        """`create_voice_clone_prompt` of a recording, which upstream reads by itself."""
        with warnings.catch_warnings():
            # librosa imports what Python 3.13 no longer has.
            warnings.simplefilter("ignore", DeprecationWarning)
            [item] = self.model.create_voice_clone_prompt(str(file), ref_text, x_vector_only)
        codes = None if item.ref_code is None else item.ref_code.numpy()
        return VoicePrompt(item.ref_spk_embedding.numpy(), codes, item.ref_text or "")

    def speech(self, request: SpeechRequest) -> NDArray[np.float32]:
        """[frames · 1920]: what is heard of the codes, decoded after those of the reference."""
        codes = self.codes(request)
        num_reference = _num_reference_frames(request)
        if num_reference:
            codes = np.concatenate([request.voice.ref_codes, codes])
        return self.decode(codes)[num_reference * FRAME_SAMPLES :]

    def _speak(self, request: SpeechRequest) -> NDArray[np.int64]:
        """Seeds torch's global generator, which is the only one upstream knows."""
        spoken: list[torch.Tensor] = []
        tokenizer = self.model.model.speech_tokenizer
        decode = tokenizer.decode
        tokenizer.decode = lambda items: spoken.append(items[0]["audio_codes"]) or ([np.zeros(0)], 0)
        try:
            if request.seed is not None:
                torch.manual_seed(request.seed)
            self._generate(request)
        finally:
            tokenizer.decode = decode
        return spoken[0].numpy()[_num_reference_frames(request) :]

    def _generate(self, request: SpeechRequest) -> None:
        task = self.model.model.tts_model_type
        if task == "base":
            prompt = [self._voice_clone_prompt(request)]
            self.model.generate_voice_clone(**_arguments(request, False), voice_clone_prompt=prompt)
        elif task == "voice_design":
            self.model.generate_voice_design(**_arguments(request, True), instruct=request.instruct)
        else:
            arguments = _arguments(request, True)
            self.model.generate_custom_voice(**arguments, speaker=request.speaker, instruct=request.instruct)

    def _voice_clone_prompt(self, request: SpeechRequest) -> object:
        voice = request.voice
        assert voice is not None
        in_context = voice.ref_codes is not None
        return import_qwen_tts().VoiceClonePromptItem(
            ref_code=torch.from_numpy(voice.ref_codes) if voice.ref_codes is not None else None,
            ref_spk_embedding=torch.from_numpy(voice.speaker_embedding),
            x_vector_only_mode=not in_context,
            icl_mode=in_context,
            ref_text=voice.ref_text if in_context else None,
        )

    @torch.inference_mode()
    def decode(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """All frames at once, [frames, 16] -> [frames · 1920]."""
        decoder = self.model.model.speech_tokenizer.model.decoder
        samples: NDArray[np.float32] = decoder(torch.from_numpy(codes).T[None])[0, 0].numpy()
        return samples

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.model._tokenize_texts([text])[0][0].tolist()
        return ids


def _num_reference_frames(request: SpeechRequest) -> int:
    """Upstream decodes reference and speech as one."""
    return 0 if request.voice is None or request.voice.ref_codes is None else len(request.voice.ref_codes)


def _arguments(request: SpeechRequest, non_streaming_by_default: bool) -> dict[str, object]:
    assert request.max_frames is not None, "upstream knows no runaway guard: cap the utterance"
    mode = request.non_streaming_mode
    return {
        "text": request.text,
        "language": request.language,
        "non_streaming_mode": non_streaming_by_default if mode is None else mode,
        "max_new_tokens": request.max_frames + 1,  # the last one never becomes a frame
        "do_sample": request.talker.do_sample,
        "temperature": request.talker.temperature,
        "top_k": request.talker.top_k,
        "top_p": request.talker.top_p,
        "repetition_penalty": request.repetition_penalty,
        "subtalker_dosample": request.subtalker.do_sample,
        "subtalker_temperature": request.subtalker.temperature,
        "subtalker_top_k": request.subtalker.top_k,
        "subtalker_top_p": request.subtalker.top_p,
    }
