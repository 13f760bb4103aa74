"""The cluster tests: a real Slurm, a real Apptainer, a real image. `make test-cluster` starts all that."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.cluster import Campaign, make_campaign
from support.runs import digest, smalti


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the cluster the tests are there, and say how to run them."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if "SMALTI_CLUSTER_IMAGE" not in os.environ:
                item.add_marker(pytest.mark.skip(reason="needs root and a real Slurm: run `make test-cluster`"))


@pytest.fixture(scope="session")
def image() -> Path:
    """The CPU image built from containers/."""
    path = Path(os.environ["SMALTI_CLUSTER_IMAGE"])
    assert path.is_file()
    return path


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all users may enter: jobs and containers work there."""
    folder = tmp_path_factory.mktemp("cluster")
    smalti("demo", folder / "demo", "--prepare-only")
    return folder


@pytest.fixture(scope="session")
def reference(workshop: Path, image: Path) -> Path:
    """The demo region, run on this machine without Slurm and without a container, up to the embeddings' mosaic."""
    run = make_campaign(workshop / "reference", workshop, image).root
    smalti("run", run)
    return run


@pytest.fixture(scope="session")
def expected(reference: Path) -> dict[str, str]:
    """SHA-256 of every file of the reference."""
    return digest(reference)


@pytest.fixture
def fetched(request: pytest.FixtureRequest, workshop: Path, image: Path, reference: Path) -> Campaign:
    """A run that is planned and fetched, so that a test can begin with the engine."""
    campaign = make_campaign(workshop / request.node.name.replace("[", "-").replace("]", ""), workshop, image)
    for name in ("plan.json", "model.json"):
        shutil.copy2(reference / name, campaign.root / name)
    for name in ("items", "tiles"):
        shutil.copytree(reference / name, campaign.root / name)
    return campaign
