"""The documents stay true: what they say of keys, links, commands and code is what there is."""

from __future__ import annotations

import ast
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import nbformat
import pytest
import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from medicane import config, names
from medicane.channels import FUNCTIONS
from medicane.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^|\n\n)((?: {4}.*\n?)+)")
SPAN = re.compile(r"`([^`\n]+)`")


def told(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """The text of a document; of a notebook, that of its Markdown cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return text


def code_lines(path: Path) -> Iterator[str]:
    """Every line of code in a document: fenced, indented or in a span."""
    text = prose(path)
    blocks = [body for _, body in FENCED.findall(text)]
    text = FENCED.sub("", text)
    blocks += INDENTED.findall(text)
    blocks += SPAN.findall(text)
    for block in blocks:
        for line in block.splitlines():
            yield line.split(" #")[0].strip()


every_document = pytest.mark.parametrize("path", [*DOCUMENTS, *NOTEBOOKS], ids=told)


# Links, commands, code ---------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", prose(path)), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


def test_there_are_documents() -> None:
    assert {"README.md", "docs/configuration.md", "docs/data.md"} <= set(map(told, DOCUMENTS))


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    without_code = SPAN.sub("", FENCED.sub("", prose(path)))
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), f"{told(path)}: {target}"
        assert ROOT in there.parents, f"{told(path)}: {target} leads out of the repository"
        if anchor:
            assert anchor in anchors(there), f"{told(path)}: {target}"


def commands() -> dict[str, set[str]]:
    """Commands of the command line, and the options of each."""
    listed = [name for name in app if not name.startswith("-")]
    return {
        name: {
            word
            for argument in app[name].assemble_argument_collection()
            for word in argument.names
            if word.startswith("--")
        }
        for name in listed
    }


def check_command(line: str, known: dict[str, set[str]]) -> None:
    for name, rest in re.findall(r"(?:^|[\s/])medicane ([a-z][\w-]*)([^|;]*)", line):
        assert name in known, f"no such command: medicane {name}"
        for option in re.findall(r"(?<!\S)\[?(--[a-z][a-z-]*)", rest):
            allowed = known[name] | {"--help", "--debug"}
            assert option in allowed, f"medicane {name} has no option {option}"


@every_document
def test_commands_exist(path: Path) -> None:
    known = commands()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in code_lines(path):
        check_command(line, known)
        for target in re.findall(r"^make ([a-z-]+)", line):
            assert target in targets, f"no such target: make {target}"
        for module in re.findall(r"python -m (flows\.\w+|benchmarks\.\w+)", line):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"no such module: {module}"
        for option in re.findall(r"^--([a-z-]+)$", line):
            assert any(f"--{option}" in options for options in known.values()), line


@pytest.mark.parametrize(
    ("line", "law"),
    [
        ("medicane predict x.nc", "no such command: medicane predict"),
        (".venv/bin/medicane train --config C --epochs 3", "medicane train has no option --epochs"),
        ("cat x | medicane detect - --modle m", "medicane detect has no option --modle"),
    ],
)
def test_a_wrong_command_is_found(line: str, law: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(law)):
        check_command(line, commands())


def test_right_commands_pass() -> None:
    for line in (
        "medicane detect a.nc b.nc --model models:/medicane@champion --out found --units.msl hPa",
        "medicane demo [--out DIR] [--seed N]",
        "medicane catalogue --csv > medicanes.csv",
    ):
        check_command(line, commands())


@every_document
def test_code_is_code(path: Path) -> None:
    for language, body in FENCED.findall(prose(path)):
        if language == "python":
            ast.parse(body)
        elif language in ("yaml", "yml"):
            yaml.safe_load(body)


@every_document
def test_no_paths_of_one_machine(path: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:home|root|work|Users|mnt)/\S*", prose(path)) == []


# docs/configuration.md ---------------------------------------------------------------------------

CONFIGURATION = ROOT / "docs" / "configuration.md"
PLURAL = {
    "integer": "integers",
    "number": "numbers",
    "text": "texts",
    "name or formula": "names or formulas",
}


def sections(model: type[config.Section], at: str = "") -> dict[str, type[config.Section]]:
    """Every section, by the dotted key that it stands under."""
    found = {at: model}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, config.Section):
            found |= sections(field.annotation, f"{at}.{name}".strip("."))
    return found


def type_told(annotation: Any, metadata: typing.Iterable[Any] = ()) -> str:
    """A type as the document tells it: ``integer, ≥ 10, ≤ 15``."""
    limits = [_limit(one) for one in metadata]
    return ", ".join([_kind(annotation), *filter(None, limits)])


def _kind(annotation: Any) -> str:
    simple = {float: "number", int: "integer", str: "text", bool: "true or false", Any: "value"}
    if annotation in simple:
        return simple[annotation]
    if annotation == config.Range:
        return "range"
    if isinstance(annotation, type) and issubclass(annotation, config.Section):
        return "section"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        *listed, last = [f"`{value}`" for value in arguments]
        return f"{', '.join(listed)} or {last}" if listed else last
    if origin is Annotated:
        return type_told(arguments[0], arguments[1:])
    if origin in (types.UnionType, typing.Union):
        if config.ChannelFormula in arguments:
            return "name or formula"
        return " or ".join("null" if a is type(None) else _kind(a) for a in arguments)
    if origin is dict:
        return f"mapping to {_kind(arguments[1])}"
    assert origin is tuple, annotation
    if arguments[-1] is not Ellipsis:
        return f"{len(arguments)} {PLURAL[_kind(arguments[0])]}"
    first, *limits = _kind(arguments[0]).split(", ")
    return "list of " + " ".join([PLURAL.get(first, f"{first}s"), *limits])


def _limit(one: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    for name, sign in signs.items():
        value = getattr(one, name, None)
        if value is not None:
            return f"{sign} {value:g}"
    if isinstance(one, annotated_types.MinLen):
        return f"at least {one.min_length}"
    if isinstance(one, annotated_types.MaxLen):
        return f"at most {one.max_length}"
    return ""


def default_told(field: FieldInfo) -> str:
    """A default as the document tells it: ``required``, or a value that YAML reads back."""
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    if isinstance(value, config.Section):
        return "below"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def documented() -> dict[str, dict[str, tuple[str, str, str]]]:
    """Section → key → (type, default, meaning), as the document's tables have them."""
    tables: dict[str, dict[str, tuple[str, str, str]]] = {}
    for part in re.split(r"^## ", CONFIGURATION.read_text(encoding="utf-8"), flags=re.MULTILINE):
        heading, _, body = part.partition("\n")
        rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.+?) \| (.+) \|$", body, re.MULTILINE)
        if rows:
            at = re.fullmatch(r"(?:The whole file|`([\w.]+)`)", heading.strip())
            assert at, f"a table of keys stands under {heading!r}"
            tables[at[1] or ""] = {key: (kind, default, text) for key, kind, default, text in rows}
    return tables


def test_every_section_is_documented() -> None:
    assert list(documented()) == list(sections(config.Config))


@pytest.mark.parametrize("at", sections(config.Config), ids=lambda at: at or "whole")
def test_every_key_type_and_default_is_documented(at: str) -> None:
    fields = sections(config.Config)[at].model_fields
    rows = documented()[at]

    assert list(rows) == list(fields), "keys, in the order of medicane/config.py"
    for key, field in fields.items():
        kind, default, text = rows[key]
        assert kind == type_told(field.annotation, field.metadata), f"{at}.{key}: type"
        assert default == default_told(field), f"{at}.{key}: default"
        assert len(text.split()) >= 2, f"{at}.{key}: meaning"


@pytest.mark.parametrize("at", sections(config.Config), ids=lambda at: at or "whole")
def test_documented_defaults_read_back(at: str) -> None:
    # What the tables say is not only spelt like the defaults: YAML and pydantic agree to it.
    written = {
        key: yaml.safe_load(default.strip("`"))
        for key, (_, default, _) in documented().get(at, {}).items()
        if default not in ("required", "below")
    }
    needed = {"": {"schema_version": 1, "data": {"grids": ["x.nc"]}}, "data": {"grids": ["x.nc"]}}
    model = sections(config.Config)[at]
    assert model.model_validate({**needed.get(at, {}), **written}) == model.model_validate(
        needed.get(at, {})
    )


def test_the_example_configuration_is_one() -> None:
    examples = [
        body
        for language, body in FENCED.findall(prose(CONFIGURATION))
        if language == "yaml" and body.startswith("schema_version")
    ]
    assert examples
    for body in examples:
        config.make_config(yaml.safe_load(body))


def test_channels_functions_and_variables_are_documented() -> None:
    spans = set(SPAN.findall(prose(CONFIGURATION)))
    assert set(names.CHANNELS) <= spans
    assert {function.usage for function in FUNCTIONS.values()} <= spans
    variables = set(SPAN.findall(prose(ROOT / "docs" / "data.md")))
    assert set(names.VARIABLES) <= variables


def test_the_request_asks_for_what_the_configuration_needs() -> None:
    [request] = [
        body
        for language, body in FENCED.findall(prose(ROOT / "docs" / "data.md"))
        if language == "python" and "cdsapi" in body
    ]
    literals = {
        node.value for node in ast.walk(ast.parse(request)) if isinstance(node, ast.Constant)
    }
    assert {str(level) for level in names.PHASE_SPACE_LEVELS} <= literals
    box = config.Domain()
    area = [node for node in ast.walk(ast.parse(request)) if isinstance(node, ast.Dict)]
    listed = {
        key.value: ast.literal_eval(value)
        for node in area
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "area"
    }
    assert listed["area"] == [box.north, box.west, box.south, box.east]
