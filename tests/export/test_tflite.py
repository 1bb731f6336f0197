"""Files of LiteRT: what shares memory is copied exactly where it would be written over."""

import numpy as np
import pytest

from halfstep.core.grid import Affine
from halfstep.core.qtype import INT8
from halfstep.formats.tflite import LiteRTFile, schema

pytest.importorskip("ai_edge_litert")
GRID = Affine(INT8, np.float32(0.1), np.int32(0))


def kinds_of(chain: str, *others: str) -> list[str]:
    """The operators of a file: a chain behind the input, and ADDs to what some of it made."""
    file = LiteRTFile()
    x = last = file.tensor("x", (1, 8), "int8", GRID)
    outputs = {}
    for kind in chain.split():
        out = file.tensor(f"{kind}{len(outputs)}", (1, 8), "int8", GRID)
        file.operator(kind, [last, x] if kind in ("ADD", "MUL") else [last], out)
        outputs[kind] = last = out
    for name in others:
        again = file.tensor(f"again{len(outputs)}", (1, 8), "int8", GRID)
        file.operator("ADD", [outputs[name], x], again)
        outputs[f"again{len(outputs)}"] = again
    file.sign({"x": x}, {"y": last})
    content = file.to_bytes()
    model = schema().ModelT.InitFromPackedBuf(content, 0)
    named = {v: k for k, v in vars(schema().BuiltinOperator).items() if isinstance(v, int)}
    codes = [named[code.builtinCode] for code in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]


@pytest.mark.parametrize(
    ("chain", "read_again"),
    [
        ("ADD RESHAPE SOFTMAX", "ADD"),
        ("MUL RESHAPE ADD", "MUL"),
        ("SOFTMAX RESHAPE MUL", "SOFTMAX"),
        ("BATCH_MATMUL BITCAST RESHAPE SOFTMAX", "BITCAST"),
        ("ADD RESHAPE BITCAST SOFTMAX", "ADD"),
    ],
)
def test_what_is_read_again_is_copied_before_it_is_written_over(
    chain: str, read_again: str
) -> None:
    kinds = kinds_of(chain, read_again)
    assert kinds.count("CONCATENATION") == 1
    assert kinds.index("CONCATENATION") == chain.split().index(read_again) + 1


@pytest.mark.parametrize(
    ("chain", "read_again"),
    [
        ("ADD RESHAPE SOFTMAX", ()),
        ("ADD RESHAPE SOFTMAX", ("ADD", "RESHAPE")),
        ("ADD RESHAPE TANH", ("ADD",)),
        ("CONV_2D RESHAPE SOFTMAX", ("CONV_2D",)),
        ("ADD RESHAPE", ("ADD",)),
        ("ADD SOFTMAX", ("ADD",)),
    ],
)
def test_nothing_else_is_copied(chain: str, read_again: tuple[str, ...]) -> None:
    assert "CONCATENATION" not in kinds_of(chain, *read_again)
