"""Writes docs/reference/hazards.md from the errors raised in the source, so that it cannot be out of date."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sparseg import errors

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "sparseg"
TARGET = ROOT / "docs" / "reference" / "hazards.md"
KINDS = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__
}
FIELDS = ("rule", "remedy", "code")
INTRODUCTION = """# What is refused, and what to do

Written by `scripts/error_reference.py` from the source; do not edit.

Every refusal is one line, `where: rule; received value; remedy`, with exit code 2 for bad input (1 where the
machine is at fault, or where some of several cases failed), and no output file for the case. Its code stands
in `report.json` and in the findings of `sparseg check`, and does not change when the words do. `…` stands for
a value of the case at hand.

What is *not* refused, since it is odd but valid: NIfTI-2, either byte order, oblique grids, any axis order,
one form (qform or sform) alone, scaled integers, header extensions, gzip files of several members, `.nrrd`,
`.nhdr`, `.mha`, `.mhd`, DICOM series as folders or `.zip` files, multi-frame DICOM.

`make hazards` runs every fault of the project's table against the code and prints a figure for each; it takes
about half an hour, or less with fewer rounds: `SPARSEG_HAZARD_ROUNDS=20 make hazards`.

DICOM SEG and RTSTRUCT outputs carry the patient and study of their series, because DICOM demands it. Nothing
else that is written or printed takes any text from an input file.
"""
AREAS = {
    "nifti": "NIfTI files",
    "itk": "NRRD and MetaImage files",
    "nrrd": "NRRD files",
    "dicom": "DICOM series",
    "rtstruct": "DICOM structure sets",
    "seg": "Segmentation files",
    "archive": "Archives",
    "file": "Files",
    "label": "Labels",
    "grid": "Grids",
    "ensemble": "Ensembles",
}


class Template(NamedTuple):
    """An error's fields as expressions, and what they are of the parameters of the function around it."""

    kind: str
    fields: dict[str, ast.expr | None]


class Found(NamedTuple):
    """One way to get one code."""

    code: str
    kind: str
    rule: str
    remedy: str


Function = ast.FunctionDef | ast.AsyncFunctionDef
TEXT = ast.Constant | ast.JoinedStr
Values = dict[str, ast.expr | None]
Helpers = dict[str, list[tuple[Values, Template]]]


@cache
def own_calls(function: ast.AST) -> tuple[ast.Call, ...]:
    """Calls in a function, without those of functions inside it."""
    calls: list[ast.Call] = []
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Function):
            calls += [node] if isinstance(node, ast.Call) else []
            waiting += ast.iter_child_nodes(node)
    return tuple(calls)


@cache
def parameters(function: Function) -> Values:
    """Name -> default, in order of position; keyword-only ones last."""
    plain = [*function.args.posonlyargs, *function.args.args]
    plain = plain[1:] if plain and plain[0].arg in ("self", "cls") else plain
    defaults = [None] * (len(plain) - len(function.args.defaults)) + list(function.args.defaults)
    found = dict(zip([item.arg for item in plain], defaults, strict=False))
    found |= {a.arg: d for a, d in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)}
    return found


def bound(call: ast.Call, names: Values) -> Values:
    """Parameter -> the expression that a call gives for it."""
    values = dict(names)
    values |= dict(zip(names, call.args, strict=False))
    return values | {k.arg: k.value for k in call.keywords if k.arg in names}


class _Insert(ast.NodeTransformer):
    """Puts the arguments of a call in place of parameters."""

    def __init__(self, values: Values) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.values.get(node.id) or node


def inserted(expression: ast.expr | None, values: Values) -> ast.expr | None:
    """A copy of an expression with arguments in place of parameters."""
    if expression is None or not names_in(expression) & set(values):
        return expression
    return _Insert(values).visit(ast.parse(ast.unparse(expression), mode="eval").body)  # type: ignore[no-any-return]


def texts(expression: ast.expr | None) -> list[str]:
    """What a string expression can be, with `…` for what is known at run time only."""
    if isinstance(expression, ast.Constant):
        return [str(expression.value)]
    if isinstance(expression, ast.IfExp):
        return texts(expression.body) + texts(expression.orelse)
    if isinstance(expression, ast.BoolOp):
        known = [text for value in expression.values for text in texts(value) if text not in ("", "…")]
        return known[:1] or ["…"]
    if isinstance(expression, ast.BinOp):
        return [texts(expression.left)[0] + texts(expression.right)[0]]
    if isinstance(expression, ast.JoinedStr):
        return ["".join(texts(part)[0] for part in expression.values)]
    if isinstance(expression, ast.FormattedValue):
        return texts(expression.value) if isinstance(expression.value, ast.Constant) else ["…"]
    return ["…"]


def error_template(call: ast.Call) -> Template | None:
    """The fields of an error that a call makes by its class."""
    given = {k.arg: k.value for k in call.keywords if k.arg in FIELDS}
    # A class that is a parameter of a helper is told by what it is given.
    if not isinstance(call.func, ast.Name) or not (call.func.id in KINDS or {"remedy", "code"} <= set(given)):
        return None
    return Template(call.func.id, {**given, "rule": call.args[0] if call.args else given.get("rule")})


class Module:
    """A file of the source: its functions, its constants, and where its imported names come from."""

    def __init__(self, path: Path) -> None:
        self.name = ".".join(("sparseg", *path.relative_to(SOURCE).with_suffix("").parts))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self.functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
        self.origin = {function.name: self.name for function in self.functions}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                self.origin |= {item.name: node.module or "" for item in node.names}
        assigned = [node for node in tree.body if isinstance(node, ast.Assign) and len(node.targets) == 1]
        self.constants: Values = {ast.unparse(node.targets[0]): node.value for node in assigned}
        self.constants = {name: v for name, v in self.constants.items() if isinstance(v, TEXT)}


def collect() -> list[Found]:
    """Every error of the source that has a code of its own, made directly or by helper functions."""
    modules = [Module(path) for path in sorted(SOURCE.rglob("*.py"))]
    helpers: Helpers = {}
    found: set[Found] = set()
    for _ in range(4):  # a helper may call a helper that calls a helper
        for module in modules:
            for function in module.functions:
                own = parameters(function)
                for template in templates_in(function, module, helpers):
                    code = template.fields["code"]
                    free = (
                        {node.id for node in ast.walk(code) if isinstance(node, ast.Name)} if code else set()
                    )
                    if free & set(own):
                        remember(helpers, f"{module.name}.{function.name}", own, template)
                    elif code is not None and not free:
                        found |= resolved(template)
    return sorted(found)


def names_in(expression: ast.expr | None) -> set[str]:
    """The names that an expression needs."""
    return {n.id for n in ast.walk(expression) if isinstance(n, ast.Name)} if expression else set()


def remember(helpers: Helpers, name: str, own: Values, template: Template) -> None:
    """Note that a function makes an error whose code is a parameter of it, once."""
    known = helpers.setdefault(name, [])
    if all(described(template) != described(other) for _, other in known):
        known.append((own, template))


def described(template: Template) -> str:
    """A template in words, to tell whether it is known."""
    return repr((template.kind, {k: v and ast.unparse(v) for k, v in template.fields.items()}))


def templates_in(function: Function, module: Module, helpers: Helpers) -> Iterator[Template]:
    """Errors that a function makes, itself or by a helper."""
    constants = {name: v for name, v in module.constants.items() if name not in parameters(function)}
    constants |= local_texts(function)
    for call in own_calls(function):
        made = [template] if (template := error_template(call)) else made_by(call, module, helpers)
        for kind, fields in made:
            yield Template(kind, {key: inserted(fields.get(key), constants) for key in FIELDS})


@cache
def local_texts(function: Function) -> Values:
    """Variables that are set once, to a text."""
    assigned = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
    names = [ast.unparse(target) for node in assigned for target in node.targets]
    return {
        ast.unparse(node.targets[0]): node.value
        for node in assigned
        if names.count(ast.unparse(node.targets[0])) == 1
        and isinstance(node.value, TEXT | ast.IfExp | ast.BoolOp | ast.BinOp)
    }


def made_by(call: ast.Call, module: Module, helpers: Helpers) -> Iterator[Template]:
    """Errors of the helper that is called, with the arguments of the call in them."""
    func = call.func
    if isinstance(func, ast.Name):
        found = helpers.get(f"{module.origin.get(func.id, '')}.{func.id}", [])
    elif isinstance(func, ast.Attribute):  # a method: of whatever class, as long as the name is in use
        own = helpers.get(f"{module.name}.{func.attr}")
        public = [h for name, all_ in helpers.items() if name.endswith(f".{func.attr}") for h in all_]
        found = own or ([] if func.attr.startswith("_") else public)
    else:
        found = []
    for names, template in found:
        values = bound(call, names)
        yield Template(template.kind, {key: inserted(v, values) for key, v in template.fields.items()})


def resolved(template: Template) -> set[Found]:
    """What a template without free names can be."""
    rule, remedy = (texts(template.fields.get(key))[0] for key in ("rule", "remedy"))
    codes = texts(template.fields["code"])
    return {Found(code, template.kind, rule, remedy) for code in codes if "…" not in code}


def merged(found: list[Found]) -> dict[str, list[Found]]:
    """By code."""
    by_code: dict[str, list[Found]] = {}
    for item in found:
        by_code.setdefault(item.code, []).append(item)
    return dict(sorted(by_code.items()))


def cell(values: list[str]) -> str:
    """Different texts of one cell; one that says nothing only where there is no other."""
    distinct = [value for value in dict.fromkeys(values) if value.strip("…")] or ["(the message says it)"]
    safe = [value.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for value in distinct]
    return "<br>".join(safe)


def render() -> str:
    """The page."""
    by_code = merged(collect())
    sections: dict[str, list[str]] = {}
    for code, items in by_code.items():
        area = AREAS.get(code.partition("-")[0], "Other")
        row = f"| `{code}` | {cell([i.rule for i in items])} | {cell([i.remedy for i in items])} |"
        sections.setdefault(area, []).append(row)
    lines = [INTRODUCTION]
    for area in [*dict.fromkeys(AREAS.values()), "Other"]:
        if rows := sections.get(area):
            lines += [f"## {area}", "", "| code | what must hold | what to do |", "|---|---|---|", *rows, ""]
    lines += ["## Errors without a code of their own", "", "Their code is the name of their class.", ""]
    lines += ["| code | meaning |", "|---|---|"]
    for name, kind in KINDS.items():
        lines.append(f"| `{name}` | {(kind.__doc__ or '').strip().splitlines()[0]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{TARGET.relative_to(ROOT)}: {len(merged(collect()))} codes\n")
