"""From YAML files, environment and command line to a validated `Recipe`."""

import difflib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from foundation.project import project_file, recipe_place
from foundation.recipe.checks import check_recipe
from foundation.recipe.errors import KeyPath, Location, Problem, RecipeError
from foundation.recipe.schema import Recipe
from foundation.secrets import is_secret, secret_in
from foundation.yaml_text import YamlTextError, compose, load, value_of

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")

_PUBLIC = (
    "what a recipe says is written to the run folder, to wandb and into messages. Leave it out: programs that need a "
    "key read their own variables."
)


Schema = TypeVar("Schema", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, resolve and validate a pretraining recipe; see `load_as`.

    Raises:
        RecipeError: naming every wrong key with file, line and fix.
    """
    return load_as(Recipe, path, overrides, check_recipe)


def load_as(
    schema: type[Schema],
    path: str | Path,
    overrides: Sequence[str] = (),
    check: Callable[[Schema], list[Problem]] = lambda recipe: [],
) -> Schema:
    """Read, resolve and validate a recipe of any phase.

    `path` is a YAML file, as `recipe_place` finds it; `extends: other.yaml` (relative to the file, or recipes/...)
    supplies what the file leaves out, section by section. `${NAME}` and `${NAME:-default}` come from the environment;
    the default also stands for an empty variable, as in a shell. `overrides` are
    `section.key=value` strings whose values are YAML, and overlays: names of YAML files (ending in .yaml) whose keys
    replace the recipe's. `check` finds what is wrong between keys that are each right.

    Raises:
        RecipeError: naming every wrong key with file, line and fix.
    """
    path = recipe_place(Path(path))
    locations: dict[KeyPath, Location] = {}
    tree = _read_with_bases(path, locations, seen=())
    problems = []
    for override in overrides:
        if override.endswith(".yaml") and names_and_overrides([override])[0]:
            tree = _merge(tree, _read_with_bases(recipe_place(Path(override)), locations, seen=()))
        else:
            problems += _apply_override(tree, override, locations)
    problems += _secrets(tree, ())
    if problems:
        raise RecipeError(str(path), problems, locations)
    try:
        recipe = schema.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(str(path), _explain(error, schema), locations) from None
    problems = check(recipe)
    if problems:
        raise RecipeError(str(path), problems, locations)
    return recipe


def names_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments that name something, and those that read section.key=value; a path that exists names something."""
    overrides = [text for text in arguments if "=" in text and not recipe_place(Path(text)).exists()]
    return [text for text in arguments if text not in overrides], overrides


def read_tree(path: str | Path) -> dict[str, Any]:
    """The keys and values of a recipe of any phase with its bases and variables resolved, not validated.

    Raises:
        RecipeError: when a file is absent or not YAML.
    """
    return _read_with_bases(recipe_place(Path(path)), {}, seen=())


def _read_with_bases(path: Path, locations: dict[KeyPath, Location], seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in (earlier.resolve() for earlier in seen):  # a/../b is b
        raise RecipeError(str(path), [Problem(("extends",), f"{path} extends itself through {seen[-1]}.")], {})
    file_locations: dict[KeyPath, Location] = {}
    tree = _read_file(path, file_locations)
    base_name = tree.pop("extends", None)
    base: dict[str, Any] = {}
    if base_name is not None:
        base = _read_with_bases(_base(path, str(base_name)), locations, (*seen, path))
    locations.update(file_locations)
    return _merge(base, tree)


def _base(path: Path, name: str) -> Path:
    """What `extends: name` in `path` means: a file beside it, or recipes/<profile>/<file> as a command line says it."""
    beside = path.parent / name
    return recipe_place(Path(name)) if Path(name).parts[:1] == ("recipes",) and not beside.is_file() else beside


def _read_file(path: Path, locations: dict[KeyPath, Location]) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(str(path), [Problem((), _missing_file_message(path))], {})
    try:
        node = compose(path.read_text(encoding="utf-8"))
    except (YamlTextError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), [Problem((), f"This is not valid YAML: {error}")], {}) from None
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(str(path), [Problem((), "A recipe is a mapping of sections; this file holds none.")], {})
    value = _construct(node, (), path, locations)
    assert isinstance(value, dict)
    return value


def _missing_file_message(path: Path) -> str:
    folders = (Path("recipes"), project_file("recipes"))
    known = sorted({str(Path("recipes", *found.parts[-2:])) for folder in folders for found in folder.glob("*/*.yaml")})
    close = difflib.get_close_matches(str(path), known, n=1, cutoff=0.5)
    return f"There is no recipe {path}." + (f" Did you mean {close[0]}?" if close else "")


def _construct(node: yaml.Node, key: KeyPath, path: Path, locations: dict[KeyPath, Location]) -> Any:
    """Build plain values while noting the file and line of each key."""
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = str(key_node.value)
            location = f"{path}:{key_node.start_mark.line + 1}"
            child = (*key, name)
            if name in mapping:
                problem = Problem(child, f"The key is given twice, first at {locations[child]}. Keep one of the two.")
                raise RecipeError(str(path), [problem], {child: location})
            locations[child] = location
            mapping[name] = _construct(value_node, child, path, locations)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            locations[(*key, position)] = f"{path}:{item.start_mark.line + 1}"
        return [_construct(item, (*key, position), path, locations) for position, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node, key, path, locations)


def _scalar(node: yaml.ScalarNode, key: KeyPath, path: Path, locations: dict[KeyPath, Location]) -> Any:
    def from_environment(match: re.Match[str]) -> str:
        if is_secret(match["name"]):
            message = (
                f"{match['name']} is the name of a secret, and {_PUBLIC} Give the variable another name if it is none."
            )
            raise RecipeError(str(path), [Problem(key, message)], locations)
        value = os.environ.get(match["name"])
        if match["default"] is not None:
            value = value or match["default"]
        if value is None:
            name = match["name"]
            message = f"The environment variable {name} is not set. Export it, or write ${{{name}:-default}}."
            raise RecipeError(str(path), [Problem(key, message)], locations)
        return value

    try:
        if not _VARIABLE.search(node.value):
            return value_of(node)
        text = _VARIABLE.sub(from_environment, node.value)
        return text if node.style in ("'", '"') else load(text)
    except YamlTextError as error:
        raise RecipeError(str(path), [Problem(key, f"The value is not valid YAML: {error}")], locations) from None


def _secrets(value: Any, key: KeyPath) -> list[Problem]:
    """Texts of the recipe that give a secret away, however it came there."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return [problem for name, item in inner for problem in _secrets(item, (*key, name))]
    found = secret_in(value) if isinstance(value, str) else ""
    return [Problem(key, f"The value holds {found}, and {_PUBLIC}")] if found else []


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `base`: mappings merge key by key; lists, scalars and mixtures replace."""
    merged = dict(base)
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _apply_override(tree: dict[str, Any], override: str, locations: dict[KeyPath, Location]) -> list[Problem]:
    dotted, equals, text = override.partition("=")
    key: KeyPath = tuple(int(part) if part.isdigit() else part for part in dotted.split("."))
    locations[key] = "command line"
    if not equals or not dotted:
        message = f"An override reads section.key=value, or is an overlay's file name.yaml; got {override!r}."
        return [Problem(key, message)]
    try:
        value = load(text)
        target: Any = tree
        for part in key[:-1]:
            target = target.setdefault(part, {}) if isinstance(target, dict) else target[part]
        target[key[-1]] = value
    except YamlTextError as error:
        return [Problem(key, f"The value {text[:200]!r} is not valid YAML: {error}")]
    except (TypeError, IndexError, KeyError, AttributeError):
        return [Problem(key, f"{dotted} is not a place in this recipe.")]
    return []


def _explain(error: ValidationError, schema: type[BaseModel]) -> list[Problem]:
    """Pydantic's findings as sentences; unknown keys with the nearest known one."""
    problems = []
    for detail in error.errors():
        key: KeyPath = detail["loc"]
        if detail["type"] == "extra_forbidden":
            problems.append(Problem(key, _unknown_key_message(key, schema)))
        elif detail["type"] == "missing":
            problems.append(Problem(key, f"The required key {key[-1]!r} is missing.{_describe(key, schema)}"))
        else:
            problems.append(Problem(key, f"{detail['msg']}; got {detail['input']!r}.{_describe(key, schema)}"))
    return problems


def _unknown_key_message(key: KeyPath, schema: type[BaseModel]) -> str:
    section = _section_at(key[:-1], schema)
    known = [field.alias or name for name, field in section.model_fields.items()] if section else []
    close = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known keys here: {', '.join(known)}."
    return f"Unknown key {key[-1]!r}. {hint}"


def _describe(key: KeyPath, schema: type[BaseModel]) -> str:
    section = _section_at(key[:-1], schema) if key else None
    if section is None:
        return ""
    for name, field in section.model_fields.items():
        if (field.alias or name) == key[-1] and field.description:
            return f" ({field.description})"
    return ""


def _section_at(key: KeyPath, section: type[BaseModel]) -> type[BaseModel] | None:
    """The schema class that holds the keys below `key`, starting from the whole recipe's."""
    is_entry_name = False  # the part names an entry of a mapping such as `suites`, not a field
    for part in key:
        if isinstance(part, int) or is_entry_name:
            is_entry_name = False
            continue
        field = next((f for name, f in section.model_fields.items() if (f.alias or name) == part), None)
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        found = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if field is None or found is None:
            return None
        section, is_entry_name = found, get_origin(field.annotation) is dict
    return section
