"""The config is checked before anything runs, and the rules pass Snakemake's own linter."""

import pytest
import yaml
from repository import ROOT
from settings import refuse_repeated_keys, typed, validated
from snakemake.cli import parse_config
from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config

SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"


def config(*changes):
    merged = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for change in changes:
        update_config(merged, change)
    return merged


def refusal(change) -> str:
    with pytest.raises(WorkflowError) as caught:
        validated(config(change), SCHEMA)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["config", "smoke", "paper"])
def test_the_configs_of_the_repository_are_valid(name):
    merged = config(yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()))
    assert validated(merged, SCHEMA) is merged


def test_a_typo_names_the_key_and_the_nearest_known_one():
    assert refusal({"development": {"tiny_imagenet": {"gama": 1}}}) == (
        "config: unknown key 'development.tiny_imagenet.gama'; did you mean 'gamma'?"
    )
    assert refusal({"sed": 1}) == "config: unknown key 'sed'; did you mean 'seed'?"


def test_an_unknown_key_without_a_near_one_lists_the_known_ones():
    message = refusal({"imagenet": {"analysis": {"zzz": 1}}})
    assert "'imagenet.analysis.zzz'" in message and "map_neighbors" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": -1}, ("seed", "-1", "minimum of 0")),
        ({"seed": "zero"}, ("seed", "'zero'", "integer")),
        ({"arithmetic": {"train_share": 1.5}}, ("arithmetic.train_share", "1.5", "share of all")),
        ({"arithmetic": {"rise": 0}}, ("arithmetic.rise", "= 0 ")),
        ({"arithmetic": {"network": {"prime": 12}}}, ("arithmetic.network.prime", "= 12 ")),
        ({"development": {"tiny_imagenet": {"pairs": 3}}}, ("tiny_imagenet.pairs", "= 3 ")),
        ({"imagenet": {"model": "resnet50"}}, ("imagenet.model", "'resnet50'", "timm:<name>")),
        ({"mislabel": {"sampling": {"engine": "gpu"}}}, ("engine", "'gpu'")),
    ],
)
def test_a_value_out_of_range_names_key_value_and_what_is_allowed(change, words):
    message = refusal(change)
    for word in words:
        assert word in message


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.stem)
def test_no_config_of_the_repository_says_two_things(tmp_path, path):
    refuse_repeated_keys(path)
    twice = tmp_path / path.name  # the same file does not pass with its keys repeated
    twice.write_text(2 * path.read_text())
    with pytest.raises(WorkflowError, match="is there a second time"):
        refuse_repeated_keys(twice)


def test_the_papers_size_is_sampled_on_a_gpu():
    found = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    assert found["development"]["tiny_imagenet"]["device"] == "cuda"


@pytest.mark.parametrize(
    "text",
    ["a: 1\nb:\n  c: 1\n  d: [1]\n  c: 2\n", "a: 1\nb:\n- {c: 1, d: 2}\n- {c: 1,\n   c: 2}\n"],
)
def test_a_key_that_is_there_twice_is_named_with_its_line(tmp_path, text):
    (tmp_path / "two.yaml").write_text(text)
    with pytest.raises(WorkflowError) as caught:
        refuse_repeated_keys(tmp_path / "two.yaml")
    first = 3 if "- " not in text else 4
    assert str(caught.value).startswith(
        f"{tmp_path}/two.yaml, line 5: 'c' is there a second time, after line {first}; "
    )


def test_what_braces_on_the_command_line_hold_has_the_types_of_a_file():
    given = parse_config(
        [
            "seed=3",
            'imagenet={per_class: 5, kernel: {headline: 1.0e+4}, controls: [], weights: "7"}',
        ]
    )
    assert given["imagenet"]["per_class"] == "5"  # what Snakemake makes of it
    merged = config(given)
    found = typed(merged, given)
    assert found["imagenet"]["per_class"] == 5 and found["imagenet"]["kernel"]["headline"] == 1e4
    assert found["imagenet"]["controls"] == [] and found["imagenet"]["model"] == "inception_v1"
    assert found["development"] == merged["development"]
    with pytest.raises(WorkflowError, match="imagenet.per_class = '5' is not valid"):
        validated(merged, SCHEMA)
    found["imagenet"]["weights"] = "pretrained"
    assert validated(found, SCHEMA)["seed"] == 3


def test_a_missing_key_is_named():
    incomplete = config()
    del incomplete["development"]["tiny_imagenet"]["gamma"]
    with pytest.raises(WorkflowError, match="tiny_imagenet: 'gamma' is a required property"):
        validated(incomplete, SCHEMA)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"train_shar": 1}, "unknown key 'arithmetic.train_shar'; did you mean 'train_share'?"),
        ({"neighbors": 0}, "arithmetic.neighbors = 0 is not valid"),
    ],
)
def test_snakemake_stops_at_a_bad_config_with_that_line(copy, tmp_path, change, line):
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"arithmetic": change}))
    status, said = copy.snakemake("all", "--dry-run", "--configfile", str(tmp_path / "bad.yaml"))
    assert status != 0
    assert f"\nconfig: {line}" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_snakemake_stops_at_a_config_file_that_says_two_things(copy, tmp_path):
    (tmp_path / "two.yaml").write_text("imagenet:\n  per_class: 1\nseed: 1\nimagenet: {}\n")
    status, said = copy.snakemake("all", "--dry-run", "--configfile", str(tmp_path / "two.yaml"))
    assert status != 0 and "Traceback" not in said
    assert f"{tmp_path}/two.yaml, line 4: 'imagenet' is there a second time, after line 1" in said


@pytest.mark.slow
def test_snakemake_finds_nothing_to_complain_of_in_the_rules(copy):
    status, said = copy.snakemake("--lint")
    assert status == 0, said
