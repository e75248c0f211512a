"""Folders with odd names, and image folders whose content changes."""

import os

import numpy as np
import pytest
from PIL import Image
from repository import SMOKE, Copy

pytestmark = pytest.mark.slow
RESULTS = "results/my 'run'"


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A copy in a folder that a shell would take for several words, images in another."""
    folder = tmp_path_factory.mktemp("odd") / "ä b'c"
    folder.mkdir()
    repository = Copy(folder)
    for wnid in ("n01440764", "n01443537"):
        (folder / "my photos (1)" / wnid).mkdir(parents=True)
        image = Image.fromarray(np.full((64, 64, 3), 128, np.uint8))
        image.save(folder / "my photos (1)" / wnid / "a.png")
    config = f"""
results: "{RESULTS}"
figures: "{RESULTS}/figures"
compare: "{RESULTS}/compare.csv"
imagenet: {{image_folder: "my photos (1)", controls: []}}
"""
    (folder / "my config.yaml").write_text(config)
    return repository


def own(*arguments: str) -> tuple[str, ...]:
    return (*arguments, *SMOKE, "my config.yaml")


def test_paths_with_spaces_quotes_and_umlauts_reach_the_commands_whole(odd):
    """All is planned; the steps that read the images for their colors are run."""
    assert len(odd.planned(*own())) > 40
    colors = f"{RESULTS}/imagenet/colors.csv"
    status, said = odd.snakemake(*own(colors))
    assert status == 0, said
    table = (odd.folder / colors).read_text().splitlines()
    looks = ",".join(["53.73,0.00,0.00", *["-11.51"] * 16])  # gray, and the log of no edges at all
    assert table[0].startswith("name,L,a,b,texture_0,")
    assert table[1:] == [f"n0144{n}/a.png,{looks}" for n in ("0764", "3537")]
    assert (odd.folder / RESULTS / "logs/gamma_sweep_colors.log").exists()
    kept = {"config", "envs", "workflow", "src", "profiles", "results", "Snakefile"}
    kept |= {"my photos (1)", "my config.yaml", ".snakemake"}
    assert {path.name for path in odd.folder.iterdir()} == kept


def test_a_replaced_image_runs_what_was_computed_from_it_again(odd):
    colors = f"{RESULTS}/imagenet/colors.csv"
    status, said = odd.snakemake(*own(colors))
    assert status == 0, said
    status, said = odd.snakemake(*own(colors, "--dry-run"))
    assert "Nothing to be done" in said
    path = odd.folder / "my photos (1)/n01440764/a.png"
    before = path.stat()
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    status, said = odd.snakemake(*own(colors))
    assert status == 0, said
    assert "rule imagenet_manifest:" in said and "rule gamma_sweep_colors:" in said
    assert "n01440764/a.png,100.00," in (odd.folder / colors).read_text()
