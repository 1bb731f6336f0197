"""Advice of the library, which speaks Python, in the words of the command line."""

import ast
import re
from collections.abc import Callable

_PLAN = "plan.yaml ('halfstep plan --out' writes one, --plan takes it)"
_FLOAT = f"'NAME: float' under executions in {_PLAN}"


def on_command_line(text: str) -> str:
    """``text`` with options and lines of ``plan.yaml`` in place of calls and keywords."""
    for pattern, said in _WORDS.items():
        text = re.sub(pattern, said, text)
    head, plan, rest = text.partition(_PLAN)
    return head + plan + rest.replace(_PLAN, "plan.yaml")  # what that is, is said once


def _edit(found: re.Match[str]) -> str:
    """``plan.edit(site, name=value)`` as options, and as lines of the plan."""
    call = ast.parse(found[0], mode="eval").body
    assert isinstance(call, ast.Call)
    site = ast.literal_eval(call.args[0])
    changes = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    lines = ", ".join(f"{name}: {_yaml(value)}" for name, value in changes.items())
    option = ""
    if "group_size" in changes:
        option = "no --group-size, or "
    elif "qtype" in changes:
        kind = "--weight-type" if site.endswith(":weight") else "--activation-type"
        option = f"{kind} {changes['qtype']}, or "
    return f"{option}'{lines}' for {site} under specs in {_PLAN}"


def _yaml(value: object) -> str:
    return "null" if value is None else str(value).lower()


def _keep_float(found: re.Match[str]) -> str:
    name = found[1]
    return _FLOAT if name == "..." else _FLOAT.replace("NAME", str(ast.literal_eval(name)))


_WORDS: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"plan\.edit\((?:'[^']*'|\"[^\"]*\")(?:, \w+=(?:'[^']*'|\w+))+\)": _edit,
    r"plan\.keep_float\((\.\.\.|'[^']*'|\"[^\"]*\")\)": _keep_float,
    r"\bcapture\((?:model, example|\.\.\.), only=[^)]*\)": (
        "give as MODEL a callable that makes that part alone"
    ),
    r"\(plan\.edit, search\.allocate\)": f"('qtype' under specs in {_PLAN})",
    r"\(plan\.keep_float, search\.partially_quantize\)": f"({_FLOAT})",
    r"\(per_channel=True\)": "(without --per-tensor)",
    r"\bweight_calibrator='(\w+)'": r"--weight-calibrator \1",
    r"\bcalibrator='(\w+)'": r"--calibrator \1",
    r"\(ptq\.equalize, ptq\.smooth\)": "(--recipe dfq, --recipe transformer_ptq)",
    r"\(ptq\.equalize\)": "(--recipe dfq)",
    r"\(ptq\.smooth\)": "(--recipe transformer_ptq)",
    r"\(ptq\.round_weights\)": "(--recipe low_bit)",
}
