"""The Python examples of README.md and docs/ run."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.markdown import Block, PageError, blocks_of, check_syntax, run

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
EXAMPLE_MODULES = ROOT / "examples" / "cifar10"

PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


def run_page(blocks: list[Block], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Runs the blocks in order, as one module that can be found: classes in it can be copied."""
    module = ModuleType("page_examples")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks:
        if block.runs:
            run(block, module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLE_MODULES)
    run_page(blocks_of(page), monkeypatch)


def test_the_readme_has_an_example_that_runs() -> None:
    assert any(block.runs for block in blocks_of(README))


def test_examples_left_out_are_python_and_are_reported() -> None:
    left_out = [block for page in PAGES for block in blocks_of(page) if not block.runs]
    for block in left_out:
        check_syntax(block)
    if left_out:
        pytest.skip("; ".join(f"{block.where} did not run: {block.reason}" for block in left_out))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "page.md"


def fenced(code: str, info: str = "python") -> str:
    return f"```{info}\n{code}\n```\n"


def test_blocks_run_in_order_in_one_namespace(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page.write_text(
        "# Page\n\n"
        + fenced("x = [1]")
        + fenced("exit 1", "sh")
        + fenced("raise SystemExit", "")
        + fenced(">>> x.append(2)\n>>> y = len(x)\n>>> x\n[1, 2]", "pycon")
        + "- in a list\n\n  ```python\n  for item in x:\n      y += item\n  ```\n"
    )
    assert run_page(blocks_of(page), monkeypatch).y == 5


def test_a_block_knows_its_line(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page.write_text("text\n\n" + fenced("x = 1\nraise RuntimeError('here')"))
    with pytest.raises(RuntimeError) as caught:
        run_page(blocks_of(page), monkeypatch)
    assert caught.traceback[-1].lineno + 1 == 5
    assert str(caught.traceback[-1].path) == str(page)


def test_what_a_page_defines_can_be_copied_and_shows_its_source(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.write_text(
        fenced("class A:\n    n = 1")
        + fenced("def f(x):\n    return x")
        + fenced("import inspect, pickle\n\na = pickle.loads(pickle.dumps(A()))")
        + fenced("source = inspect.getsource(f)")
    )
    module = run_page(blocks_of(page), monkeypatch)
    assert module.a.n == 1
    assert module.source == "def f(x):\n    return x\n"


def test_a_session_with_another_answer_is_rejected(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.write_text(fenced(">>> 1 + 1\n3", "pycon"))
    with pytest.raises(AssertionError, match=r"(?s)Expected:\s+3\s+Got:\s+2"):
        run_page(blocks_of(page), monkeypatch)


def test_a_marked_block_does_not_run(page: Path) -> None:
    page.write_text(
        fenced("a = 1")
        + "<!-- no-run -->\n"
        + fenced("b = 1")
        + "<!-- no-run: needs a board -->\n"
        + fenced("c = 1")
    )
    assert [(block.runs, block.reason) for block in blocks_of(page)] == [
        (True, "marked no-run"),
        (False, "marked no-run"),
        (False, "needs a board"),
    ]


def test_a_marked_block_must_still_be_python(page: Path) -> None:
    page.write_text("<!-- no-run -->\n" + fenced("x = = 1"))
    (block,) = blocks_of(page)
    with pytest.raises(SyntaxError, match="invalid syntax"):
        check_syntax(block)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nx = 1\n", r"page\.md:1: this block is never closed"),
        ("```python no-run\n```\n", r"page\.md:1: found 'no-run' after python; to leave a block"),
        ("```py\n```\n", r"page\.md:1: write python or pycon, found 'py'"),
        ("```Python\n```\n", r"page\.md:1: write python or pycon, found 'Python'"),
        ("<!-- no-run -->\n\n```python\n```\n", r"page\.md:1: no-run above no Python block"),
        ("<!-- no-run -->\n```sh\n```\n", r"page\.md:1: no-run above no Python block"),
    ],
)
def test_a_page_that_might_hide_an_example_is_rejected(page: Path, text: str, message: str) -> None:
    page.write_text(text)
    with pytest.raises(PageError, match=message):
        blocks_of(page)


def test_a_session_without_prompts_is_rejected(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page.write_text(fenced("1 + 1", "pycon"))
    with pytest.raises(PageError, match="needs lines that begin with >>>"):
        run_page(blocks_of(page), monkeypatch)


def test_a_fence_quoted_in_a_longer_fence_is_text(page: Path) -> None:
    page.write_text("````md\n<!-- no-run -->\n```python\nx\n```\n````\n~~~python\ny = 1\n~~~\n")
    assert [(block.line, block.code) for block in blocks_of(page)] == [(8, "y = 1\n")]
