"""Names of C for the names of a model."""

import re

from halfstep.errors import ExportError

# Words of C99, and what generated code and the runtime call things.
_TAKEN = frozenset(
    [
        "auto",
        "break",
        "case",
        "char",
        "const",
        "continue",
        "default",
        "do",
        "double",
        "else",
        "enum",
        "extern",
        "float",
        "for",
        "goto",
        "if",
        "inline",
        "int",
        "long",
        "register",
        "restrict",
        "return",
        "short",
        "signed",
        "sizeof",
        "static",
        "struct",
        "switch",
        "typedef",
        "union",
        "unsigned",
        "void",
        "volatile",
        "while",
        "NULL",
        "main",
        "arena",
        "patch",
        "sums",
        "memcpy",
        "memset",
        "rintf",
    ]
)


def identifier(name: str) -> str:
    """``name`` with everything that C does not take in a name as an underscore.

    >>> [identifier(name) for name in ("layer1.0.conv1:out", "3x3", "for", "été")]
    ['layer1_0_conv1_out', 'n3x3', 'for_', 'n_t_']
    """
    word = re.sub(r"[^A-Za-z0-9]+", "_", name)
    if not word[:1].isalpha():
        word = f"n{word}"
    return f"{word}_" if word in _TAKEN else word


def model_name(name: str) -> str:
    """The prefix of a model's files, functions and macros.

    Raises:
        ExportError: nothing of ``name`` is left.
    """
    if not re.search(r"[A-Za-z0-9]", name):
        raise ExportError(
            f"name {name!r}: asked for a name with a letter or a digit in it, which the files and "
            "functions in C start with; take name='model'"
        )
    return identifier(name.strip()).lower()


class Names:
    """A different identifier for every name."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._used: set[str] = set()

    def __getitem__(self, name: str) -> str:
        if name not in self._of:
            first = word = identifier(name)
            count = 1
            while word in self._used:
                count += 1
                word = f"{first}_{count}"
            self._used.add(word)
            self._of[name] = word
        return self._of[name]
