"""Cuts `typings/tensorrt/__init__.pyi` out of the PyPI package tensorrt-stubs.

The package cannot be used as it is: its 10,609-line file has syntax errors in four classes, which end mypy, and on
`sys.path` it would make `import tensorrt` succeed with nothing in it. The cut keeps the classes that a device needs, whole
but for members that are no Python. `make install-dev` fetches the package, and a test compares. Anew with:

    python -m tests.runtime.tensorrt.stub_cut > typings/tensorrt/__init__.pyi
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterator

from tests.conftest import ROOT

INSTALLED = ROOT / ".venv" / "tensorrt-stubs" / "tensorrt_bindings" / "tensorrt.pyi"
COMMITTED = ROOT / "typings" / "tensorrt" / "__init__.pyi"
CLASSES = (
    "Builder", "BuilderFlag", "DataType", "EngineInspector", "HardwareCompatibilityLevel", "IBuilderConfig", "ICudaEngine",
    "IExecutionContext", "IHostMemory", "ILogger", "INetworkDefinition", "IProgressMonitor", "ITensor", "ITimingCache",
    "LayerInformationFormat", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "ParserError",
    "ProfilingVerbosity", "Runtime", "TensorIOMode",
)  # fmt: skip
_KNOWN = {*CLASSES, *dir(builtins), "typing"}
_MEMBER = re.compile(r"(?m)^(?:    @.*\n)*    (?:def |class |\w+: ).*\n(?:(?!    \S).*\n)*")
_UNNAMED = {"get_error": "ParserError"}  # declared after OnnxParser, so the generator wrote `...`
_HEAD = """\
# Cut from tensorrt-stubs 10.13.0.35.1 (MIT, see LICENSE) by tests/runtime/tensorrt/stub_cut.py; not edited by hand.
import typing

__version__: str

"""


def cut(source: str) -> str:
    """The committed file's text, from the text of the package's tensorrt.pyi."""
    blocks = re.split(r"(?m)^(?=class |def |[A-Za-z_]+: )", source)
    by_name = {match[1]: block for block in blocks if (match := re.match(r"class (\w+)", block))}
    return _HEAD + "\n".join(_class(by_name[name]) for name in CLASSES)


def _class(block: str) -> str:
    """One class without its docstrings; enum members keep the comment that holds their value."""
    members = [member for member in _MEMBER.findall(block) if _parses(member)]
    tree = ast.parse(block.split("\n", 1)[0] + "\n" + "".join(members))
    text = re.sub(r":\n +\.\.\.$", ": ...", ast.unparse(_Plain().visit(tree)), flags=re.MULTILINE)
    values = dict(re.findall(r"(?m)^ *(\w+: typing\.ClassVar\[.*\])(  # value = .*)$", block))
    return "".join(f"{line}{values.get(line.strip(), '')}\n" for line in text.splitlines() if line)


def _parses(member: str) -> bool:
    try:
        ast.parse(f"class X:\n{member}")
    except SyntaxError:
        return False
    return True


class _Plain(ast.NodeTransformer):
    """Drops docstrings and context managers; what is not in the cut becomes Any."""

    def visit_Expr(self, node: ast.Expr) -> None:
        return None

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = _known(node.annotation)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef | None:
        if node.name in ("__enter__", "__exit__"):
            return None
        for argument in node.args.args[1:]:
            argument.annotation = _known(argument.annotation)
        node.returns = ast.Name(_UNNAMED[node.name]) if node.name in _UNNAMED else _known(node.returns)
        node.body = [ast.Expr(ast.Constant(...))]
        return node


def _known(annotation: ast.expr | None) -> ast.expr:
    parts = list(_walk(annotation))
    strange = any(isinstance(part, ast.Name) and part.id not in _KNOWN for part in parts)
    unnamed = any(isinstance(part, ast.Constant) and part.value is ... for part in parts)
    return ast.parse("typing.Any", mode="eval").body if annotation is None or strange or unnamed else annotation


def _walk(annotation: ast.expr | None) -> Iterator[ast.AST]:
    return iter(()) if annotation is None else ast.walk(annotation)


if __name__ == "__main__":
    sys.stdout.write(cut(INSTALLED.read_text(encoding="utf-8")))
