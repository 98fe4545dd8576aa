"""The plan of docs/scaling.md: its arithmetic, and that the page says what the arithmetic does."""

import re
import sys

import pytest

from real_server import ROOT

sys.path.insert(0, str(ROOT / "perf"))

from capacity import Gateway, Need, Source, measured_gateway, tables, tiny_on_this_cpu

PAGE = (ROOT / "docs" / "scaling.md").read_text()
GATEWAY = Gateway({"pcm": 0.0035, "mp3": 0.014})


def test_the_page_has_the_tables_that_the_results_give():
    shown = PAGE.split("<!-- the output of perf/capacity.py -->\n")[1].split("\n<!-- end -->")[0]
    assert shown.strip() == "\n\n".join(tables())


def test_the_page_quotes_the_gateways_cpu_as_measured():
    for sound, cpu_s in measured_gateway().cpu_s.items():
        assert f"{float(f'{cpu_s:.2g}'):g} for {sound}" in PAGE


@pytest.mark.parametrize(
    ("audio_s_per_s", "slots", "streams"),
    [(40.0, 16, 11.2), (10.0, 16, 7.0), (0.5, 16, 0.35)],
    ids=["slots", "speed", "too slow for anybody"],
)
def test_a_replica_is_bound_by_its_slots_or_its_speed(audio_s_per_s, slots, streams):
    assert Source("x", audio_s_per_s, slots, "").streams == pytest.approx(streams)


def test_a_stream_more_than_fits_is_a_replica_more():
    source = Source("x", 10.0, 16, "")
    assert [Need.of(streams, source, GATEWAY, "pcm").replicas for streams in (7, 8, 14, 15)] == [1, 2, 2, 3]


def test_mp3_takes_more_cores_and_less_network():
    pcm, mp3 = (Need.of(1000, tiny_on_this_cpu(), GATEWAY, sound) for sound in ("pcm", "mp3"))
    assert (pcm.gateway_cores, mp3.gateway_cores) == (pytest.approx(5.0), pytest.approx(20.0))
    assert (pcm.external_mbit_s, mp3.external_mbit_s) == (pytest.approx(384.0), pytest.approx(128.0))


def test_the_recipe_is_the_manifests():
    pod = (ROOT / "docker/kubernetes/base/triton.yaml").read_text()
    for said in (
        "preStop: {sleep: {seconds: 15}}",
        "terminationGracePeriodSeconds: 690",
        "maxSurge: 1, maxUnavailable: 0",
    ):
        assert said in pod
        assert said in PAGE
    assert re.search(r"dns_refresh_rate: 5s", (ROOT / "docker/kubernetes/base/envoy.yaml").read_text())
