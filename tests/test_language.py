"""The language of docstrings, comments, messages and docs: plain words and short sentences."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
UNUSED_WORDS = re.compile(
    r"\b(anew|likewise|bears|lies|lest|for want of|whoever|whatever|meanwhile|told|tells|comes to|as far as"
    r"|all the same|goes on)\b",
    re.IGNORECASE,
)
AMERICAN = re.compile(r"\b(colors?|colored|tumors?|neighbor\w*|center(s|ed)?|gray\w*)\b", re.IGNORECASE)
"""Prose is British; identifiers have `tumor` as the data do."""
LONGEST_SENTENCE = 30
"""Words of a sentence at most. Writers aim at 20."""
SOURCES = sorted(
    [*REPOSITORY.glob("*.py"), *(REPOSITORY / "panda").rglob("*.py"), *(REPOSITORY / "bench").glob("*.py")]
)
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "bench/*.md", "conf/**/*.yaml", "panda/**/*.html")
    for page in REPOSITORY.glob(pattern)
)
PARTICIPLES = re.compile(r"_*(made|kept|told|found|seen|drawn|taken|given|known|shown|gone|chosen|left|alike|of)(_|$)")


def docstring_nodes(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the node of every docstring, those below attributes included."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else ():
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                yield child.value


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line number and text of every docstring."""
    return ((node.lineno, str(node.value)) for node in docstring_nodes(tree))


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line number and text of every other string; a placeholder counts as one word."""
    nodes = list(ast.walk(tree))
    texts = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    seen = {id(part) for text in texts for part in ast.walk(text) if part is not text}
    seen |= {id(node) for node in docstring_nodes(tree)}
    for node in nodes:
        if id(node) in seen:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield line number and text of every comment."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def sentences(text: str) -> list[str]:
    """Cut prose into sentences: code, tables, headings and list items end one."""
    text = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"^\s*(\||#|>|!\[).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*([-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"^ *(Args|Attributes|Returns|Raises|Yields):$", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"^ +([*\w., ]+): ", r"\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "X", text)
    return [sentence for block in re.split(r"\n\s*\n", text) for sentence in re.split(r"(?<=[.!?:;])\s+", block)]


def american_words(text: str) -> list[str]:
    """List the words of a text in American spelling, except names in quotes and the names of arguments."""
    return [
        match[0] for match in AMERICAN.finditer(re.sub(r"`[^`]*`|\"[^\"]*\"|^ +\w+: ", "", text, flags=re.MULTILINE))
    ]


def long_sentences(text: str) -> list[str]:
    """List the sentences of a text that have too many words."""
    word = re.compile(r"[\w'µ²%-]*[A-Za-z][\w'-]*")
    return [" ".join(s.split()) for s in sentences(text) if len(word.findall(s)) > LONGEST_SENTENCE]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_source_texts_use_plain_words_and_short_sentences(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    prose = [*docstrings(tree), *messages(tree)]
    faults = [f"line {line}: {m[0]}" for line, text in [*prose, *comments(source)] for m in UNUSED_WORDS.finditer(text)]
    faults += [f"line {line}: {sentence}" for line, text in prose for sentence in long_sentences(text)]
    faults += [
        f"line {line}: {word}" for line, text in [*docstrings(tree), *comments(source)] for word in american_words(text)
    ]
    assert not faults


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_pages_use_plain_words_and_short_sentences(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    faults = [match[0] for match in UNUSED_WORDS.finditer(text)]
    assert not faults + (long_sentences(text) + american_words(text) if path.suffix == ".md" else [])


def test_functions_are_not_named_by_participles() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]
    names = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not [name for name in names if PARTICIPLES.match(name)]


def entries(docstring: str, section: str) -> list[str]:
    """List the names that a section of a docstring describes."""
    body = re.search(rf"^{section}:\n((?:    .*\n?|\n(?=    ))*)", docstring, re.MULTILINE)
    return re.findall(r"^    \*{0,2}(\w+): ", body[1], re.MULTILINE) if body else []


def argument_names(function: ast.FunctionDef) -> set[str]:
    """Return the names of the arguments of a function, except `self` and `cls`."""
    listed = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    listed += [one for one in (function.args.vararg, function.args.kwarg) if one is not None]
    return {one.arg for one in listed} - {"self", "cls"}


def attribute_names(kind: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Return the names of the fields, attributes and arguments of a class and of its bases."""
    names = {node.attr for node in ast.walk(kind) if isinstance(node, ast.Attribute)}
    names |= {node.id for child in kind.body for node in ast.walk(child) if isinstance(node, ast.Name)}
    names |= {name for child in kind.body if isinstance(child, ast.FunctionDef) for name in argument_names(child)}
    bases = [ast.unparse(base).partition("[")[0] for base in kind.bases]
    return names.union(*(attribute_names(classes[base], classes) for base in bases if base in classes))


def test_docstrings_describe_the_arguments_that_exist() -> None:
    nodes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    faults = []
    for node in nodes:
        text = ast.get_docstring(node) or "" if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
        if isinstance(node, ast.FunctionDef) and (described := entries(text, "Args")):
            faults += [f"{node.name}: {name}" for name in argument_names(node) ^ set(described)]
        elif isinstance(node, ast.ClassDef):
            described = entries(text, "Args") + entries(text, "Attributes")
            faults += [f"{node.name}: {name}" for name in set(described) - attribute_names(node, classes)]
    assert not faults


def test_language_checks_find_faults() -> None:
    assert UNUSED_WORDS.search("it is made anew")
    assert not UNUSED_WORDS.search("renewed")
    assert american_words("Colors of a tumor") == ["Colors", "tumor"]
    assert not american_words('Args:\n    tumor: Colours of `color` and "Tumor"')
    assert long_sentences("word " * 31 + ".")
    assert not long_sentences("word " * 30 + ". " + "word " * 30)
    assert [text for _, text in messages(ast.parse('"""Doc."""\nx = f"a {b} c"'))] == ["a X c"]
    assert entries(
        "Do it.\n\nArgs:\n    a: One.\n        b: no entry\n    **c: Two.\n\nReturns:\n    d: no.", "Args"
    ) == [
        "a",
        "c",
    ]
