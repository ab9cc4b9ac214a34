"""Ways to break a kernel: every place in a source where a small slip is plausible.

Device code here is plain enough that tokens and brackets suffice to find the places; a mutant
that is no C++ any more does not compile and is not counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

#: What is done, in the order in which it is reported.
KINDS = {
    "barrier": "a barrier removed",
    "bounds": "a bounds check dropped, or part of one",
    "boundary": "< for <=, and the like",
    "condition": "another condition taken for true or false",
    "index": "an index or offset shifted by one",
    "stride": "a stride or size taken for another",
    "last tile": "a loop stopped one turn early",
    "reset": "an accumulator that starts with what was there",
    "sign": "+ for -, or the reverse",
}


@dataclass(frozen=True)
class Mutant:
    """``old`` at offset ``at`` becomes ``new``, and the line ``code`` becomes ``broken``.

    ``inside`` names the function or struct around it.
    """

    file: str
    kind: str
    at: int
    old: str
    new: str
    line: int
    code: str
    broken: str
    inside: str

    def apply(self, source: str) -> str:
        assert source[self.at :].startswith(self.old)
        return source[: self.at] + self.new + source[self.at + len(self.old) :]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} [{self.kind}] {self.code}   {self.old!r} -> {self.new!r}"


def mutants(folder: Path, *patterns: str) -> list[Mutant]:
    """All of them, of every source in a folder of kernels, in the order of files and lines.

    But of elementary.cuh, unless it is asked for: no case of the kernels sees its last digits.
    """
    found = []
    for path in sorted(path for each in patterns or ("*.cu*",) for path in folder.rglob(each)):
        if path.name == "elementary.cuh" and not patterns:
            continue
        file = _File(path.read_text())
        name = str(path.relative_to(folder))
        for kind, at, old, new in sorted(set(_of(file))):
            line = file.text.count("\n", 0, at)
            broken = file.text[:at] + new + file.text[at + len(old) :]
            code, broken = (text.splitlines()[line].strip() for text in (file.text, broken))
            inside = file.inside(at)
            found.append(Mutant(name, kind, at, old, new, line + 1, code, broken, inside))
    return sorted(found, key=lambda m: (m.file, m.at))


Place = tuple[str, int, str, str]  # kind, offset, old, new


def _without_twins(text: str) -> str:
    """The text, blank where a primitive stands with its host twin beside it.

    The host does not compile the one, and `test_primitives.py` tests the other.
    """
    lines, depth = text.splitlines(keepends=True), 0
    for i, line in enumerate(lines):
        word = line.replace(" ", "").partition("//")[0].strip()
        if word == "#ifdef__CUDACC__" or (depth > 0 and word.startswith("#if")):
            depth += 1
        if depth > 0:
            lines[i] = " " * (len(line) - 1) + "\n"
        if depth > 0 and word.startswith("#endif"):
            depth -= 1
    return "".join(lines)


_TOKEN = re.compile(
    r"(?P<skip>\s+|//[^\n]*|/\*.*?\*/|^[ \t]*\#(?:\\\n|[^\n])*)"
    r"|(?P<word>[A-Za-z_]\w*)|(?P<number>\d[\w.]*(?:[eE][-+]\d+\w*)?)|(?P<string>\"[^\"]*\")"
    r"|(?P<operator>->|::|\+\+|--|[-+*/^&|<>=!]=|&&|\|\||.)",
    re.MULTILINE | re.DOTALL,
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_RELATIONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_OTHER_SIZE = {
    "m": "n", "n": "m", "k": "n", "stride": "extent", "a_stride": "b_stride",
    "b_stride": "a_stride", "batch": "m", "rows": "n", "count": "splits", "splits": "count",
}  # fmt: skip


#: Calls that threads wait in for each other; a TransactionBarrier's `wait` is another, and `meet`
#: is the CPU's.
BARRIERS = ("__syncthreads", "__syncwarp", "cluster_barrier")


class _File:
    """A source and its tokens; positions below are indices of tokens."""

    def __init__(self, text: str) -> None:
        self.text = text
        text = _without_twins(text)
        self.tokens: list[str] = []
        self.starts: list[int] = []
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "skip":
                self.tokens.append(match[0])
                self.starts.append(match.start())
        self.partner: dict[int, int] = {}
        self.parent: list[int] = []  # the bracket around each token, or -1
        opened: list[int] = []
        for i, token in enumerate(self.tokens):
            if token in _CLOSING.values():
                start = opened.pop()
                self.partner[start], self.partner[i] = i, start
            self.parent.append(opened[-1] if opened else -1)
            if token in _CLOSING:
                opened.append(i)

    def slice(self, begin: int, end: int) -> tuple[int, str]:
        """(offset, text) of the tokens from begin up to end."""
        first, last = self.starts[begin], self.starts[end - 1] + len(self.tokens[end - 1])
        return first, self.text[first:last]

    def siblings(self, begin: int, end: int, *tokens: str) -> list[int]:
        """Where these tokens stand in a range, not counting what is in brackets within it."""
        level = self.parent[begin]
        return [
            i for i in range(begin, end) if self.tokens[i] in tokens and self.parent[i] == level
        ]

    def split(self, begin: int, end: int, *separators: str) -> list[tuple[int, int]]:
        cuts = [begin - 1, *self.siblings(begin, end, *separators), end]
        return [(a + 1, b) for a, b in pairwise(cuts)]

    def back_to(self, i: int, *stops: str) -> int:
        """The start of the expression that ends before i: behind a stop or an open bracket."""
        level = self.parent[i]
        j = i - 1
        while j > level and not (self.parent[j] == level and self.tokens[j] in stops):
            j -= 1
        return j + 1

    def statement(self, i: int) -> int:
        """Where the statement that i is in starts."""
        while self.parent[i] >= 0 and self.tokens[self.parent[i]] != "{":
            i = self.parent[i]
        while i > 0 and self.tokens[i - 1] not in (";", "{", "}"):
            i -= 1
        return i

    def inside(self, offset: int) -> str:
        """The name of the outermost function or struct around an offset."""
        for i, token in enumerate(self.tokens):
            if token != "{" or self.parent[i] != -1:
                continue
            if not self.starts[self.statement(i)] <= offset <= self.starts[self.partner[i]]:
                continue
            before = self.tokens[self.statement(i) : i]
            if self.tokens[i - 1] == ")":
                return self.tokens[self.partner[i - 1] - 1]
            return before[before.index("struct") + 1] if "struct" in before else ""
        return ""


def _of(file: _File) -> Iterator[Place]:
    tokens = file.tokens
    for i, token in enumerate(tokens):
        previous = tokens[i - 1] if i else ""
        if token in (*BARRIERS, "meet") and _is_call(file, i):
            yield "barrier", *file.slice(i, file.partner[i + 1] + 1), "((void)0)"
        elif previous == "." and token == "wait":
            begin, arguments = file.back_to(i, ";", "{", "}"), tokens.index("(", i)
            yield "barrier", *file.slice(begin, file.partner[arguments] + 1), "((void)0)"
        elif token == "if" and tokens[i + 1] == "(":
            end = file.partner[i + 1]
            leaves = tokens[end + 1] == "return"
            yield from _condition(file, i + 2, end, ("false",) if leaves else ("true",))
        elif token == "?":
            stops = ("=", "return", ",", "?", ":", ";", "+=")
            yield from _condition(file, file.back_to(i, *stops), i, ("true", "false"))
        elif token == "for":
            yield from _loop(file, i)
        elif token == "[" and (previous in ("]", ")") or previous[-1:].isalnum()):
            yield from _subscript(file, i)
        elif token == "=" and tokens[i + 1] != "=":
            yield from _initial_value(file, i)
        elif token == "*" and tokens[i + 1] in _OTHER_SIZE:
            yield "stride", *file.slice(i + 1, i + 2), _OTHER_SIZE[tokens[i + 1]]
        elif token == "(" and previous in ("gemm", "fetch", "epilogue"):
            yield from _arguments(file, i)
        if token in ("+=", "-="):
            yield "sign", *file.slice(i, i + 1), {"+=": "-=", "-=": "+="}[token]
        elif token in ("+", "-"):
            if previous[-1:].isalnum() or previous in (")", "]"):
                yield "sign", *file.slice(i, i + 1), {"+": "-", "-": "+"}[token]
            elif token == "-":
                yield "sign", *file.slice(i, i + 1), " "


def _is_call(file: _File, i: int) -> bool:
    """Whether `name(…);` begins there; a declaration has its type before the name."""
    return file.tokens[i - 1] in (";", "{", "}", ")") and (
        file.tokens[i + 1] == "(" and file.tokens[file.partner[i + 1] + 1] == ";"
    )


def _condition(file: _File, begin: int, end: int, verdicts: tuple[str, ...]) -> Iterator[Place]:
    tokens = file.tokens[begin:end]
    of_numbers = "T" in tokens or "limit" in tokens  # a corner of σ, not a bound of an array
    relational = any(token in _RELATIONS for token in tokens) and not of_numbers
    kind = "bounds" if relational else "condition"
    for verdict in verdicts:
        yield kind, *file.slice(begin, end), verdict
    for operator, neutral in (("&&", "true"), ("||", "false")):
        parts = file.split(begin, end, operator)
        if len(parts) > 1:
            for part in parts:
                yield kind, *file.slice(*part), neutral
    if relational:
        for i in range(begin, end):
            if file.tokens[i] in _RELATIONS:
                yield "boundary", *file.slice(i, i + 1), _RELATIONS[file.tokens[i]]


def _loop(file: _File, i: int) -> Iterator[Place]:
    """for (…; a < b; a += step)"""
    if len(file.split(i + 2, file.partner[i + 1], ";")) < 3:
        return  # for (T& x : all of them)
    _, (begin, end), (step, close) = file.split(i + 2, file.partner[i + 1], ";")
    if begin == end:
        return  # for (;;)
    parts = file.split(begin, end, "&&")  # for (…; asked && a < b; …)
    bounds = [part for part in parts if file.siblings(*part, *_RELATIONS)]
    if len(parts) > 1:
        for part in parts:
            if part not in bounds:
                yield "condition", *file.slice(*part), "true"
    for begin, end in bounds:
        yield from _bound(file, begin, end, step, close)


def _bound(file: _File, begin: int, end: int, step: int, close: int) -> Iterator[Place]:
    """a < b of such a loop"""
    tokens = file.tokens
    relation = file.siblings(begin, end, *_RELATIONS)[0]
    yield "boundary", *file.slice(relation, relation + 1), _RELATIONS[tokens[relation]]
    at, left = file.slice(begin, relation)
    if tokens[relation] == ">":  # halving
        yield "last tile", *file.slice(relation + 1, end), "1"
    else:
        by = file.slice(step + 2, close)[1] if tokens[step + 1] == "+=" else "1"
        by = by.partition(",")[0]
        yield "last tile", at, left, f"{left} + {by}"


def _subscript(file: _File, i: int) -> Iterator[Place]:
    start = file.statement(i)
    words = file.tokens[start:i]
    declares = "__shared__" in words or words[0] in (
        "alignas",
        "using",
        "struct",
        "template",
        "typename",
    )
    typed = words[0] in ("T", "double", "int", "float", "Run", "Stage") and "=" not in words
    cast = "(&)" in "".join(words)  # to an array's type
    if not (declares or typed or cast):
        at, index = file.slice(i + 1, file.partner[i])
        yield "index", at, index, f"{index} + 1"


def _initial_value(file: _File, i: int) -> Iterator[Place]:
    """type name = value;"""
    words = file.tokens[file.statement(i) : i]
    const = words[0] == "const"
    kind = words[1 if const else 0]
    if kind not in ("T", "float", "Square", "double", "int", "size_t", "long", "bool"):
        return
    end = min(file.siblings(i, len(file.tokens), ";", ","))
    at, value = file.slice(i + 1, end)
    if kind == "bool":
        verdicts = tuple(verdict for verdict in ("true", "false") if verdict != value)
        yield from _condition(file, i + 1, end, verdicts)
    elif "*" in words or (const and kind not in ("T", "float")):
        yield "index", at, value, f"{value} + 1"
    elif not const and kind in ("T", "float", "Square", "double"):
        name = file.tokens[i - 1] if file.tokens[i - 1] != "]" else words[1]
        if re.search(rf"\b{name}(\[[\w +/%]*\])* (\+=|= fused\()|> {name} \?", file.text[at:]):
            yield (
                "reset",
                at,
                value,
                "{{{1}}}" if kind == "Square" else "{1}" if value == "{}" else "7",
            )


def _arguments(file: _File, i: int) -> Iterator[Place]:
    """Two neighbours in a call, the one for the other."""
    parts = file.split(i + 1, file.partner[i], ",")
    for (a, b), (c, d) in pairwise(parts):
        at, both = file.slice(a, d)
        first, second = file.slice(a, b)[1], file.slice(c, d)[1]
        if first != second and first.isidentifier() and second.isidentifier():
            yield "stride", at, both, f"{second}, {first}"
