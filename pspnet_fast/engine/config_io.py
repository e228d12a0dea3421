"""Read, override, check and write a :class:`~pspnet_fast.engine.config.TrainConfig`.

A configuration is YAML with the sections data, model, optim, eval and run. What a file leaves out keeps its default;
what the dataclasses do not know is an error that names the file and the nearest known keys.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from .config import TrainConfig
from .errors import ConfigError


def ready_configs() -> dict[str, Path]:
    """The configurations shipped with the package, by name."""
    folder = Path(str(resources.files("pspnet_fast"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str | Path) -> Path:
    """The file behind a path or the name of a ready configuration; :class:`ConfigError` if there is neither."""
    path, ready = Path(name), ready_configs()
    if path.is_file():
        return path
    if str(name) in ready:
        return ready[str(name)]
    hint = _nearest(str(name), ready)
    raise ConfigError(f"no configuration {str(name)!r}: it is neither a file nor one of {', '.join(ready)}{hint}")


def load_config(name: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """Read a configuration by path or ready name and apply overrides like ``optim.lr=0.02``.

    Raises:
        ConfigError: missing file, broken YAML, unknown key, value of the wrong type or out of range.
    """
    path = find_config(name)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    return config_from_dict(tree if tree is not None else {}, overrides, source=str(path))


def config_from_dict(tree: Any, overrides: Iterable[str] = (), *, source: str = "configuration") -> TrainConfig:
    """Build and check a configuration from nested mappings (see :meth:`TrainConfig.to_dict`) and overrides."""
    config = TrainConfig()
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source}: holds {type(tree).__name__}, not the sections {', '.join(_sections())}")
    for section, options in tree.items():
        if section not in _sections():
            raise ConfigError(f"{source}: unknown section {section!r}{_nearest(str(section), _sections())}")
        if options is not None and not isinstance(options, Mapping):
            raise ConfigError(f"{source}: section {section!r} must hold options, not {options!r}")
        for key, value in (options or {}).items():
            _set(config, f"{section}.{key}", value, source)
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals:
            raise ConfigError(f"override {text!r} must look like optim.lr=0.02")
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {text!r}: the value is not YAML: {error}") from error
        _set(config, key.strip(), value, "override")
    return config.check()


def dump_config(config: TrainConfig, path: str | Path) -> None:
    """Write the full configuration; :func:`load_config` reads back an equal one."""
    Path(path).write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``section.key: old -> new`` for each option that differs between two :meth:`TrainConfig.to_dict` trees."""
    return [
        f"{section}.{key}: {old.get(section, {}).get(key)} -> {value}"
        for section, options in new.items()
        for key, value in options.items()
        if old.get(section, {}).get(key) != value
    ]


def _set(config: TrainConfig, key: str, value: Any, source: str) -> None:
    known = _known_keys()
    if key not in known:
        raise ConfigError(f"{source}: unknown key {key!r}{_nearest(key, known)}")
    section, name = key.split(".", 1)
    setattr(getattr(config, section), name, _coerce(value, known[key], key, source))


def _sections() -> list[str]:
    return [item.name for item in fields(TrainConfig)]


def _known_keys() -> dict[str, Any]:
    """Type of each option by its dotted key."""
    return {
        f"{section}.{key}": hint
        for section, kind in get_type_hints(TrainConfig).items()
        if is_dataclass(kind)
        for key, hint in get_type_hints(kind).items()
    }


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    leaf = name.rsplit(".", 1)[-1]
    by_leaf = {key.rsplit(".", 1)[-1]: key for key in known}
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    near += [by_leaf[match] for match in difflib.get_close_matches(leaf, by_leaf, n=3, cutoff=0.6)]
    near = list(dict.fromkeys(near))
    return f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(known)}"


def _coerce(value: Any, kind: Any, key: str, source: str) -> Any:
    """``value`` as the annotated type, or a :class:`ConfigError`; numbers are never made from booleans."""
    if get_origin(kind) in (Union, types.UnionType):
        for member in get_args(kind):
            try:
                return _coerce(value, member, key, source)
            except ConfigError:
                continue
    elif get_origin(kind) is Literal:
        if value in get_args(kind) and not isinstance(value, bool):
            return value
    elif get_origin(kind) is tuple:
        members = get_args(kind)
        if isinstance(value, (list, tuple)):
            if members[-1] is Ellipsis:
                return tuple(_coerce(item, members[0], key, source) for item in value)
            if len(members) == len(value):
                return tuple(_coerce(item, member, key, source) for item, member in zip(value, members, strict=True))
    elif kind is float:
        number = _number(value)
        if number is not None:
            return number
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, kind):
        return value
    raise ConfigError(f"{source}: {key} = {value!r} does not fit: it must be {_describe(kind)}")


def _number(value: Any) -> float | None:
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 (without a point) as text
        try:
            return float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _describe(kind: Any) -> str:
    if kind is type(None):
        return "null"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in get_args(kind))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        members = get_args(kind)
        count = "" if members[-1] is Ellipsis else f"{len(members)} "
        return f"a list of {count}{members[0].__name__}"
    return {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}[kind.__name__]
