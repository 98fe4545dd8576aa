"""One cluster for all these tests: it takes longer to start than to try."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from real_cluster import Cluster


@pytest.fixture(scope="session")
def the_cluster(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(the_cluster: Cluster) -> Cluster:
    """Whole again, whatever the test before did to it."""
    the_cluster.recover()
    return the_cluster
