"""Read, override and write a :class:`~pspnet_fast.engine.config.TrainConfig`.

A configuration is YAML with the sections data, model, optim, eval and run. What a file leaves out keeps its default;
an unknown key or a value of the wrong type or range is an error that names the file, the key and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pspnet_fast.files import replacing

from .config import TrainConfig
from .errors import ConfigError

SECTIONS: dict[str, Any] = {name: info.annotation for name, info in TrainConfig.model_fields.items()}
KEYS = [f"{section}.{key}" for section, kind in SECTIONS.items() for key in kind.model_fields]


def ready_configs() -> dict[str, Path]:
    """The configurations shipped with the package, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))}


def load_config(name: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """Read a configuration by path or ready name and apply overrides like ``optim.lr=0.02``.

    Raises:
        ConfigError: missing file, broken YAML, unknown key, value of the wrong type or out of range.
    """
    ready = ready_configs()
    path = Path(name) if Path(name).is_file() else ready.get(str(name))
    if path is None:
        near = get_close_matches(str(name), ready, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no configuration {str(name)!r}: it is neither a file nor one of {', '.join(ready)}{hint}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    tree = _parse_yaml(text, str(path))
    return config_from_dict(tree if tree is not None else {}, overrides, source=str(path))


def config_from_dict(tree: Any, overrides: Iterable[str] = (), *, source: str = "configuration") -> TrainConfig:
    """Build and check a configuration from nested mappings (see :meth:`TrainConfig.to_dict`) and overrides."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source}: holds {type(tree).__name__}, not the sections {', '.join(SECTIONS)}")
    merged: dict[Any, Any] = {}
    for section, options in tree.items():
        if section not in SECTIONS:
            raise ConfigError(f"{source}: unknown section {section!r}{_nearest_section(str(section))}")
        if options is not None and not isinstance(options, Mapping):
            raise ConfigError(f"{source}: section {section!r} must hold options, not {options!r}")
        merged[section] = dict(options or {})
    changes = dict(map(parse_override, overrides))
    for key, value in changes.items():
        section, _, name = key.partition(".")
        merged.setdefault(section, {})[name] = value
    try:
        return TrainConfig.model_validate(merged).check()
    except ValidationError as error:
        raise ConfigError(_explain(error, merged, source, changes)) from error


def parse_override(text: str) -> tuple[str, Any]:
    """``optim.lr=0.02`` as its key and value; :class:`ConfigError` for another form or an unknown key."""
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals:
        raise ConfigError(f"override {text!r} must look like optim.lr=0.02")
    if key not in KEYS:
        raise ConfigError(f"override: unknown key {key!r}{_nearest_keys(key)}")
    return key, _parse_yaml(raw, f"override {text!r}")


def dump_config(config: TrainConfig, path: str | Path) -> None:
    """Write the full configuration; :func:`load_config` reads back an equal one."""
    with replacing(path) as file:
        yaml.safe_dump(config.to_dict(), file, sort_keys=False)


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``section.key: old -> new`` for each option of both :meth:`TrainConfig.to_dict` trees that differs."""
    return [
        f"{section}.{key}: {old[section][key]} -> {value}"
        for section, options in new.items()
        for key, value in options.items()
        if old[section].get(key, value) != value
    ]


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML without code and without a key that hides an earlier one of its name."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value!r} is given twice; merge the two", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeyLoader)
    # PyYAML lets its constructors' own errors through, for an impossible date for instance.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error


def _explain(error: ValidationError, tree: Mapping[Any, Any], source: str, overrides: Mapping[str, Any]) -> str:
    """A line for each key that pydantic refuses."""
    expected: dict[str, list[str]] = {}  # the alternatives of a union are separate errors of one key
    lines = []
    for item in error.errors():
        key = ".".join(map(str, item["loc"][:2]))
        if item["type"] == "extra_forbidden" and len(item["loc"]) > 2:
            expected.setdefault(key, []).append(f"have no {item['loc'][-1]!r}")
        elif item["type"] in ("extra_forbidden", "invalid_key"):
            lines.append(f"{source}: unknown key {key!r}{_nearest_keys(key)}")
        elif "." not in key:  # a rule about several options of a section, which names them
            lines.append(f"{source}: {item['msg'].removeprefix('Value error, ')}")
        else:
            expected.setdefault(key, []).append(_requirement(item["msg"]))
    for key, texts in expected.items():
        section, name = key.split(".", 1)
        alternatives = " or ".join(dict.fromkeys(texts))
        origin = "override" if key in overrides else source
        lines.append(f"{origin}: {key} = {tree[section][name]!r} does not fit: it must {alternatives}")
    return "\n".join(lines)


def _requirement(message: str) -> str:
    """pydantic's "Input should be a valid tuple" as "be a valid list"."""
    if message == "Field required":  # an entry of a tuple
        return "have more entries"
    if "discriminator" in message:
        return "have a name"
    if "expected tags: " in message:
        return f"be {message.partition('expected tags: ')[2]}"
    return message.partition(" should ")[2].replace("tuple", "list").replace(" after validation", "")


def _nearest_section(name: str) -> str:
    near = get_close_matches(name, SECTIONS, n=1)
    return f"; did you mean {near[0]}?" if near else _nearest_keys(name)


def _nearest_keys(wrong: str) -> str:
    """The keys whose name resembles that of ``wrong``: in its own section first, else in every section that has it."""
    section, _, name = wrong.rpartition(".")
    scores = {}
    for key in KEYS:
        known_section, known_name = key.split(".")
        alike = SequenceMatcher(None, name, known_name).ratio()
        if alike >= 0.6:
            scores[key] = alike + SequenceMatcher(None, section, known_section).ratio()
    if scores:
        return f"; did you mean {' or '.join(key for key in scores if scores[key] == max(scores.values()))}?"
    return f"; known: {', '.join(key for key in KEYS if key.startswith(f'{section}.')) or ', '.join(SECTIONS)}"
