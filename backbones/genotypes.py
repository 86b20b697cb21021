"""Genotypes: cells as data, that is, the operations that connect the states of a cell.

A cell has two input states (0: the output of the cell before the last, 1: the output of the last cell). Each node adds
a state, the sum of operations on earlier states. This module does not import torch, because configs and the tools that
draw cells use it too.
"""

import ast
import json
from typing import NamedTuple

from utils.errors import UserError
from utils.registry import OPERATIONS

# The operations of an edge in the published search, in the order of its alphas.
SEARCH_SPACE = (
    "max_pool_3x3", "avg_pool_3x3", "skip_connect", "dw_conv_3x3", "dw_conv_5x5", "dw_conv_7x7", "dw_conv_1x1", "none",
)  # fmt: skip
N_INPUTS = 2  # states 0 and 1
MAX_TEXT_LENGTH = 1 << 16  # maximum characters of a genotype as text; the published ones have 500

Node = list[tuple[str, int]]  # (operation, input state) of each edge


class Genotype(NamedTuple):
    """Normal and reduction cell: their nodes, and the states concatenated to the output of the cell."""

    normal: list[Node]
    normal_concat: list[int]
    reduce: list[Node]
    reduce_concat: list[int]


class GenotypeError(UserError):
    """A genotype that cannot be built."""


# Searched on CASIA-WebFace. All published PocketNets use it (paper, Fig. 2).
SOFTMAX_CASIA = (
    "Genotype(normal=[[('dw_conv_3x3', 0), ('dw_conv_1x1', 1)], [('dw_conv_3x3', 2), ('dw_conv_5x5', 0)], "
    "[('dw_conv_3x3', 3), ('dw_conv_3x3', 0)], [('dw_conv_3x3', 4), ('skip_connect', 0)]], "
    "normal_concat=range(2, 6), "
    "reduce=[[('dw_conv_3x3', 1), ('dw_conv_7x7', 0)], [('skip_connect', 2), ('dw_conv_5x5', 1)], "
    "[('max_pool_3x3', 0), ('skip_connect', 2)], [('max_pool_3x3', 0), ('max_pool_3x3', 1)]], "
    "reduce_concat=range(2, 6))"
)
# Searched on CIFAR-10 (paper, ablation of the search data).
SOFTMAX_CIFAR10 = (
    "Genotype(normal=[[('dw_conv_7x7', 0), ('dw_conv_3x3', 1)], [('dw_conv_1x1', 1), ('dw_conv_1x1', 2)], "
    "[('max_pool_3x3', 2), ('dw_conv_7x7', 3)], [('dw_conv_5x5', 4), ('max_pool_3x3', 0)]], "
    "normal_concat=range(2, 6), "
    "reduce=[[('max_pool_3x3', 0), ('dw_conv_7x7', 1)], [('max_pool_3x3', 0), ('max_pool_3x3', 1)], "
    "[('max_pool_3x3', 0), ('max_pool_3x3', 2)], [('max_pool_3x3', 0), ('max_pool_3x3', 1)]], "
    "reduce_concat=range(2, 6))"
)


def parse_genotype(text: str | Genotype) -> Genotype:
    """Parses and checks `Genotype(normal=[[('dw_conv_3x3', 0), …]], normal_concat=range(2, 6), reduce=…, …)`.

    Also accepts the JSON of `to_json`, and a Genotype, which is checked. No part of the text is executed. Raises
    GenotypeError, which names the wrong part.
    """
    if isinstance(text, Genotype):
        parts = text._asdict()
    elif isinstance(text, str):
        text = text.strip()
        if len(text) > MAX_TEXT_LENGTH:  # quoting from a text takes time quadratic in its length
            raise GenotypeError(
                f"genotype: {len(text)} characters are too long, {MAX_TEXT_LENGTH} at most: {_short(text)}"
            )
        if text.startswith("{"):
            parts = _from_json(text)
        else:
            parts = {name: _evaluate(value, name, text) for name, value in _keywords(text).items()}
    else:
        raise GenotypeError(f"genotype: should be a text, Genotype(normal=…, …), is {_short(text)}")
    for kind in ("normal", "reduce"):
        parts[kind] = _check_nodes(parts[kind], kind)
        # The inputs of a reduction cell have twice the resolution of its nodes and cannot be concatenated.
        first = N_INPUTS if kind == "reduce" else 0
        parts[f"{kind}_concat"] = _check_concat(parts[f"{kind}_concat"], f"{kind}_concat", first, len(parts[kind]))
    return Genotype(**parts)


def to_text(genotype: Genotype) -> str:
    """Formats a genotype as one line of Python, as in configs and published checkpoints. `parse_genotype` reads it."""
    return repr(genotype)


def to_json(genotype: Genotype) -> str:
    """Formats a genotype as one line of JSON: {"normal": [[["dw_conv_3x3", 0], …], …], "normal_concat": […], …}."""
    return json.dumps(genotype._asdict())


def _from_json(text: str) -> dict[str, object]:
    """Returns the four fields of a genotype in JSON, not yet checked."""
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GenotypeError(f"genotype: not JSON ({error!s:.60}): {_short(text)}") from None
    if sorted(parts) != sorted(Genotype._fields):
        raise GenotypeError(f"genotype: needs {', '.join(Genotype._fields)} once each; has {_short(', '.join(parts))}")
    return parts


def _keywords(text: str) -> dict[str, ast.expr]:
    """Returns the four keyword arguments of a genotype in Python, not yet evaluated."""
    try:
        call = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise GenotypeError(f"genotype: not readable ({error}): {_short(text)}") from None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Genotype"):
        raise GenotypeError(f"genotype: should read Genotype(normal=…, …), not {_short(text)}")
    given = [*("an argument without a name" for _ in call.args), *(keyword.arg or "**" for keyword in call.keywords)]
    if sorted(given) != sorted(Genotype._fields):
        has = _short(", ".join(given)) if given else "none"
        raise GenotypeError(f"genotype: needs {', '.join(Genotype._fields)} once each, by name; has {has}")
    return {name: keyword.value for name, keyword in zip(given, call.keywords, strict=True)}


def _evaluate(value: ast.expr, name: str, text: str) -> object:
    """Evaluates a literal, or range(a, b) as in the published configs."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "range":
        bounds = [arg.value for arg in value.args if isinstance(arg, ast.Constant)]
        is_plain = len(bounds) == len(value.args) == 2 and not value.keywords
        if is_plain and all(type(b) is int and abs(b) < 1000 for b in bounds):
            return list(range(*bounds))  # type: ignore[arg-type]
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        # Quotes the source text: ast.unparse may exceed the recursion limit too.
        source = ast.get_source_segment(text, value)
        raise GenotypeError(f"genotype {name}: not a list of nodes or states: {_short(source)}") from None


def _check_nodes(nodes: object, kind: str) -> list[Node]:
    """Returns the nodes of a cell as lists. Raises GenotypeError."""
    if not isinstance(nodes, list | tuple) or not nodes:
        raise GenotypeError(f"genotype {kind}: should be a list of nodes, is {_short(nodes)}")
    checked = []
    for n, edges in enumerate(nodes):
        where = f"genotype {kind}, node {n}"
        if not isinstance(edges, list | tuple) or not edges:
            raise GenotypeError(f"{where}: should be a list of ('operation', state), is {_short(edges)}")
        checked.append([_check_edge(edge, f"{where}, edge {i}", N_INPUTS + n) for i, edge in enumerate(edges)])
    return checked


def _check_edge(edge: object, where: str, n_states: int) -> tuple[str, int]:
    """Returns (operation, state) of an edge that may read states below n_states. Raises GenotypeError."""
    if not isinstance(edge, list | tuple) or len(edge) != 2:
        raise GenotypeError(f"{where}: should be ('operation', state), is {_short(edge)}")
    op, state = edge
    if not isinstance(op, str) or op not in OPERATIONS:
        raise GenotypeError(f"{where}: unknown operation {_short(op)}", fix=f"known: {', '.join(OPERATIONS)}")
    if type(state) is not int or not 0 <= state < n_states:
        raise GenotypeError(f"{where}: reads state {_short(state)}, but only states 0 to {n_states - 1} exist there")
    return op, state


def _check_concat(states: object, name: str, first: int, n_nodes: int) -> list[int]:
    """Returns the concatenated states as a list, each from `first` on and at most once. Raises GenotypeError."""
    n_states = N_INPUTS + n_nodes
    if not isinstance(states, list | tuple | range) or not states:
        raise GenotypeError(f"genotype {name}: should be a list of states, is {_short(states)}")
    wrong = [state for state in states if type(state) is not int or not first <= state < n_states]
    if wrong or len(set(states)) != len(states):
        raise GenotypeError(
            f"genotype {name}: {_short(list(states))} should name states {first} to {n_states - 1}, each once"
        )
    return list(states)


def _short(value: object, limit: int = 80) -> str:
    """Formats a value for a message, cut after `limit` characters."""
    try:
        text = repr(value)
    except ValueError:  # it holds an integer with more digits than Python prints
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= limit else text[:limit] + "…"
