"""A small workspace of files in memory, with a test runner that really evaluates the code in it.

The files are written in a corner of Python: functions of numbers whose body is one `return` of an expression, and
tests that are `assert` statements. They are interpreted here, never handed to `exec`: what a model writes into a
file can call nothing but these functions.
"""

from __future__ import annotations

import ast
import operator

from .calls import CallError

FILES = {
    "billing/fees.py": (
        "def daily_rate(plus):\n    return 100 if plus else 150\n\n\n"
        "def late_fee(days, plus):\n    return max(days, 10) * daily_rate(plus)\n"
    ),
    "billing/totals.py": (
        "def with_tax(cents, percent):\n    return cents + cents * percent // 100\n\n\n"
        "def total(cents, fee, percent):\n    return with_tax(cents + fee, percent)\n"
    ),
    "shipping/zones.py": "def zone_days(zone):\n    return 2 if zone == 0 else 4 + zone\n",
    "tests/test_fees.py": (
        "from billing.fees import late_fee\n\n"
        "assert late_fee(3, 0) == 450\nassert late_fee(20, 0) == 1500\nassert late_fee(2, 1) == 200\n"
    ),
    "tests/test_totals.py": (
        "from billing.totals import total\n\nassert total(1000, 0, 20) == 1200\nassert total(900, 100, 10) == 1100\n"
    ),
}
_MAX_DEPTH = 32
_MAX_STEPS = 10_000
_MAX_FILE = 4000
_BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}
_BINARY[ast.Mod] = operator.mod
_COMPARE = {ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le}
_COMPARE |= {ast.Gt: operator.gt, ast.GtE: operator.ge}


class EvalError(CallError):
    """The code uses something outside the corner of Python that the workspace runs."""


class Evaluator:
    """Functions by name and an expression evaluator over them; integers only, call depth bounded."""

    def __init__(self) -> None:
        self.functions: dict[str, tuple[list[str], ast.expr]] = {}
        self.steps = 0

    def define(self, source: str) -> list[ast.Assert]:
        """Adds the functions of `source` and returns its asserts."""
        asserts = []
        try:
            body = ast.parse(source).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise EvalError(f"not Python: {error}") from None
        for node in body:
            if isinstance(node, ast.Assert):
                asserts.append(node)
            elif isinstance(node, ast.FunctionDef) and len(node.body) == 1 and isinstance(node.body[0], ast.Return):
                self.functions[node.name] = ([arg.arg for arg in node.args.args], node.body[0].value)
            elif not isinstance(node, ast.ImportFrom):
                raise EvalError(f"line {node.lineno}: only functions of one return, imports and asserts are run")
        return asserts

    def value(self, node: ast.expr | None, names: dict[str, int], depth: int = 0) -> int:
        self.steps += 1
        if depth > _MAX_DEPTH or self.steps > _MAX_STEPS:
            raise EvalError("the evaluation is too deep or too long")
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            left, right = self.value(node.left, names, depth + 1), self.value(node.right, names, depth + 1)
            try:
                result = _BINARY[type(node.op)](left, right)
            except ZeroDivisionError:
                raise EvalError("division by zero") from None
            # A bound on magnitude keeps repeated multiplication from eating memory.
            if abs(result) > 10**18:
                raise EvalError("a number is too large")
            return result
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.value(node.operand, names, depth + 1)
        if isinstance(node, ast.IfExp):
            branch = node.body if self.value(node.test, names, depth + 1) else node.orelse
            return self.value(branch, names, depth + 1)
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
            left, right = self.value(node.left, names, depth + 1), self.value(node.comparators[0], names, depth + 1)
            return _COMPARE[type(node.ops[0])](left, right)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords and node.args:
            return self._call(node.func.id, [self.value(arg, names, depth + 1) for arg in node.args], depth)
        raise EvalError(f"cannot evaluate {type(node).__name__}")

    def _call(self, name: str, args: list[int], depth: int) -> int:
        if name in self.functions:
            parameters, body = self.functions[name]
            if len(parameters) != len(args):
                raise EvalError(f"{name} takes {len(parameters)} arguments, got {len(args)}")
            return self.value(body, dict(zip(parameters, args, strict=True)), depth + 1)
        if name == "abs" and len(args) == 1:
            return abs(args[0])
        if name in ("min", "max") and len(args) > 1:
            return min(args) if name == "min" else max(args)
        raise EvalError(f"there is no function {name} of {len(args)} arguments")


class Workspace:
    """The files, and the four things an agent may do with them."""

    def __init__(self) -> None:
        self.files = dict(FILES)

    def list_files(self, folder: str) -> str:
        names = [path for path in self.files if path.startswith(folder.rstrip("/") + "/") or not folder]
        if not names:
            raise CallError(f"there is no folder {folder!r}")
        return "\n".join(f"{path} {len(self.files[path].splitlines())} lines" for path in names)

    def read_file(self, path: str) -> str:
        if path not in self.files:
            raise CallError(f"there is no file {path!r}")
        return self.files[path].rstrip("\n")

    def grep(self, text: str) -> str:
        hits = [
            f"{path}:{number}: {line.strip()}"
            for path, content in self.files.items()
            for number, line in enumerate(content.splitlines(), 1)
            if text and text in line
        ]
        return "\n".join(hits[:20]) or "no match"

    def edit_file(self, path: str, old: str, new: str) -> str:
        content = self.files.get(path)
        if content is None:
            raise CallError(f"there is no file {path!r}")
        if not old or content.count(old) != 1:
            raise CallError(f"{old!r} occurs {content.count(old) if old else 0} times in {path}, expected once")
        edited = content.replace(old, new)
        if len(edited) > _MAX_FILE:
            raise CallError(f"{path} would be longer than {_MAX_FILE} characters")
        self.files[path] = edited
        line = content[: content.index(old)].count("\n") + 1
        return f"{path}: 1 place edited, line {line}"

    def run_tests(self, path: str) -> str:
        """Evaluates every assert of one test file against the functions of the files it imports from."""
        evaluator = Evaluator()
        asserts = evaluator.define(self.read_file(path))
        for node in ast.parse(self.files[path]).body:
            if isinstance(node, ast.ImportFrom):
                evaluator.define(self.read_file((node.module or "").replace(".", "/") + ".py"))
        lines = []
        for test in asserts:
            if evaluator.value(test.test, {}):
                continue
            got = ""
            if isinstance(test.test, ast.Compare):
                got = f" (got {evaluator.value(test.test.left, {})})"
            lines.append(f"FAILED {ast.unparse(test.test)}{got}")
        lines.append(f"{len(asserts) - len(lines)} passed, {len(lines)} failed")
        return "\n".join(lines)
