"""Words that the code does not use, counted in `lidar_cli/`; exit status 1 where there are any.

    python tests/benchmarks/words.py [--list] [FOLDER...]

Words: in names (split at underscores), comments and strings. Identifiers: whole names only.
"""

import argparse
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

WORDS = ("tell", "tells", "told", "goes on with", "puts out", "of its own")
IDENTIFIERS = ("found", "known", "kept", "made", "own", "told")
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
        elif token.type in text:
            joined = re.sub(r"\s+", " ", token.string)
            for match in PATTERN.finditer(joined):
                yield token.start[0], f"word {match[1].lower()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print each place")
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("lidar_cli")])
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for folder in options.folders:
        for path in sorted(folder.rglob("*.py")):
            for line, what in occurrences(path.read_text(encoding="utf-8")):
                counts[what] += 1
                if options.list:
                    print(f"{path}:{line}: {what}")
    for what, count in sorted(counts.items()):
        print(f"{what:20} {count}")
    print(f"{'all':20} {counts.total()}")
    sys.exit(1 if counts else 0)


if __name__ == "__main__":
    main()
