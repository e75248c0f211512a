"""Settings of all tests, and where they find the data that is not part of the repository."""

import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["browser"]

# One thread a process: two test processes and their jobs share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hypothesis fails examples that take longer than 200 ms; how long one takes says nothing here.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


# The files that take longest, in the order in which they begin; the rest goes on beside them.
LONGEST = ("test_dag", "test_slurm", "test_tutorials", "test_arithmetic", "test_folders")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left with one at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of images, weights and corpora beside the repository; skips without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data (images, weights, WordNet), which is not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def nltk_data() -> Path:
    """A folder that holds NLTK's WordNet: NLTK_DATA or the shared one; skips without it."""
    given = os.environ.get("NLTK_DATA", "").split(os.pathsep)
    for folder in [Path(path) for path in given if path] + [SHARED_DATA / "nltk_data"]:
        corpora = folder / "corpora"
        if (corpora / "wordnet.zip").is_file() or (corpora / "wordnet").is_dir():
            return folder
    pytest.skip("needs WordNet in NLTK_DATA or in ../shared/data/nltk_data, and finds neither")


@pytest.fixture
def full_disk():
    """A context in which no file of this process can grow past a number of bytes.

    The system refuses the write itself, below every library, as it does on a full disk.
    """

    @contextmanager
    def limited(size: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
