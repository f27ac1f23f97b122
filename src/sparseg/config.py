"""Base of all settings: strict pydantic models that read and write YAML; an unknown key is an error."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sparseg.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Frozen settings. Fields are keyword-only; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-3 as a number, as YAML 1.2 does."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(None, None, f"key {key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes text which `_Loader` would read as a number."""


_EXPONENT = re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Read plain YAML values.

    Raises:
        yaml.YAMLError: not YAML, more than plain values, or a key given twice.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def dump_yaml(value: Any, **options: Any) -> str:
    """Write plain values so that `parse_yaml` reads the same; `options` are those of `yaml.dump`."""
    text: str = yaml.dump(value, Dumper=_Dumper, **options)
    return text


def parse_config(kind: type[ConfigT], values: Mapping[str, Any], *, where: object = "") -> ConfigT:
    """Validate `values` as `kind`.

    Raises:
        ConfigError: names the first offending field, its value and the rule.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        # A rule between fields has no field of its own; its message already names the values.
        raise ConfigError(
            _rule_of(first["type"], first["msg"], kind),
            received=repr(first.get("input")) if field else None,
            remedy="see the configuration reference in docs/reference/configuration.md",
            where=": ".join(part for part in (str(where), field) if part),
        ) from None


def _rule_of(error_type: str, message: str, kind: type[Config]) -> str:
    if error_type == "extra_forbidden":
        return f"unknown configuration key (known at the top: {', '.join(kind.model_fields)})"
    return message.removeprefix("Value error, ").removeprefix("Input should be").strip()


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: missing file, invalid YAML, or not a mapping.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("the configuration file must exist", where=path, remedy="check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the configuration must be valid YAML",
            received=" ".join(str(error).split()),
            where=path,
            remedy="correct the file",
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            "the configuration must be a mapping of keys to values",
            received=values,
            where=path,
            remedy="write lines like `preset: vit_tiny_p8`",
        )
    return values


def override(values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return `values` with `a.b.c=value` assignments applied; values are parsed as YAML.

    Raises:
        ConfigError: an assignment without `=` or through something that is not a mapping.
    """
    result = _copy_mapping(values)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(
                "an override must read key=value", received=assignment, remedy="e.g. optimizer.lr=1e-3"
            )
        try:
            value = parse_yaml(text)
        except yaml.YAMLError:
            raise ConfigError(
                "an override's value must be valid YAML", received=assignment, remedy="e.g. optimizer.lr=1e-3"
            ) from None
        target = result
        *parents, last = key.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(
                    "an override must go through mappings only",
                    received=assignment,
                    where=key,
                    remedy="see docs/reference/configuration.md for the keys",
                )
        target[last] = value
    return result


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `overlay` laid over it, mapping by mapping."""
    result = _copy_mapping(base)
    for key, value in overlay.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return result


def _copy_mapping(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _copy_mapping(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }


def to_yaml(config: Config) -> str:
    """Return the settings as YAML text in field order."""
    return dump_yaml(config.model_dump(mode="json"), sort_keys=False)
