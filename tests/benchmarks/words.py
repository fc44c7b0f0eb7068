"""Words that the project does not use, counted; exit status 1 where there are any.

    python tests/benchmarks/words.py [--list] [PATH...]    lidar_cli, README.md, CONTRIBUTING.md
    python tests/benchmarks/words.py --sizes [FOLDER...]   files, lines and functions of lidar_cli

In Python: words in names (split at underscores), comments and strings; identifiers as whole names.
In other text: words alone. With --sizes the exit status is 1 where the longest function has LONGEST
lines or more, or the 95th percentile is USUAL or more.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

WORDS = ("tell", "tells", "told", "goes on with", "puts out", "of its own")
IDENTIFIERS = ("found", "known", "kept", "made", "own", "told")
PACKAGE, PROSE = Path("lidar_cli"), (Path("README.md"), Path("CONTRIBUTING.md"))
KEYS = ('"told"',)  # of JSON that programs read: such a key keeps its name
LONGEST, USUAL = 80, 40  # lines of a function
TEXT = (tokenize.COMMENT, tokenize.STRING)
PATTERN = re.compile(rf"(?<![a-zA-Z])({'|'.join(WORDS)})(?![a-zA-Z])", re.IGNORECASE)


def occurrences(source: str) -> Iterator[tuple[int, str]]:
    """Line and word of each that the source of a module has."""
    text = (*TEXT, *(getattr(tokenize, name, -1) for name in ("FSTRING_MIDDLE",)))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            if token.string in IDENTIFIERS:
                yield token.start[0], f"identifier {token.string}"
            for part in token.string.lower().split("_"):
                if part in WORDS and token.string != "tell":  # a method of files
                    yield token.start[0], f"word {part}"
        elif token.type in text and token.string not in KEYS:
            joined = re.sub(r"\s+", " ", token.string)
            for match in PATTERN.finditer(joined):
                yield token.start[0], f"word {match[1].lower()}"


def occurrences_in_text(text: str) -> Iterator[tuple[int, str]]:
    """Line and word of each in prose."""
    for number, line in enumerate(text.splitlines(), 1):
        for match in PATTERN.finditer(line):
            yield number, f"word {match[1].lower()}"


def count_words(paths: Sequence[Path], listed: bool) -> int:
    """Print how often each word occurs; returns how many do."""
    counts: Counter[str] = Counter()
    for file in (file for path in paths for file in files_of(path)):
        text = file.read_text(encoding="utf-8")
        for line, what in (occurrences if file.suffix == ".py" else occurrences_in_text)(text):
            counts[what] += 1
            if listed:
                print(f"{file}:{line}: {what}")
    for what, count in sorted(counts.items()):
        print(f"{what:20} {count}")
    print(f"{'all':20} {counts.total()}")
    return counts.total()


def files_of(path: Path) -> list[Path]:
    """The Python files of a folder, or the file itself."""
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def function_lengths(source: str) -> Iterator[tuple[int, str]]:
    """Lines and name of each function, from `def` to its last line; nested ones count twice."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.end_lineno - node.lineno + 1, node.name


def print_sizes(paths: Sequence[Path]) -> bool:
    """Print files, lines and lengths of functions; returns whether functions are short enough."""
    sources = {file: file.read_text(encoding="utf-8") for p in paths for file in files_of(p)}
    lengths = sorted(
        (length, f"{file}:{name}")
        for file, source in sources.items()
        for length, name in function_lengths(source)
    )
    usual, (longest, name) = lengths[int(0.95 * len(lengths))][0], lengths[-1]
    print(f"{len(sources)} files, {sum(len(s.splitlines()) for s in sources.values())} lines")
    print(f"{len(lengths)} functions, 95th percentile {usual} lines, longest {longest}: {name}")
    return usual < USUAL and longest < LONGEST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print each occurrence")
    parser.add_argument("--sizes", action="store_true", help="print files, lines and lengths")
    parser.add_argument("paths", nargs="*", type=Path)
    options = parser.parse_args()
    if options.sizes:
        sys.exit(not print_sizes(options.paths or [PACKAGE]))
    sys.exit(bool(count_words(options.paths or [PACKAGE, *PROSE], options.list)))


if __name__ == "__main__":
    main()
