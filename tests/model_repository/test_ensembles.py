"""Ensembles against the models they are made of: every tensor is handed on with the type and shape it has."""

import pytest
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from python_backend import MODEL_REPOSITORY, read_config

CREATE_VOICE, VOICE_CLONE, BASE = "create_voice", "qwen3_tts_voice_clone", "qwen3_tts_base"

Tensors = dict[str, tuple[str, list[int]]]  # name: type, dims behind the batch dimension

REFERENCE: Tensors = {
    "ref_audio": ("STRING", [1]),
    "ref_text": ("STRING", [1]),
    "x_vector_only": ("BOOL", [1]),
}
PROMPT: Tensors = {"speaker_embedding": ("FP32", [-1]), "ref_codes": ("INT32", [-1, 16])}
INLINE_PROMPT: Tensors = {"voice": ("STRING", [1]), **PROMPT}
SPEAKING: Tensors = {
    "text": ("STRING", [1]),
    "language": ("STRING", [1]),
    "ref_text": ("STRING", [1]),
    "stream": ("BOOL", [1]),
    "audio_encoding": ("STRING", [1]),
    "seed": ("INT64", [1]),
    "do_sample": ("BOOL", [1]),
    "temperature": ("FP32", [1]),
    "top_k": ("INT32", [1]),
    "top_p": ("FP32", [1]),
    "repetition_penalty": ("FP32", [1]),
    "subtalker_do_sample": ("BOOL", [1]),
    "subtalker_temperature": ("FP32", [1]),
    "subtalker_top_k": ("INT32", [1]),
    "subtalker_top_p": ("FP32", [1]),
    "max_frames": ("INT32", [1]),
    "non_streaming_mode": ("BOOL", [1]),
}
SPOKEN: Tensors = {
    "audio": ("FP32", [-1]),
    "encoded_audio": ("STRING", [1]),
    "sample_rate": ("INT32", [1]),
    "row": ("INT32", [1]),
    "chunk_index": ("INT32", [1]),
    "num_frames": ("INT32", [1]),
    "finish_reason": ("STRING", [1]),
}

# docs/protocol.md's: what goes in, which of it is required, what comes out.
PROMISED: dict[str, tuple[Tensors, set[str], Tensors]] = {
    CREATE_VOICE: (REFERENCE, {"ref_audio"}, PROMPT),
    VOICE_CLONE: (REFERENCE | SPEAKING, {"ref_audio", "text"}, SPOKEN),
    "reference_audio": (
        {"ref_audio": ("STRING", [1])},
        {"ref_audio"},
        {"pcm": ("FP32", [-1]), "duration": ("FP32", [1])},
    ),
    "voice_encoder": (
        {"pcm": ("FP32", [-1]), "ref_text": ("STRING", [1]), "x_vector_only": ("BOOL", [1])},
        {"pcm"},
        PROMPT,
    ),
    BASE: (INLINE_PROMPT | SPEAKING, {"text"}, SPOKEN),
}
STEPS = {
    CREATE_VOICE: ["reference_audio", "voice_encoder"],
    VOICE_CLONE: ["reference_audio", "voice_encoder", BASE],
}


@pytest.fixture(params=sorted(STEPS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ensemble(name: str) -> ModelConfig:
    return read_config(MODEL_REPOSITORY / name)


def declared(tensors) -> Tensors:
    return {t.name: (DataType.Name(t.data_type).removeprefix("TYPE_"), list(t.dims)) for t in tensors}


def tensors_after(ensemble: ModelConfig, num_steps: int) -> Tensors:
    """The ensemble's tensors that exist once that many steps have run."""
    known = declared(ensemble.input)
    for step in ensemble.ensemble_scheduling.step[:num_steps]:
        _, _, outputs = PROMISED[step.model_name]
        known |= {tensor: outputs[output] for output, tensor in step.output_map.items()}
    return known


@pytest.mark.parametrize("model", sorted(PROMISED))
def test_a_models_tensors_are_the_promised_ones(model):
    directory = MODEL_REPOSITORY / model
    if model == BASE and not directory.exists():
        pytest.skip(f"{BASE} is not in the repository")
    config = read_config(directory)
    inputs, required, outputs = PROMISED[model]
    assert declared(config.input) == inputs
    assert {tensor.name for tensor in config.input if not tensor.optional} == required
    assert declared(config.output) == outputs


def test_an_ensemble_is_called_what_its_directory_is_called(name, ensemble):
    assert ensemble.name in ("", name)
    assert ensemble.platform == "ensemble"
    assert (MODEL_REPOSITORY / name / "1" / ".gitkeep").is_file()


def test_the_steps_follow_each_other(name, ensemble):
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == STEPS[name]


def test_an_ensemble_takes_one_row_a_request(ensemble):
    assert ensemble.max_batch_size == 1


def test_every_step_is_handed_what_it_needs_and_it_fits(ensemble):
    for i, step in enumerate(ensemble.ensemble_scheduling.step):
        known = tensors_after(ensemble, i)
        inputs, required, _ = PROMISED[step.model_name]
        assert required <= step.input_map.keys()
        for name, tensor in step.input_map.items():
            assert known[tensor] == inputs[name], f"{step.model_name}: {name}"


def test_no_tensor_is_made_twice(ensemble):
    for i, step in enumerate(ensemble.ensemble_scheduling.step):
        assert not tensors_after(ensemble, i).keys() & set(step.output_map.values())


def test_every_input_is_used_and_every_output_is_made(ensemble):
    steps = ensemble.ensemble_scheduling.step
    assert declared(ensemble.input).keys() <= {tensor for step in steps for tensor in step.input_map.values()}
    made = tensors_after(ensemble, len(steps))
    for name, tensor in declared(ensemble.output).items():
        assert made[name] == tensor


def test_a_clone_speaks_with_the_prompt_and_the_transcript_of_the_recording():
    clone = read_config(MODEL_REPOSITORY / VOICE_CLONE)
    *_, encoder, base = clone.ensemble_scheduling.step
    assert {name: base.input_map[name] for name in PROMPT} == {
        name: encoder.output_map[name] for name in PROMPT
    }
    assert encoder.input_map["ref_text"] == base.input_map["ref_text"] == "ref_text"
    assert set(base.input_map) == (SPEAKING | PROMPT).keys()


def test_a_config_says_that_a_running_step_is_not_cancelled(name):
    text = (MODEL_REPOSITORY / name / "config.pbtxt").read_text(encoding="utf-8")
    assert "Triton does not cancel the step of an ensemble that is running" in text
