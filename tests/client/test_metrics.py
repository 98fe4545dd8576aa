"""Pages of metrics as the client reads them."""

import pytest

from qwen3_tts_client.metrics import Watch, page_in


def watch(before: str, after: str) -> Watch:
    return Watch(page_in(before, "a:8002"), page_in(after, "a:8002"))


def test_labels_may_hold_whatever_a_route_may() -> None:
    page = page_in('sent{route="/v1/{name}, or \\"all\\"",status="200"} 7\n# TYPE sent counter\n', "a:8080")
    assert page == {
        ("sent", (("instance", "a:8080"), ("route", '/v1/{name}, or \\"all\\"'), ("status", "200"))): 7
    }


def test_growth_is_by_label_and_of_those_that_match() -> None:
    look = watch(
        'done{m="a",how="ok"} 3\ndone{m="b",how="ok"} 4',
        'done{m="a",how="ok"} 5\ndone{m="b",how="ok"} 4\ndone{m="b",how="bad"} 2',
    )
    assert look.growth("done", "m") == {"a": 2, "b": 2}
    assert look.growth("done", "m", how="o.") == {"a": 2, "b": 0}
    assert look.growth("done") == {"": 4}
    assert look.now("done", "m", "instance") == {"a, a:8002": 5, "b, a:8002": 6}
    assert look.growth("never") == {}


def test_a_counter_that_fell_has_begun_anew() -> None:
    assert watch("done 90", "done 4").growth("done") == {"": 4}


@pytest.mark.parametrize(("share", "value"), [(0.25, 0.05), (0.5, 0.1), (0.7, 0.3), (0.95, 0.5)])
def test_a_quantile_lies_within_its_bucket_as_prometheus_has_it(share: float, value: float) -> None:
    after = 's_bucket{m="a",le="0.1"} 50\ns_bucket{m="a",le="0.5"} 90\ns_bucket{m="a",le="+Inf"} 100'
    assert watch("", after).quantile(share, "s", "m") == {"a": pytest.approx(value)}


def test_there_is_no_quantile_of_nothing() -> None:
    page = 's_bucket{m="a",le="0.1"} 50\ns_bucket{m="a",le="+Inf"} 100'
    assert watch(page, page).quantile(0.5, "s", "m") == {}
