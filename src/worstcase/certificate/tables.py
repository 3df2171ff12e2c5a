"""Which rule each module, function and method has."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from worstcase.certificate.rules import (
    added,
    average,
    corners,
    monotone,
    negated,
    padded,
    positive,
    quotient,
    resized,
    rising,
    signless,
    smooth,
    smooth_positive,
    softplus,
    subtracted,
    valley,
)

LINEAR = {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d}
TRANSPOSED = {nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}
BATCH_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
NORMS = {*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm}
DROPOUTS = {nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout}
SHAPES = {nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, *DROPOUTS}
_PADS: set[type] = {
    getattr(nn, f"{kind}Pad{n}d") for kind in ("Zero", "Reflection", "Replication") for n in (1, 2, 3)
}
_CONSTANT_PADS: set[type] = {nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d}
PADS = {*_PADS, *_CONSTANT_PADS, F.pad}
_MAX_POOLS: set[type] = {nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d}
_MAX_POOLS |= {nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d}
AVERAGES = {nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d}
AVERAGES |= {nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d}
_GELU = valley(-0.7517915246935646, -0.7524614220710163)  # exact, and by tanh
_SILU, _MISH, _HARDSWISH = valley(-1.278464542761074), valley(-1.1924312145154954), valley(-1.5)

Rule = Callable[..., Any]
"""Called with the module or function and its arguments, some of them intervals."""

MODULES: dict[type, Rule] = {
    **dict.fromkeys([*SHAPES, *_MAX_POOLS, *_PADS], monotone),
    **dict.fromkeys(_CONSTANT_PADS, padded),
    **dict.fromkeys([nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d], resized),
    **dict.fromkeys(AVERAGES, average),
    **dict.fromkeys([nn.ReLU, nn.ReLU6, nn.Hardsigmoid], positive),
    **dict.fromkeys([nn.LeakyReLU, nn.ELU, nn.CELU], rising),
    **dict.fromkeys([nn.Tanh, nn.SELU, nn.LogSigmoid, nn.Softsign], smooth),
    nn.Sigmoid: smooth_positive,
    nn.Softplus: softplus,
    nn.Hardtanh: signless,
    nn.GELU: _GELU,
    nn.SiLU: _SILU,
    nn.Mish: _MISH,
    nn.Hardswish: _HARDSWISH,
}
SHAPE_METHODS = ["view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze"]
SHAPE_METHODS += ["contiguous", "chunk", "split", "expand", "detach", "clone", "unbind", "narrow", "select"]
SHAPE_METHODS += ["movedim", "swapaxes", "ravel", "repeat", "tile", "roll", "flip", "t", "repeat_interleave"]
SHAPE_METHODS += ["expand_as", "reshape_as"]
SHAPE_FUNCTIONS = {getattr(torch, n) for n in SHAPE_METHODS if hasattr(torch, n)} | {operator.getitem}
SHAPE_FUNCTIONS |= {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d}
SHAPE_FUNCTIONS |= {F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle}
FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys([*SHAPE_FUNCTIONS, torch.cat, torch.concat, torch.stack, torch.amax, torch.amin], monotone),
    **dict.fromkeys([F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d], monotone),
    **dict.fromkeys([F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d], monotone),
    **dict.fromkeys([F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.mean], average),
    **dict.fromkeys([F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d], average),
    **dict.fromkeys([F.relu, torch.relu, F.relu6, F.hardsigmoid], positive),
    **dict.fromkeys([F.leaky_relu, F.elu, F.celu], rising),
    **dict.fromkeys([torch.tanh, F.tanh, F.selu, F.logsigmoid, F.softsign], smooth),
    **dict.fromkeys([torch.sigmoid, F.sigmoid], smooth_positive),
    F.softplus: softplus,
    F.interpolate: resized,
    F.hardtanh: signless,
    F.pad: padded,
    **dict.fromkeys([operator.add, torch.add], added),
    **dict.fromkeys([operator.sub, torch.sub], subtracted),
    **dict.fromkeys([operator.mul, torch.mul], corners),
    **dict.fromkeys([operator.truediv, torch.div], quotient),
    **dict.fromkeys([operator.neg, torch.neg], negated),
    **dict.fromkeys([torch.maximum, torch.minimum, torch.clamp], signless),
    **dict.fromkeys([operator.abs, torch.abs], valley(0.0)),
    torch.sum: average,
    F.gelu: _GELU,
    F.silu: _SILU,
    F.mish: _MISH,
    F.hardswish: _HARDSWISH,
}
METHODS: dict[str, Rule] = {
    **dict.fromkeys([*SHAPE_METHODS, "amax", "amin", "float", "double"], monotone),
    "mean": average,
    "relu": positive,
    "tanh": smooth,
    "sigmoid": smooth_positive,
    "add": added,
    "sub": subtracted,
    "mul": corners,
    "div": quotient,
    "neg": negated,
    **dict.fromkeys(["maximum", "minimum", "clamp"], signless),
    "abs": valley(0.0),
    "sum": average,
}
QUERIES = ("size", "dim", "numel", "shape", "ndim", "dtype", "device", "new_zeros", "new_ones")
LIKE = {torch.zeros_like, torch.ones_like}
TURNED = ("T", "mT")
LINEAR_FUNCTIONS = {F.linear, F.conv1d, F.conv2d, F.conv3d}
MATRIX_PRODUCTS = {operator.matmul, torch.matmul, torch.mm, "matmul", "mm"}
TRANSPOSED_FUNCTIONS = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
IN_PLACE: dict[Any, Any] = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}
IN_PLACE |= {operator.itruediv: operator.truediv}
IN_PLACE |= {torch.relu_: torch.relu, F.relu_: F.relu}

_COPIES = [*_MAX_POOLS, F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d]
_COPIES += [F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, nn.Hardtanh, F.hardtanh]
_COPIES += [*_PADS, *_CONSTANT_PADS, F.pad, torch.cat, torch.concat, torch.stack, torch.clone, "clone"]
_COPIES += [nn.Embedding, *MATRIX_PRODUCTS, *LIKE]
_COPIES += [getattr(torch, n) for n in ("maximum", "minimum", "amax", "amin", "clamp")]
_COPIES += ["maximum", "minimum", "amax", "amin", "clamp", nn.RNN, nn.LSTM, nn.GRU]
NEW = {*LINEAR, *TRANSPOSED, *NORMS, *LINEAR_FUNCTIONS, *TRANSPOSED_FUNCTIONS, *_COPIES}
NEW |= {
    kind
    for kind, rule in [*MODULES.items(), *FUNCTIONS.items(), *METHODS.items()]
    if rule not in (monotone, signless)
}
"""What makes a new tensor of any input; all else may give the input itself, or a view of it."""
