"""`reference_audio`: a recording in any common format becomes mono PCM at 24 kHz."""

from __future__ import annotations

import json

import numpy as np
import triton_python_backend_utils as pb_utils

from qwen3_tts_engine.errors import ConfigError, EngineFailed, InvalidRequest
from qwen3_tts_engine.reference_audio import Decoder, Limits
from qwen3_tts_engine.reference_audio.kinds import WRAPPED
from qwen3_tts_engine.triton.answering import AnsweringModel, Outputs, Row
from qwen3_tts_engine.triton.loading import log_to_stderr, parameters


class ReferenceAudioModel(AnsweringModel):
    """One decoding process for each instance."""

    inputs = ("ref_audio",)

    def initialize(self, args: dict[str, str]) -> None:
        try:
            log_to_stderr()
            limits = Limits.from_parameters(parameters(json.loads(args["model_config"])))
            self.decoder = Decoder(limits)
        except (ConfigError, EngineFailed) as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error

    def answer(self, row: Row) -> Outputs:
        given = row.bytes("ref_audio")
        if given is None:
            raise InvalidRequest(f"ref_audio is empty; it must be {WRAPPED}")
        recording = self.decoder.decode(given)
        return {"pcm": recording.pcm, "duration": np.array([recording.duration_s], np.float32)}

    def finalize(self) -> None:
        self.decoder.close()
