"""Settings: strict, frozen, and the same after a way through YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparseg.config import (
    Config,
    dump_yaml,
    load_yaml,
    merge,
    override,
    parse_config,
    parse_yaml,
    to_yaml,
)
from sparseg.errors import ConfigError
from sparseg.models.config import SegmenterConfig
from sparseg.preprocessing.config import PAPER_ABDOMEN_CT
from sparseg.training.config import TrainConfig


class Inner(Config):
    rate: float = 0.5


class Outer(Config):
    name: str = "a"
    inner: Inner = Inner()


def test_unknown_key_is_refused_and_named() -> None:
    with pytest.raises(ConfigError, match=r"^run\.yaml: nmae: unknown configuration key.*name, inner"):
        parse_config(Outer, {"nmae": "b"}, where="run.yaml")


def test_nested_field_is_named_with_its_value() -> None:
    with pytest.raises(ConfigError, match=r"^inner\.rate: .*; received 'fast'") as caught:
        parse_config(Outer, {"inner": {"rate": "fast"}})
    assert "\n" not in str(caught.value)


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    "config",
    [
        Outer(name="b", inner=Inner(rate=0.1)),
        SegmenterConfig(keep_ratio=(0.5, 0.25, 0.1), patch_size=(8, 8, 4)),
        TrainConfig(preprocess=PAPER_ABDOMEN_CT, model={"keep_ratio": 0.25}, max_minutes=3.5),
    ],
)
def test_yaml_round_trip(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert parse_config(type(config), load_yaml(file)) == config


def test_empty_file_is_no_settings(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert load_yaml(tmp_path / "c.yaml") == {}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (b"- 1\n", "must be a mapping"),
        (b"a: [1\n", "valid YAML"),
        (b"\xff\xfe\x00", "valid YAML"),
        (b"a: !!python/object/apply:os.getcwd []\n", "valid YAML"),
    ],
)
def test_bad_files_are_refused(text: bytes, rule: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=rule) as caught:
        load_yaml(file)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must exist"):
        load_yaml(tmp_path / "none.yaml")


def test_override_sets_deep_values_of_the_right_type_and_leaves_the_original() -> None:
    base: dict[str, Any] = {"a": {"b": 1, "c": 2}}
    changed = override(base, ["a.b=2.5", "a.d=[1, 2]", "e.f=true", "g=x=y"])
    assert changed == {"a": {"b": 2.5, "c": 2, "d": [1, 2]}, "e": {"f": True}, "g": "x=y"}
    assert base == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize("text", ["a.b", "a.b=[1", "a.b.c=1"])
def test_override_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        override({"a": {"b": 1}}, [text])


def test_merge_goes_mapping_by_mapping() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert merge(base, {"a": {"c": 3}, "d": [2], "e": 4}) == {"a": {"b": 1, "c": 3}, "d": [2], "e": 4}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1]}


def test_exponents_are_numbers_and_such_text_is_quoted() -> None:
    """YAML 1.1 reads 1e-3 and 1.5e3 as text; YAML 1.2 does not."""
    values = override({}, ["optimizer.lr=1e-3", "model.keep_ratio=5e-1"])
    settings = parse_config(TrainConfig, values)
    assert (settings.optimizer.lr, settings.model["keep_ratio"]) == (1e-3, 0.5)
    assert parse_yaml("[1.5e3, -2E4, .5e+1, 1e, 0x1e, '1e3', 1e3x]") == [
        1.5e3,
        -2e4,
        5.0,
        "1e",
        30,
        "1e3",
        "1e3x",
    ]
    assert parse_yaml(dump_yaml({"name": "1e3", "value": 1e3})) == {"name": "1e3", "value": 1000.0}


def test_a_key_given_twice_is_refused_but_not_one_laid_over_another(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("optimizer:\n  lr: 1\n  warmup_steps: 2\n  lr: 3\n")
    with pytest.raises(ConfigError, match="key 'lr' stands twice"):
        load_yaml(file)
    file.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n")
    assert load_yaml(file) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}}
