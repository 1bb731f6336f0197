"""The examples of a Markdown page, and how they run.

- A block of ``python`` is a script, a block of ``pycon`` a console session with its answers. The
  blocks of one page run in order and share one namespace.
- ``<!-- no-run -->`` on the line above a block leaves it out; ``<!-- no-run: needs a board -->``
  also says why.
"""

import doctest
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<info>[^`]*?)\s*$")
NO_RUN = re.compile(r"^\s*<!-- no-run(?:: (?P<reason>.+?))? -->\s*$")
LANGUAGES = frozenset({"python", "pycon"})
OTHER_SPELLINGS = frozenset({"py", "python3", "py3", "python-console", "python-repl"})


class PageError(ValueError):
    """A page whose examples cannot be told apart with certainty."""


@dataclass(frozen=True)
class Block:
    """One example: ``line`` is that of its first line of code, counted from 1."""

    page: Path
    line: int
    language: str
    code: str
    runs: bool
    reason: str

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def placed_code(self) -> str:
        """The code at the line that it has on the page, so that tracebacks point there."""
        return "\n" * (self.line - 1) + self.code


def blocks_of(page: Path) -> list[Block]:
    """Every Python example of the page, in order."""
    lines = page.read_text().splitlines()
    blocks: list[Block] = []
    marks = {number for number, text in enumerate(lines) if NO_RUN.match(text)}
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening is None:
            number += 1
            continue
        end = closing_line(page, lines, number, opening)
        marks -= set(range(number + 1, end))
        language = language_of(page, number, opening["info"])
        if language in LANGUAGES:
            indent = len(opening["indent"])
            code = "".join(text[indent:] + "\n" for text in lines[number + 1 : end])
            mark = NO_RUN.match(lines[number - 1]) if number else None
            marks.discard(number - 1)
            reason = (mark and mark["reason"]) or "marked no-run"
            blocks.append(Block(page, number + 2, language, code, mark is None, reason))
        number = end + 1
    if marks:
        raise PageError(f"{page.name}:{min(marks) + 1}: no-run above no Python block")
    return blocks


def closing_line(page: Path, lines: list[str], start: int, opening: re.Match[str]) -> int:
    """The line that closes the fence opened at ``start``: as many of its signs, or more, alone."""
    fence = opening["fence"]
    for number in range(start + 1, len(lines)):
        closing = lines[number].strip()
        if closing.startswith(fence) and not closing.strip(fence[0]):
            return number
    raise PageError(f"{page.name}:{start + 1}: this block is never closed")


def language_of(page: Path, number: int, info: str) -> str:
    """The first word of the line that opens a block; more words would be marks nobody reads."""
    language, _, rest = info.partition(" ")
    if language.lower() in OTHER_SPELLINGS or language.lower() in LANGUAGES - {language}:
        raise PageError(f"{page.name}:{number + 1}: write python or pycon, found {language!r}")
    if language in LANGUAGES and rest:
        raise PageError(
            f"{page.name}:{number + 1}: found {rest!r} after {language}; "
            "to leave a block out, write <!-- no-run --> on the line above"
        )
    return language


def check_syntax(block: Block) -> None:
    """Raises what Python raises if the example is not even Python."""
    code = block.placed_code
    if block.language == "pycon":
        code = doctest.script_from_examples(code)
    compile(code, str(block.page), "exec", dont_inherit=True)


def run(block: Block, module: ModuleType) -> None:
    """Runs the example with the names of ``module``; raises what it raises."""
    if block.language == "pycon":
        run_doctest(block, module)
        return
    code = compile(block.placed_code, str(block.page), "exec", dont_inherit=True)
    exec(code, module.__dict__)


def run_doctest(block: Block, module: ModuleType) -> None:
    """Runs a console session; raises ``AssertionError`` with what was expected and found."""
    page = str(block.page)
    test = doctest.DocTestParser().get_doctest(block.code, module.__dict__, page, page, block.line)
    if not test.examples:
        raise PageError(f"{block.where}: a pycon block needs lines that begin with >>>")
    test.globs = module.__dict__  # the parser copies it; what a session defines, the next may use
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append, clear_globs=False)
    assert not report, "\n" + "".join(report)
