"""``torch.export`` with a dynamic batch, brought into the canonical form that the rest reads."""

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec

from halfstep.data import key_of
from halfstep.errors import CaptureError, DataError, unknown_name
from halfstep.graph.batchnorm import fold_batchnorm
from halfstep.graph.canonical import canonicalize
from halfstep.graph.constants import fold_constants
from halfstep.graph.eager import first_line, is_users, original, run_eagerly, tensors_in, users_line
from halfstep.graph.elsewhere import compare_elsewhere
from halfstep.graph.masks import mark_masks
from halfstep.graph.named_tensors import check_finite, check_float32, check_mode, check_names
from halfstep.graph.parameters import fold_computed_weights, separate_roles

Example = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
# Folding a batch norm and splitting attention reorder float32 arithmetic by this much, relative
# to the largest output.
_TOLERANCE = 1e-4
# A batch size that no branch of a model distinguishes from any larger one.
_LARGE_BATCH = 2**20


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured model in eval mode.

    Attributes:
        module: the graph; batch norms behind convolutions are folded, attention is split into
            matrix products and a softmax, chunks are slices.
        inputs: names of the inputs, in order.
        example: two samples of inputs, in the same order.
        output_spec: how the flat outputs of the graph nest in the model's output.
        keywords: the arguments by which the model takes its inputs, in the same order, where the
            example was a dict; empty where it takes them by position.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    example: tuple[Tensor, ...]
    output_spec: TreeSpec
    keywords: tuple[str, ...]

    def in_order(self, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> list[Tensor]:
        """The inputs, some of them given by name, as the graph takes them."""
        return [*args, *(kwargs[key_of(name, kwargs)] for name in self.inputs[len(args) :])]


def capture(model: nn.Module, example_inputs: Example, *, only: str | None = None) -> Graph:
    """Capture ``model``, which is left as it was.

    Args:
        model: any module that ``torch.export`` accepts.
        example_inputs: a tensor, a tuple of tensors or a dict by argument name; axis 0 of each
            is the batch, which stays dynamic.
        only: the name of a submodule to capture alone; ``example_inputs`` are that submodule's.

    Raises:
        CaptureError: the export refuses the model, its graph computes something else, or its
            weights or outputs are no numbers.
        DataError: the model itself cannot run on the example.
    """
    model = original(model)
    if only is not None:
        model = _submodule(model, only)
    check_mode()
    check_float32(model)
    check_names(model)
    was_training = model.training
    # Attention in one fused kernel rounds in another order than the operations that are captured.
    was_fused = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        given, by_name = _named(example_inputs, model), isinstance(example_inputs, Mapping)
        # Export would take a batch of 1 for a constant.
        inputs = {name: value[[0, -1]].clone() for name, value in given.items()}
        example = tuple(inputs.values())
        expected = run_eagerly(model, inputs, given, by_name)
        module, output_spec = _export(model, inputs, by_name)
        check_finite(module.graph, model)
        with torch.no_grad():
            _compare(module, example, expected, tolerance=0.0)
            canonicalize(module)
            fold_constants(module)
            fold_computed_weights(module)
            fold_batchnorm(module)
            separate_roles(module)
            mark_masks(module)
            _compare(module, example, expected, tolerance=_TOLERANCE)
            compare_elsewhere(module, model, inputs, by_name)
    finally:
        model.train(was_training)
        torch.backends.mha.set_fastpath_enabled(was_fused)
    names = tuple(node.name for node in module.graph.nodes if node.op == "placeholder")
    return Graph(module, names, example, output_spec, tuple(inputs) if by_name else ())


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise unknown_name("submodule", name, (n for n, _ in model.named_modules() if n)) from None


def _named(example: Example, model: nn.Module) -> dict[str, Tensor]:
    """The inputs by the names of the model's arguments, in their order, each with a sample."""
    if isinstance(example, Mapping):
        order = [name for name in inspect.signature(model.forward).parameters if name in example]
        named: dict[str, Any] = {name: example[name] for name in dict.fromkeys((*order, *example))}
    else:
        values = [example] if isinstance(example, Tensor) else list(example)
        names = [*inspect.signature(model.forward).parameters, *map(str, range(len(values)))]
        named = dict(zip(names, values, strict=False))
    for name, value in named.items():
        _check_example(name, value)
    return named


def _check_example(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) == 0:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise CaptureError(
            f"{name}:in: an example input must be a tensor with at least one sample on axis 0, "
            f"found {found}"
        )
    where = f"{name}:in: batch 0"
    if value.layout != torch.strided:
        raise DataError(f"{where}: asked for a dense tensor, found {value.layout}; use to_dense()")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise DataError(f"{where}: it holds NaN or infinity; clean the data")
    if value.is_floating_point() and value.dtype != torch.float32:
        raise DataError(f"{where}: asked for torch.float32, found {value.dtype}; convert it")
    if value.is_complex():
        raise DataError(
            f"{where}: asked for real numbers, found {value.dtype}; give both parts, as "
            "torch.view_as_real does"
        )


def _export(
    model: nn.Module, inputs: dict[str, Tensor], by_name: bool
) -> tuple[fx.GraphModule, TreeSpec]:
    batch = {0: torch.export.Dim.DYNAMIC}
    args, kwargs = ((), inputs) if by_name else (tuple(inputs.values()), {})
    shapes: Any = dict.fromkeys(kwargs, batch) if by_name else _as_given(model, batch, len(args))
    try:
        with _quietly():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises errors of many unrelated types
        raise CaptureError(_refusal(model, error)) from error
    _check_batch_is_free(model, program)
    exported = program.module(check_guards=False)
    graph = fx.Graph()
    graph.output(graph.graph_copy(exported.graph, {}))  # without the export's own calling code
    return fx.GraphModule(exported, graph), program.call_spec.out_spec


def _as_given(model: nn.Module, batch: Any, count: int) -> tuple[Any, ...]:
    """``batch`` for each positional input; those of ``*inputs`` are a tuple of their own."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    if len(named) == len(parameters) or count <= len(named):
        return (batch,) * count
    return (*(batch,) * len(named), (batch,) * (count - len(named)))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch prints beside the error that it raises: dumps of graphs, and hints."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            # Of recurrent layers, which make their list of weights anew.
            warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")
            yield
    finally:
        logger.setLevel(level)


def _check_batch_is_free(model: nn.Module, program: torch.export.ExportedProgram) -> None:
    """Refuse a graph that holds for some batch sizes only: a branch on the size was taken."""
    for symbol, sizes in program.range_constraints.items():
        if sizes.lower > 2 or sizes.upper < _LARGE_BATCH:
            raise CaptureError(
                f"{type(model).__name__}: the graph holds for batches of {sizes.lower} to "
                f"{sizes.upper} samples only ({symbol}): the model branches on the batch size. "
                "Make it do the same for every size."
            )
    flat = next(node for node in program.graph.nodes if node.op == "output").args[0]
    for index, value in enumerate(flat):
        if not isinstance(getattr(value, "meta", {}).get("val"), Tensor):
            raise CaptureError(
                f"output {index}: asked for a tensor, found {value}; wrap the model so that it "
                "gives tensors alone"
            )


def _refusal(model: nn.Module, error: Exception) -> str:
    """Which line of the model was refused, in torch's words, and what to do about it."""
    user = users_line(error)
    where = user or type(model).__name__
    if not user or "File " in str(error):
        lines = [line.strip() for line in str(error).splitlines() if 'File "' in line]
        mine = [line for line in lines if is_users(line.split('"')[1])]
        where = mine[-1] if mine else where
    return (
        f"{type(model).__name__}: torch.export refuses the model at {where}\n"
        f"  {first_line(error)}\n"
        "Replace control flow that depends on data or on the batch size by torch.where or a "
        "fixed size, or capture a part: capture(model, example, only='backbone')."
    )


def _compare(
    module: fx.GraphModule, example: tuple[Tensor, ...], expected: Any, tolerance: float
) -> None:
    found = tensors_in(module(*example))
    wanted = tensors_in(expected)
    if len(found) != len(wanted):
        raise CaptureError(f"the model gives {len(wanted)} tensors, its graph {len(found)}")
    for index, (f, w) in enumerate(zip(found, wanted, strict=True)):
        if w.is_floating_point() and not torch.isfinite(w).all():
            n_wrong = int((~torch.isfinite(w)).sum())
            raise CaptureError(
                f"output {index}: the model itself gives {n_wrong} of {w.numel()} values that are "
                "NaN or infinity, of weights that are finite: asked for numbers; look for a "
                "division by zero, the root or logarithm of what may be negative, or an overflow"
            )
        bound = tolerance * float(w.abs().max()) if w.is_floating_point() and w.numel() else 0.0
        distance = float((f - w).abs().max()) if w.is_floating_point() and w.numel() else 0.0
        if f.shape != w.shape or not distance <= bound:
            raise CaptureError(
                f"output {index}: the captured graph differs from the model by {distance:.3g} "
                f"(allowed {bound:.3g}) on the example; is the model random in eval mode?"
            )
