"""One draw per row, held against transformers' own processors and torch's own multinomial."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qwen3_tts_engine.model.sampling import ANY, USUAL, DrawKind, RowSampling, draw, penalise
from qwen3_tts_engine.request import Sampling

VOCAB = 300
CPU = torch.device("cpu")
GREEDY = Sampling(do_sample=False)
SAMPLED = [
    Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    for temperature, top_k, top_p in product((0.9, 1.0, 0.1, 3.0), (0, 1, 50, 10_000), (1.0, 0.8, 0.3, 1e-9))
]
MIXED = [
    Sampling(),
    GREEDY,
    Sampling(top_k=0),
    Sampling(top_p=0.5),
    Sampling(temperature=0.2, top_k=5),
    replace(GREEDY, temperature=5.0, top_k=3, top_p=0.1),
    Sampling(temperature=2.0, top_k=0, top_p=0.9),
    Sampling(top_k=1),
]


def logits_of(rows, seed=0):
    """Some likely, some not, some ruled out, and no two rows alike."""
    logits = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    logits[:, 250:] = -torch.inf
    return logits


def noise_of(seeds):
    """Unit exponential noise, each row from a generator of its own."""
    return torch.stack(
        [torch.empty(VOCAB).exponential_(1, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def upstreams_draw(logits, sampling, seed):
    """What HF generate does with one row [1, V]."""
    if not sampling.do_sample:
        return logits.argmax(-1)
    warpers = LogitsProcessorList()
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    probabilities = warpers(None, logits).softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(probabilities, num_samples=1, generator=generator)[:, 0]


def ours(logits, samplings, seeds):
    return draw(logits, RowSampling.of(samplings, VOCAB, CPU), noise_of(seeds))


@pytest.mark.parametrize("sampling", [GREEDY, *SAMPLED], ids=str)
def test_a_row_draws_what_upstream_draws(sampling):
    for seed in range(20):
        logits = logits_of(1, seed)
        assert ours(logits, [sampling], [seed]) == upstreams_draw(logits, sampling, seed)


@pytest.mark.parametrize("seed", range(10))
def test_a_row_draws_in_company_what_it_draws_alone(seed):
    seeds = [seed * 100 + row for row in range(len(MIXED))]
    logits = logits_of(len(MIXED), seed)
    alone = [ours(logits[i : i + 1], [MIXED[i]], [seeds[i]]).item() for i in range(len(MIXED))]
    theirs = [upstreams_draw(logits[i : i + 1], MIXED[i], seeds[i]).item() for i in range(len(MIXED))]
    assert ours(logits, MIXED, seeds).tolist() == alone == theirs


@pytest.mark.parametrize("temperature", [1e-8, 1e-30, 1e-42])
def test_the_closer_to_0_a_temperature_the_likelier_the_likeliest(temperature):
    logits = logits_of(1)
    assert ours(logits, [Sampling(temperature=temperature)], [0]) == logits.argmax(-1)


def test_sampled_rows_do_draw_different_codes():
    drawn = ours(logits_of(1).expand(50, -1), [Sampling(temperature=3.0, top_k=0)] * 50, range(50))
    assert len(set(drawn.tolist())) > 5


@pytest.mark.parametrize("sampling", [*MIXED, *SAMPLED], ids=str)
def test_a_code_that_is_ruled_out_is_never_drawn(sampling):
    drawn = ours(logits_of(200), [sampling] * 200, range(200))
    assert drawn.max() < 250


def test_equal_logits_at_the_edge_of_top_k_all_stay_as_upstream_has_it():
    logits = torch.zeros(1, VOCAB)
    sampling = Sampling(top_k=3)
    drawn = [ours(logits, [sampling], [seed]).item() for seed in range(30)]
    assert drawn == [upstreams_draw(logits, sampling, seed).item() for seed in range(30)]
    assert len(set(drawn)) > 3


def test_the_code_at_the_very_edge_of_top_p_falls_as_upstream_has_it():
    logits = torch.full((1, VOCAB), -torch.inf)
    logits[:, :4] = 0.0
    sampling = Sampling(top_k=0, top_p=0.5)
    drawn = [ours(logits, [sampling], [seed]).item() for seed in range(30)]
    assert drawn == [upstreams_draw(logits, sampling, seed).item() for seed in range(30)]
    assert len(set(drawn)) == 2


def test_a_row_that_cuts_nothing_is_not_cut_because_another_is():
    logits = torch.zeros(2, VOCAB)
    free = Sampling(temperature=1.0, top_k=0, top_p=1.0)
    strict = Sampling(top_k=1, top_p=0.01)
    alone = [ours(logits[:1], [free], [seed]).item() for seed in range(30)]
    together = [ours(logits, [free, strict], [seed, 0])[0].item() for seed in range(30)]
    assert alone == together


def test_drawing_leaves_logits_and_noise_as_they_were():
    logits, noise = logits_of(len(MIXED)), noise_of(range(len(MIXED)))
    before = logits.clone(), noise.clone()
    draw(logits, RowSampling.of(MIXED, VOCAB, CPU), noise)
    assert torch.equal(logits, before[0])
    assert torch.equal(noise, before[1])


@pytest.mark.parametrize(
    ("samplings", "skipped"),
    [
        ([GREEDY, GREEDY], {"any_sampled": False, "all_sampled": False, "any_top_p": False, "num_top": 0}),
        ([Sampling(top_k=0)], {"any_sampled": True, "all_sampled": True, "any_top_p": False, "num_top": 0}),
        ([Sampling(top_k=5), Sampling(top_k=9)], {"all_sampled": True, "num_top": 9}),
        ([Sampling(top_k=5), GREEDY], {"any_sampled": True, "all_sampled": False, "num_top": 5}),
        ([Sampling(top_k=5), Sampling(top_k=0)], {"num_top": VOCAB}),
        ([GREEDY, Sampling(top_p=0.5)], {"any_top_p": True}),
        ([replace(GREEDY, top_p=0.5), Sampling()], {"any_top_p": False}),
    ],
)
def test_work_nobody_asks_for_is_skipped(samplings, skipped):
    kind = DrawKind.of(samplings, VOCAB)
    assert {name: getattr(kind, name) for name in skipped} == skipped


@pytest.mark.parametrize("kind", [USUAL, ANY], ids=["usual", "any"])
def test_a_kind_that_covers_another_draws_the_same_codes(kind):
    batches = [[sampling] * 2 for sampling in [GREEDY, *SAMPLED]] + [MIXED, MIXED[:2], MIXED[1:6]]
    covered = [rows for rows in batches if kind.covers(DrawKind.of(rows, VOCAB))]
    assert covered
    for rows in covered:
        logits, noise = logits_of(len(rows)), noise_of(range(len(rows)))
        settings = RowSampling.of(rows, VOCAB, CPU)
        exact, covering = (draw(logits, settings.first(len(rows), k), noise) for k in (settings.kind, kind))
        assert torch.equal(exact, covering), rows


def test_some_recorded_kind_covers_whatever_is_asked_for():
    assert all(ANY.covers(DrawKind.of(rows, VOCAB)) for rows in ([Sampling(top_k=0, top_p=0.5)], MIXED))
    assert USUAL.covers(DrawKind.of([Sampling(), GREEDY], VOCAB))
    assert not USUAL.covers(DrawKind.of([Sampling(top_k=65)], VOCAB))
    assert not USUAL.covers(DrawKind.of([Sampling(top_k=0)], VOCAB))


@pytest.mark.parametrize("penalty", [1.0, 1.05, 2.0, 0.5])
def test_spoken_codes_are_weakened_as_transformers_weakens_them(penalty):
    logits = logits_of(1)
    spoken = torch.tensor([[3, 17, 17, 260]])
    heard = torch.zeros(1, VOCAB, dtype=torch.bool).scatter(1, spoken, True)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(spoken, logits)
    assert torch.equal(penalise(logits, heard, torch.tensor([[penalty]])), theirs)


def test_every_row_has_its_own_penalty_and_its_own_memory():
    logits, penalties = logits_of(3), [1.05, 1.0, 1.7]
    heard = torch.rand(3, VOCAB, generator=torch.Generator().manual_seed(1)) < 0.3
    together = penalise(logits, heard, torch.tensor(penalties)[:, None])
    for row, penalty in enumerate(penalties):
        spoken = heard[row].nonzero().T
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(spoken, logits[row : row + 1])
        assert torch.equal(together[row : row + 1], theirs)


def test_a_frame_is_penalised_first_and_warped_after_as_in_generate():
    logits, sampling = logits_of(1), Sampling(temperature=0.7, top_k=20, top_p=0.8)
    spoken = logits.topk(5).indices
    heard = torch.zeros(1, VOCAB, dtype=torch.bool).scatter(1, spoken, True)
    for seed in range(20):
        weakened = RepetitionPenaltyLogitsProcessor(3.0)(spoken, logits)
        drawn = ours(penalise(logits, heard, torch.tensor([[3.0]])), [sampling], [seed])
        assert drawn == upstreams_draw(weakened, sampling, seed)
