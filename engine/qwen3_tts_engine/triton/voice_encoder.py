"""The Triton model around the voice encoder: a reference recording in, a voice prompt out."""

from __future__ import annotations

from pathlib import Path

import triton_python_backend_utils as pb_utils

from qwen3_tts_engine.config import CheckpointConfig
from qwen3_tts_engine.errors import ConfigError, InvalidRequest
from qwen3_tts_engine.triton.answering import AnsweringModel, Outputs, Row, prompt_outputs
from qwen3_tts_engine.triton.loading import device, log_to_stderr, read_config
from qwen3_tts_engine.voice_encoder import Recording, VoiceEncoder


class VoiceEncoderModel(AnsweringModel):
    """Answers one recording after another, whoever else is in the batch."""

    inputs = ("pcm", "ref_text", "x_vector_only")

    def initialize(self, args: dict[str, str]) -> None:
        """Load both encoders and hear nobody first; Triton calls the model ready after that."""
        try:
            log_to_stderr()
            config = read_config(CheckpointConfig, args, task="base")
            self.encoder = VoiceEncoder.load(config, Path(args["model_repository"]), device(args))
        except ConfigError as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        self.encoder.warm_up()

    def answer(self, row: Row) -> Outputs:
        return prompt_outputs(self.encoder.encode(read_recording(row)))


def read_recording(row: Row) -> Recording:
    """Raise InvalidRequest, naming the input, for what cannot become a voice."""
    pcm = row.tensor("pcm")
    if pcm is None:
        raise InvalidRequest("pcm is missing; it is the one required input")
    return Recording(pcm, ref_text=row.text("ref_text") or "", x_vector_only=row.flag("x_vector_only"))
