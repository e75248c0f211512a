"""Settings of all tests, and where they find the data that is not part of the repository."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Hypothesis fails examples that take longer than 200 ms; how long one takes says nothing here.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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
