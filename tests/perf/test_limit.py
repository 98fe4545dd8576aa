"""The physical limit follows from what a frame must read and compute, and from nothing else."""

import pytest

from limit import PREDICTOR_PASSES, Limit, Speeds, Work, language_weights

SPEEDS = Speeds(bytes_per_s=1e9, operations_per_s={"float32": 1e10, "bfloat16": 4e10})
WORK = Work(language_weights=10_000_000, codec_weights=12_000_000, codec_operations=100_000_000)


def test_the_predictor_is_read_for_every_code_and_a_head_once() -> None:
    sizes = {
        "talker.model.layers.0.mlp.up_proj.weight": [20, 10],
        "talker.codec_head.weight": [30, 10],
        "talker.code_predictor.model.layers.0.mlp.up_proj.weight": [4, 5],
        "talker.code_predictor.small_to_mtp_projection.weight": [5, 2],
        "talker.code_predictor.lm_head.3.weight": [7, 5],
    }
    assert language_weights(sizes) == 200 + 300 + (20 + 10) * PREDICTOR_PASSES + 35


def test_an_embedding_is_looked_up_and_the_text_was_projected_before() -> None:
    sizes = {
        "talker.model.text_embedding.weight": [768, 48],
        "talker.code_predictor.model.codec_embedding.0.weight": [2048, 64],
        "talker.text_projection.linear_fc1.weight": [48, 48],
        "talker.model.norm.weight": [64],
        "speaker_encoder.conv.weight": [3, 3],
    }
    assert language_weights(sizes) == 0


def test_alone_a_frame_waits_for_memory_and_in_a_large_batch_for_products() -> None:
    alone, many = (Limit.of(WORK, SPEEDS, batch, "bfloat16", "bfloat16") for batch in (1, 64))
    assert alone.language_models_ms == alone.reading_ms == pytest.approx(20)
    assert many.language_models_ms == many.computing_ms == pytest.approx(0.5)


def test_int8_weights_are_half_as_long_to_read() -> None:
    assert Limit.of(WORK, SPEEDS, 1, "int8", "bfloat16").reading_ms == pytest.approx(10)


def test_the_limit_is_that_of_the_best_round() -> None:
    better = Speeds(2e9, {"float32": 5e9, "bfloat16": 8e10})
    assert Speeds.best([SPEEDS, better]) == Speeds(2e9, {"float32": 1e10, "bfloat16": 8e10})
