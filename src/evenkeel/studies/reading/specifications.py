"""From what a user writes to a Study: words of a command line, a TOML file, or the same as a mapping in Python."""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...catalogue import near_miss
from ...errors import ConfigError
from ...nn import TransformerConfig
from ...nn.config.axes import flat, nested
from ...schema import clean_name
from ..study import Arm, Contrast, Study
from .arms import config_of
from .axes import choices_of, labels
from .sizes import CONTEXT, DEPTH, WIDTH

_SIZES = {"context": CONTEXT, "depth": DEPTH, "d_model": WIDTH}
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smh]?)")

Choices = dict[str, Any]
Read = Callable[[str, Any], Choices]


def read_study(words: Sequence[str], **options: Any) -> Study:
    """The study that words describe: axes as axis=value,value, or one path of a TOML file.

    Every combination of the axes' values is an arm; an axis with one value changes the model of all. options: further
    keys of a study file, which take the place of the file's; None is none.
    Raises ConfigError for an unknown key, axis or value, with what was probably meant.
    """
    if not words:
        raise ConfigError(
            "nothing is compared; write axis=value,value, as in feedforward=relu,gelu, or give study.toml"
        )
    given = {name: value for name, value in options.items() if value is not None}
    if "=" in words[0]:
        return study_of({**given, "axes": _axes(words)})
    if len(words) > 1:
        raise ConfigError(
            f"{clean_name(words[0])!r} is no axis=value,value, and further words follow; give one file, or axes"
        )
    return read_file(words[0], given)


def _axes(words: Sequence[str]) -> dict[str, list[str]]:
    axes: dict[str, list[str]] = {}
    for word in words:
        axis, equals, values = word.partition("=")
        if not (axis and equals):
            raise ConfigError(f"{clean_name(word)!r} is no axis; write axis=value,value, as in feedforward=relu,gelu")
        if axis in axes:
            raise ConfigError(f"{clean_name(axis)} is given twice; write all its values in one, with commas")
        axes[axis] = [value.strip() for value in values.split(",")]
    return axes


def read_file(path: str | Path, options: Mapping[str, Any] | None = None) -> Study:
    """The study of a TOML file, whose paths are relative to its folder; options take the place of its keys."""
    path = Path(path)
    name = clean_name(str(path))
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{name} cannot be read ({error.strerror}); give a study.toml, or axis=value,value as in "
            "feedforward=relu,gelu"
        ) from error
    except (ValueError, RecursionError) as error:  # bad TOML, bad UTF-8, a name with a NUL
        raise ConfigError(f"{name} is no TOML: {error}; mend it") from error
    for key in ("data", "like"):
        if given.get(key) and isinstance(given[key], str):
            given[key] = str(path.parent / given[key])
    options = options or {}
    if options.keys() & _LENGTHS:
        given = {key: value for key, value in given.items() if key not in _LENGTHS}
    try:
        return study_of({**given, **options}, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def study_of(given: Mapping[str, Any], folder: Path = Path()) -> Study:
    """The study of a mapping with the keys of a study file. folder: what paths of own activations are relative to."""
    _check_keys("a study", given, KEYS)
    if ("axes" in given) == ("arms" in given):
        raise ConfigError("a study has either axes or arms; give [axes] with lists of values, or [[arms]] with choices")
    trained = not given.get("objective")  # else axes are what the user's objective makes of them

    def read(axis: str, value: Any) -> Choices:
        return choices_of(axis, value, folder) if trained else {axis: value}

    fixed = _merged(_table(given, "model"), read)
    if "axes" in given:
        arms, single = _product(_table(given, "axes"), read)
        fixed |= single
    else:
        arms = _listed(given["arms"], read)
    baseline = next((arm.name for arm in arms), "")
    model = nested({**_SIZES, **fixed} if trained else fixed)
    if "like" in given:
        model = _like(given["like"], fixed)
        baseline = _standing(arms, model) or baseline
    if not trained and fixed:
        raise ConfigError(
            f"{next(iter(fixed))} has one value for all arms, and an objective of your own is given the names of arms "
            "alone; set it in the objective"
        )
    fields = {key: _FIELDS[key](key, value) for key, value in given.items() if key in _FIELDS}
    lengths = [key for key in ("steps", "tokens", "budget") if key in given]
    if len(lengths) > 1:
        raise ConfigError(f"{' and '.join(lengths)} are given together, and each says how long a trial is; give one")
    if "tokens" in given:
        chosen = next((arm.choices for arm in arms), {})  # all arms have one context
        fields["steps"] = _steps(given, fields.get("rows", Study.rows), {**model, **chosen})
    study = Study(arms=arms, model=model, **{"baseline": baseline, **fields})
    if trained:
        for arm in arms:
            config_of(study, arm)
    return study


def fields_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a Study as a user writes them."""
    _check_keys("a study", options, tuple(_FIELDS))
    return {key: _FIELDS[key](key, value) for key, value in options.items()}


def seconds(key: str, value: Any) -> float:
    """A duration: seconds as a number, or words such as 90s, 10m, 2h; raises ConfigError for anything else."""
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None:
        return float(found[1]) * _UNITS[found[2]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} is {clean_name(repr(value))}; give seconds, or a duration such as 90s, 10m or 2h")
    return float(value)


# --- arms --------------------------------------------------------------------------------------------------------


def _product(axes: Mapping[str, Any], read: Read) -> tuple[tuple[Arm, ...], Choices]:
    """An arm for each combination of the axes' values, the first values first; and what axes of one value set."""
    listed = {axis: list(values) if isinstance(values, list | tuple) else [values] for axis, values in flat(axes)}
    chosen = {axis: _each(axis, values, read) for axis, values in listed.items()}
    _check_disjoint({axis: choices[0] for axis, choices in chosen.items()})
    varied = [axis for axis, values in listed.items() if len(values) > 1]
    options = [zip(labels(axis, listed[axis], varied), chosen[axis], strict=True) for axis in varied]
    arms = tuple(
        Arm(name=" ".join(label for label, _ in parts), choices=_joined(choices for _, choices in parts))
        for parts in itertools.product(*options)
    )
    return arms, _joined(choices[0] for axis, choices in chosen.items() if axis not in varied)


def _each(axis: str, values: Sequence[Any], read: Read) -> list[Choices]:
    if not values or "" in values:
        raise ConfigError(f"{clean_name(axis)} has no value; write it as in depth=2,4")
    chosen = [read(axis, value) for value in values]
    for index, choices in enumerate(chosen):
        if choices in chosen[:index]:
            first = values[chosen.index(choices)]
            raise ConfigError(f"{axis} has {first!r} and {values[index]!r}, which are the same; leave one out")
    return chosen


def _check_disjoint(chosen: Mapping[str, Choices]) -> None:
    """Raises ConfigError where one of the axes sets what another sets too, or a part of it."""
    for (axis, choices), (other, theirs) in itertools.combinations(chosen.items(), 2):
        for field, their in itertools.product(choices, theirs):
            if f"{field}.".startswith(f"{their}.") or f"{their}.".startswith(f"{field}."):
                raise ConfigError(f"{axis} and {other} both set {max(field, their, key=len)}; give one of them")


def _joined(parts: Iterable[Choices]) -> Choices:
    return {axis: value for part in parts for axis, value in part.items()}


def _listed(tables: Any, read: Read) -> tuple[Arm, ...]:
    if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) for table in tables):
        raise ConfigError("arms must be tables; write [[arms]] with name and choices")
    arms = []
    for table in tables:
        _check_keys("an arm", table, ("name", "choices"))
        name = _text("the name of an arm", table.get("name"))
        arms.append(Arm(name=clean_name(name), choices=_merged(_table(table, "choices"), read)))
    return tuple(arms)


def _merged(values: Mapping[str, Any], read: Read) -> Choices:
    """What a table of axes sets, of which each has one value."""
    chosen = {axis: read(axis, value) for axis, value in flat(values)}
    _check_disjoint(chosen)
    return _joined(chosen.values())


def _like(directory: Any, fixed: Choices) -> dict[str, Any]:
    """A proxy of a directory's model, with what is set beside it."""
    from .proxies import proxy  # here, because it loads what reads models

    sizes = {name: fixed[name] for name in ("depth", "d_model") if name in fixed}
    return nested(fixed, proxy(_text("like", directory), **sizes).to_dict())


def _standing(arms: Iterable[Arm], model: Mapping[str, Any]) -> str | None:
    """The first arm that is the model as it stands."""
    axes = dict(flat(model))
    return next((arm.name for arm in arms if arm.choices.items() <= axes.items()), None)


def _check_keys(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{what} has no key {clean_name(str(key))!r}; {near_miss(str(key), known)}")


# --- values ------------------------------------------------------------------------------------------------------


def _table(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = given.get(key, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"{key} is {clean_name(repr(table))} and must be a table; write [{key}]")
    return table


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{key} is {clean_name(repr(value))} and must be a text")
    return value


def _whole(key: str, value: Any) -> int:
    if type(value) is not int:
        raise ConfigError(f"{key} is {clean_name(repr(value))} and must be a whole number")
    return value


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} is {clean_name(repr(value))} and must be a number")
    return float(value)


def _pair(key: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ConfigError(f"{key} is {clean_name(repr(value))}; give two numbers, as in [1e-3, 1.6e-2]")
    return _number(key, value[0]), _number(key, value[1])


def _contrasts(key: str, value: Any) -> tuple[Contrast, ...]:
    pairs = value if isinstance(value, list | tuple) else [value]
    pairs = [(item.arm, item.against) if isinstance(item, Contrast) else item for item in pairs]
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
            raise ConfigError(f'{key} has {clean_name(repr(pair))}; give pairs of names, as in [["swiglu", "relu"]]')
    return tuple(Contrast(arm, against) for arm, against in pairs)


def _steps(given: Mapping[str, Any], rows: int, model: Mapping[str, Any]) -> int:
    """As many steps as show a trial at least the tokens asked for."""
    context = model.get("context", TransformerConfig().context)
    return math.ceil(_whole("tokens", given["tokens"]) / (max(1, rows) * max(1, context)))


_FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "baseline": _text,
    "contrasts": _contrasts,
    "match": _text,
    "data": _text,
    "rows": _whole,
    "steps": _whole,
    "budget": seconds,
    "seeds": _whole,
    "tuning_trials": _whole,
    "learning_rates": _pair,
    "margin": _number,
    "target": _number,
    "objective": _text,
}
"""What reads each key that is a field of Study as it stands."""

_LENGTHS = {"steps", "tokens", "budget"}
KEYS = ("axes", "arms", "model", "like", "tokens", *_FIELDS)
"""What a study file may hold."""
