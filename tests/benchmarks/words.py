"""Counts words that the project does not use; exit status 1 if there are any.

    python tests/benchmarks/words.py [--list] [PATH...]    of PACKAGE and PROSE, or PATH
    python tests/benchmarks/words.py --sizes [FOLDER...]   files, lines and functions of lidar_cli

In Python, WORDS are counted in names (split at underscores), comments and strings, IDENTIFIERS only
as complete names. In other text WORDS are counted. With --sizes the exit status is 1 if the longest
function has MAX_LINES lines or more, or the 95th percentile is MAX_LINES_95 or more.
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
PACKAGE = Path("lidar_cli")
PROSE = (Path("README.md"), Path("CONTRIBUTING.md"), *sorted(PACKAGE.rglob("*.md")))
KEYS = ('"told"',)  # JSON keys, which cannot be renamed
MAX_LINES, MAX_LINES_95 = 80, 40  # of a function: the longest, the 95th percentile
TEXT = (tokenize.COMMENT, tokenize.STRING)
PATTERN = re.compile(rf"(?<![a-zA-Z])({'|'.join(WORDS)})(?![a-zA-Z])", re.IGNORECASE)


def occurrences(source: str) -> Iterator[tuple[int, str]]:
    """Line and word of each occurrence in the source of a module."""
    text = (*TEXT, *(getattr(tokenize, name, -1) for name in ("FSTRING_MIDDLE",)))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            if token.string in IDENTIFIERS:
                yield token.start[0], f"identifier {token.string}"
            for part in token.string.lower().split("_"):
                if part in WORDS and token.string != "tell":  # the method of files
                    yield token.start[0], f"word {part}"
        elif token.type in text and token.string not in KEYS:
            joined = re.sub(r"\s+", " ", token.string)
            for match in PATTERN.finditer(joined):
                yield token.start[0], f"word {match[1].lower()}"


def occurrences_in_text(text: str) -> Iterator[tuple[int, str]]:
    """Line and word of each occurrence in prose."""
    for number, line in enumerate(text.splitlines(), 1):
        for match in PATTERN.finditer(line):
            yield number, f"word {match[1].lower()}"


def count_words(paths: Sequence[Path], listed: bool) -> int:
    """Print how often each word occurs; returns the number of all occurrences."""
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
    """Print the numbers of files and lines; returns whether functions are short enough."""
    sources = {file: file.read_text(encoding="utf-8") for p in paths for file in files_of(p)}
    lengths = sorted(
        (length, f"{file}:{name}")
        for file, source in sources.items()
        for length, name in function_lengths(source)
    )
    percentile, (longest, name) = lengths[int(0.95 * len(lengths))][0], lengths[-1]
    print(f"{len(sources)} files, {sum(len(s.splitlines()) for s in sources.values())} lines")
    print(
        f"{len(lengths)} functions, 95th percentile {percentile} lines, longest {longest}: {name}"
    )
    return percentile < MAX_LINES_95 and longest < MAX_LINES


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
