"""The floor plan: kernels <- llama <- net <- cli, bench above them, errors a leaf; and no room outgrows its size.

Every source file is parsed, so that an import inside a function counts as one at the top does.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hopformer

ROOT = Path(hopformer.__file__).parent
FLOORS = {"errors": 0, "kernels": 1, "llama": 2, "net": 3, "cli": 4, "bench": 5}
ROOMS = [room for room in FLOORS if room != "errors"]
OPENS_BENCH = Path("cli/bench.py")  # the one command that is a door to the floor above; no other file may use it
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80
MAX_TRITON_LINES = 120

SOURCES = [
    path.relative_to(ROOT)
    for path in (*sorted(ROOT.glob("*.py")), *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))))
    if not path.name.startswith("test_")  # pytest imports bench/test_kernels.py by its path, as what is under tests/
]


def imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...], bool]]:
    """(line, module below hopformer with the imported name, whether it was relative) of imports from our own rooms.

    ``package`` is where the file lies, below hopformer: ("llama", "demo") for llama/demo/train.py.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "hopformer":
                    yield node.lineno, tuple(alias.name.split(".")[1:]), False
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                assert node.level - 1 <= len(package), f"line {node.lineno}: an import from outside the house"
                module = package[: len(package) - (node.level - 1)] + module
            elif module[:1] == ("hopformer",):
                module = module[1:]
            else:
                continue
            for alias in node.names:
                yield node.lineno, (*module, alias.name), bool(node.level)


def layer_faults(source: str, path: Path) -> list[str]:
    """What the imports of the file at ``path``, below the root, do that the floor plan forbids."""
    faults = []
    package = path.parts[:-1]
    room = package[0] if package else None
    floor = FLOORS[room] if room else max(FLOORS.values())  # the root's own files hold the house together
    if path == OPENS_BENCH:
        floor = FLOORS["bench"]
    for line, target, relative in imports(ast.parse(source), package):
        name = ".".join(target)
        other = target[0] if target else ""
        if not relative:
            faults.append(f"line {line}: {name} is imported absolutely; use a relative import")
        if other in FLOORS and FLOORS[other] > floor:
            faults.append(f"line {line}: {room} is below {other} and imports {name}")
        if other != room and any(part.startswith("_") and not part.startswith("__") for part in target):
            faults.append(f"line {line}: {name} is private to {other}")
    return faults


def private_uses(source: str, path: Path) -> list[str]:
    """Private attributes of modules and classes that were imported from another room."""
    tree, package = ast.parse(source), path.parts[:-1]
    foreign = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for _, target, _ in imports(ast.Module([node], []), package):
                if target[:1] != package[:1]:
                    foreign.update(alias.asname or alias.name for alias in node.names if alias.name == target[-1])
    return [
        f"line {node.lineno}: {node.value.id}.{node.attr} is private to another room"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in foreign
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
    ]


def size_faults(source: str) -> list[str]:
    """What is too long in a file."""
    num_lines = len(source.splitlines())
    faults = [f"the file has {num_lines} lines; split it at {MAX_FILE_LINES}"] if num_lines > MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            limit = MAX_TRITON_LINES if any(map(is_triton_jit, node.decorator_list)) else MAX_FUNCTION_LINES
            if length > limit:
                faults.append(f"line {node.lineno}: {node.name} has {length} lines; {limit} are allowed")
    return faults


def is_triton_jit(decorator: ast.expr) -> bool:
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(target) in ("triton.jit", "jit", "inlined")  # the last two are kernels/backend.py's


@pytest.mark.parametrize("path", SOURCES, ids=Path.as_posix)
def test_a_source_file_keeps_to_its_floor_and_its_size(path: Path) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert layer_faults(source, path) + private_uses(source, path) + size_faults(source) == []


def test_every_room_is_looked_at() -> None:
    assert {path.parts[0] for path in SOURCES if len(path.parts) > 1} == set(ROOMS)
    assert Path("errors.py") in SOURCES and Path("llama/demo/train.py") in SOURCES


def test_errors_imports_nothing() -> None:
    tree = ast.parse((ROOT / "errors.py").read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize(
    ("package", "source", "fault"),
    [
        ("kernels", "from ..llama import engine", "line 1: kernels is below llama and imports llama.engine"),
        ("kernels", "from .. import net", "line 1: kernels is below net and imports net"),
        ("llama", "def load():\n    from ..cli.app import main", "line 2: llama is below cli and imports cli.app.main"),
        ("llama.demo", "from ...net import link", "line 1: llama is below net and imports net.link"),
        ("cli", "from ..bench.decode import run", "line 1: cli is below bench and imports bench.decode.run"),
        ("net", "from hopformer.kernels import swiglu", "kernels.swiglu is imported absolutely; use a relative import"),
        ("kernels", "import hopformer.llama.engine", "line 1: kernels is below llama and imports llama.engine"),
        ("net", "from ..llama.engine import _Answer", "line 1: llama.engine._Answer is private to llama"),
        ("net", "from ..llama._hidden import x", "line 1: llama._hidden.x is private to llama"),
        ("net", "from ..llama import engine as e\ne._Answer", "line 2: e._Answer is private to another room"),
    ],
)
def test_a_breach_of_the_floor_plan_is_found(package: str, source: str, fault: str) -> None:
    where = Path(*package.split("."), "some_file.py")
    assert any(fault in found for found in layer_faults(source, where) + private_uses(source, where))


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("bench", "from ..cli.app import main\nfrom ..kernels import swiglu"),
        ("cli", "from ..net.identity import Identity\nfrom ..errors import UsageError"),
        ("llama.demo", "from ..engine import _Answer\nfrom ...kernels import swiglu\nfrom . import network"),
        ("kernels", "from __future__ import annotations\nfrom .backend import _private\nfrom torch import _C"),
        ("cli", "from .. import __version__"),
    ],
)
def test_what_the_floor_plan_allows_is_no_breach(package: str, source: str) -> None:
    where = Path(*package.split("."), "some_file.py")
    assert layer_faults(source, where) + private_uses(source, where) == []


def test_one_command_opens_bench() -> None:
    source = "def decode():\n    from ..bench.decode import bench_decode"
    assert layer_faults(source, OPENS_BENCH) == [] != layer_faults(source, OPENS_BENCH.with_name("chat.py"))


def function(num_lines: int, decorator: str = "") -> str:
    return f"{decorator}\ndef long():\n" + "    x = 1\n" * (num_lines - 1)


def test_what_has_outgrown_its_size_is_found() -> None:
    assert size_faults("\n" * 500) == [] and size_faults("\n" * 501) == ["the file has 501 lines; split it at 500"]
    assert size_faults(function(80)) == [] and size_faults(function(120, "@triton.jit")) == []
    assert size_faults(function(81)) == ["line 2: long has 81 lines; 80 are allowed"]
    assert size_faults(function(121, "@triton.jit")) == ["line 2: long has 121 lines; 120 are allowed"]
    assert size_faults(function(121, "@triton.jit(do_not_specialize=['n'])")) != []
    nested = "class A:\n" + "".join(f"    {line}\n" for line in function(81).splitlines())
    assert size_faults(nested) == ["line 3: long has 81 lines; 80 are allowed"]
