"""Single-place mutations of a module's source: each is a small error that its tests should find.

Operators are swapped, signs and calls dropped, constants changed, conditions negated, arguments swapped, parts of seeds
left out. Annotations, docstrings, decorators and whatever stands in a `raise` are left alone: they decide no number.
"""

import ast
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

_BINARY = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitXor: ("^", "&"),
}
_COMPARE = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
}
_PAIRS = (
    *(("max", "min"), ("maximum", "minimum"), ("amax", "amin"), ("argmax", "argmin"), ("sin", "cos")),
    *(("ceil", "floor"), ("any", "all"), ("sum", "mean"), ("relu6", "relu")),
)
_OTHER_FUNCTION = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
_METHODS = {  # dropped from a chain: x.clamp(0, 1) → x
    *("abs", "clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "exp", "log", "mul_", "sub_", "add_", "div_"),
    *("sigmoid", "transpose", "argsort", "masked_fill", "masked_fill_", "repeat", "repeat_interleave", "removeprefix"),
    "flip",
}
_WRAPPERS = {"abs", "clip", "sorted", "round", "normalize", "exp", "log", "reversed", "square", "sqrt"}  # f(x, …) → x
_SYMMETRIC = {"min", "max", "minimum", "maximum", "isinstance", "array_equal", "equal", "isclose", "zip", "hypot"}
_MESSAGES = {"warn", "warning", "info", "debug", "print"}  # with all that stands in them: they decide no number
_LEFT_ALONE = {"fullmatch", "getLogger"}
# Arguments that no number depends on: a guard that nothing should ever meet (strict, of zip), the layout of a JSON
# file, the line that a warning names, the form of a result that is read by its first entry, and how many rows are
# computed at a time.
_UNSEEN = {"strict", "indent", "stacklevel", "return_dict", "batch", "block", "at_once"}
_SEEDED = re.compile(r"rng|seed|Seed|sha|hash|digest|Generator", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A replacement of bytes `start` to `end` of a source file. `line` counts from 1."""

    kind: str
    line: int
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()

    def lines(self, source: str) -> tuple[str, str]:
        """The line of the mutation before and after, without indentation."""
        before, after = source.splitlines(), self.apply(source).splitlines()
        at = self.line - 1
        return before[at].strip(), after[at].strip()


def mutations(source: str) -> list[Mutation]:
    """All mutations of a source text in the order of the text; a few of them may not compile."""
    found = {(m.start, m.end, m.text): m for m in _Finder(source).find()}
    return sorted(found.values(), key=lambda m: (m.start, m.end, m.text))


def draw(source: str, count: int, rng: random.Random) -> list[Mutation]:
    """`count` mutations that compile (or all), the kinds taking turns: there are many constants and few seeds."""
    kinds = defaultdict(list)
    for mutation in mutations(source):
        kinds[mutation.kind].append(mutation)
    queues = [rng.sample(kinds[kind], len(kinds[kind])) for kind in sorted(kinds)]
    rng.shuffle(queues)
    drawn: list[Mutation] = []
    while len(drawn) < count and any(queues):
        turn = [queue.pop() for queue in queues if queue][: count - len(drawn)]
        drawn += [mutation for mutation in turn if _compiles(mutation.apply(source))]
    return drawn


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


class _Finder:
    def __init__(self, source: str) -> None:
        self.data = source.encode()
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.tree = ast.parse(source)

    def find(self) -> Iterator[Mutation]:
        yield from self._visit(self.tree)

    def _visit(self, node: ast.AST) -> Iterator[Mutation]:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.Call) and _name(node) in _MESSAGES:
            return
        yield from self._mutate(node)
        skipped = {"annotation", "returns", "decorator_list", "type_params", "msg"}
        if isinstance(node, ast.Call) and _name(node) == "isinstance":
            return  # types are no numbers
        for name, value in ast.iter_fields(node):
            if name in skipped:
                continue
            if name == "kw_defaults":
                value = [d for a, d in zip(node.kwonlyargs, value, strict=True) if a.arg not in _UNSEEN]
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.keyword) and child.arg in _UNSEEN and isinstance(child.value, ast.Constant):
                    continue
                if isinstance(child, ast.keyword) and child.arg in ("dim", "axis"):
                    yield from self._axis(child.value)  # of matrices -1 and 1 are the same
                elif name == "args" and isinstance(child, ast.UnaryOp) and isinstance(child.operand, ast.Constant):
                    yield from self._axis(child)
                elif isinstance(child, ast.AST):
                    yield from self._visit(child)

    def _axis(self, node: ast.AST) -> Iterator[Mutation]:
        """Another axis, or number, for a whole one; whatever else tells it is left alone."""
        try:
            axis = ast.literal_eval(node)
        except ValueError:
            return
        if isinstance(axis, int):
            yield self._of("axis", node, "0" if axis else "-1")

    def _mutate(self, node: ast.AST) -> Iterator[Mutation]:
        match node:
            case ast.BinOp() if type(node.op) in _BINARY:
                yield from self._between("operator", node.left, node.right, *_BINARY[type(node.op)])
            case ast.AugAssign() if type(node.op) in _BINARY:
                old, new = _BINARY[type(node.op)]
                yield from self._between("operator", node.target, node.value, old + "=", new + "=")
            case ast.Compare():
                sides = [node.left, *node.comparators]
                for left, right, op in zip(sides, node.comparators, node.ops, strict=False):
                    yield from self._between("comparison", left, right, *_COMPARE[type(op)])
            case ast.BoolOp():
                old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                for left, right in zip(node.values, node.values[1:], strict=False):
                    yield from self._between("condition", left, right, old, new)
            case ast.UnaryOp(op=ast.USub() | ast.Not()):
                kind = "sign" if isinstance(node.op, ast.USub) else "condition"
                # Only the operator goes: parentheses of the operand stay where they are.
                start, end = self._span(node)
                found = re.match(rb"-|not\s*", self.data[start:end])
                yield self._replace(kind, start, start + found.end(), "")
            case ast.Constant(value=bool()):
                yield self._of("constant", node, str(not node.value))
            case ast.Constant(value=int()):
                yield self._of("constant", node, str(node.value + 1))
            case ast.Constant(value=float()):
                yield self._of("constant", node, repr(node.value * 2 if node.value else 1.0))
            case ast.Call():
                yield from self._call(node)
            case ast.Expr(value=ast.Call() as call) if _name(call) not in _MESSAGES | _LEFT_ALONE:
                yield self._of("dropped call", node, "pass")
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            yield self._of("condition", node.test, f"(not ({self._text(node.test)}))")

    def _call(self, node: ast.Call) -> Iterator[Mutation]:
        name = _name(node)
        if name in _LEFT_ALONE or name.endswith("Error"):
            return
        _, end = self._span(node.func)
        if name in _OTHER_FUNCTION:
            yield self._replace("function", end - len(name.encode()), end, _OTHER_FUNCTION[name])
        if name in _METHODS and isinstance(node.func, ast.Attribute):
            dot = self.data.rindex(b".", self._span(node.func.value)[1], end)
            yield self._replace("dropped call", dot, self._span(node)[1], "")
        elif name in _WRAPPERS and node.args:
            yield self._of("dropped call", node, f"({self._text(node.args[0])})")
        plain = [a for a in node.args if not isinstance(a, ast.Starred)]
        if (
            name not in _SYMMETRIC
            and not (name == "clip" and len(plain) == 3)  # the larger of the first two, whichever is the bound
            and len(plain) == len(node.args) >= 2
            and not any(isinstance(a, ast.Constant) for a in node.args[:2])
        ):
            (s0, e0), (s1, e1) = self._span(node.args[0]), self._span(node.args[1])
            first, second = self._text(node.args[0]), self._text(node.args[1])
            if first != second:
                yield self._replace("arguments", s0, e1, second + self.data[e0:s1].decode() + first)
        if _SEEDED.search(ast.unparse(node.func)):
            for argument in node.args:
                items = argument.elts if isinstance(argument, ast.List | ast.Tuple) else []
                for left_out in items if len(items) > 1 else []:
                    rest = ", ".join(self._text(item) for item in items if item is not left_out)
                    yield self._of("seed", argument, f"[{rest}]")

    def _between(self, kind: str, left: ast.AST, right: ast.AST, old: str, new: str) -> Iterator[Mutation]:
        begin, stop = self._span(left)[1], self._span(right)[0]
        pattern = r"\s+".join(map(re.escape, old.split()))
        found = re.search(pattern.encode(), self.data[begin:stop])
        if found:
            yield self._replace(kind, begin + found.start(), begin + found.end(), new)

    def _of(self, kind: str, node: ast.AST, text: str) -> Mutation:
        return self._replace(kind, *self._span(node), text)

    def _replace(self, kind: str, start: int, end: int, text: str) -> Mutation:
        line = self.data[:start].count(b"\n") + 1
        return Mutation(kind=kind, line=line, start=start, end=end, text=text)

    def _span(self, node: ast.AST) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self.data[start:end].decode()


def _name(call: ast.Call) -> str:
    """The last name of what is called, "" for anything else than a name."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
