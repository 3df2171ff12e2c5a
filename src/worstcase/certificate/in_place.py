"""What a network changes in place, which the bounds do not follow."""

from __future__ import annotations

from typing import Any

from torch import fx

from worstcase.certificate.products import Unsupported
from worstcase.certificate.tables import IN_PLACE, NEW, QUERIES


def check_in_place(traced: fx.GraphModule) -> None:
    """Refuse what changes a tensor that is used again: the rules compute nothing in place.

    Views of the tensor and what it is a view of count too, and all that may be one, such as `.float()`.
    """

    def layer(node: fx.Node) -> Any:
        return traced.get_submodule(str(node.target)) if node.op == "call_module" else None

    def in_place(node: fx.Node) -> bool:
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        ends = node.op.startswith("call_") and str(name).endswith("_") and not str(name).endswith("__")
        return bool(
            node.target in IN_PLACE or ends or node.kwargs.get("inplace") or getattr(layer(node), "inplace", False)
        )

    def is_view(node: fx.Node) -> bool:
        if node.target in QUERIES or (node.target is getattr and node.args[1] in QUERIES):
            return False
        kind = type(layer(node)) if node.op == "call_module" else node.target
        return bool(node.all_input_nodes) and (kind not in NEW or in_place(node))

    place = {node: number for number, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if not (in_place(node) and node.all_input_nodes):
            continue
        root = node.all_input_nodes[0]
        while is_view(root):
            root = root.all_input_nodes[0]
        if root.op == "get_attr":
            raise Unsupported(f"{name_of(root.target)}, which the network changes in place")
        same = [root]
        for one in same:
            same += [user for user in one.users if user is not node and is_view(user) and user not in same]
        if any(place[user] > place[node] for one in same for user in one.users):
            raise Unsupported(f"{name_of(node.target)}, which changes in place what is used again")


def name_of(target: Any) -> str:
    """The name of a layer in the user's network, or of a function."""
    if isinstance(target, str):
        return target.removeprefix("0.") if target != "0" else "the network"
    return getattr(target, "__name__", str(target))
