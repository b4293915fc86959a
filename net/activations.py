"""Activations as payloads and back. Where rows lie in a payload: row_layout.py and docs/wire-format.md.

EXACT gives back every bit. INT8 rounds: the elements of a group are multiples of a scale, the group's greatest absolute
value over 127, so that none is off by more than half a scale, that is 1/254 of the greatest. A group with an element
that is not finite comes back as NaN, so that a model that has run away is not hidden.

Legend: T rows, E width, G groups of a row.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .messages import Codec, Dtype
from .row_layout import SCALE_BYTES, Payload, RowLayout
from .wire import INT8_GROUP

TORCH_DTYPES = {Dtype.BFLOAT16: torch.bfloat16, Dtype.FLOAT16: torch.float16, Dtype.FLOAT32: torch.float32}
_DTYPES = {torch_dtype: dtype for dtype, torch_dtype in TORCH_DTYPES.items()}
_LARGEST_CODE = 127  # -128 is not used, so that a code and its negative are both there

assert sys.byteorder == "little", "payloads are little-endian, and so must this machine be"


def wire_dtype(dtype: torch.dtype) -> Dtype:
    """What the wire calls a model's dtype."""
    return _DTYPES[dtype]


def pack(rows: Tensor, layout: RowLayout) -> bytes:
    """rows: [T, E] of the layout's dtype -> their payload, in memory of its own."""
    assert rows.ndim == 2 and rows.shape[1] == layout.width and rows.dtype == TORCH_DTYPES[layout.dtype]
    if layout.codec is Codec.EXACT:
        return _raw(rows)
    scales, codes = _quantize(rows)
    return b"".join((_raw(scales), _raw(codes)))


def unpack(payload: Payload, layout: RowLayout) -> Tensor:
    """A payload's rows: [T, E] of the layout's dtype, on the CPU."""
    rows = torch.empty(layout.num_rows(payload), layout.width, dtype=TORCH_DTYPES[layout.dtype])
    unpack_into(rows, payload, layout)
    return rows


def unpack_into(rows: Tensor, payload: Payload, layout: RowLayout) -> None:
    """Write a payload's rows to ``rows``: [T, E] of the layout's dtype, on the CPU; EXACT ones are copied once."""
    if layout.codec is Codec.EXACT:
        rows.view(torch.uint8).numpy()[:] = np.frombuffer(payload, np.uint8).reshape(len(rows), -1)
    else:
        rows.copy_(_dequantize(payload, layout))


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()


def _quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows: [T, E] -> scales f32 [T, G], codes int8 [T, E]."""
    width = rows.shape[1]
    padded = F.pad(rows.float(), (0, -width % INT8_GROUP))
    groups = padded.unflatten(1, (-1, INT8_GROUP))  # [T, G, 128]
    scales = groups.abs().amax(-1) / _LARGEST_CODE  # [T, G]
    codes = (groups / torch.where(scales > 0, scales, 1.0)[..., None]).round()
    codes = codes.nan_to_num(0.0, _LARGEST_CODE, -_LARGEST_CODE).clamp(-_LARGEST_CODE, _LARGEST_CODE)
    scales = torch.where(scales.isfinite(), scales, torch.nan)
    return scales, codes.flatten(1)[:, :width].to(torch.int8)


def _dequantize(payload: Payload, layout: RowLayout) -> Tensor:
    """A payload of T rows -> f32 [T, E]."""
    num_rows = layout.num_rows(payload)
    num_scales = num_rows * layout.num_groups
    # Copies: torch warns of memory that it may not write
    scales = torch.from_numpy(np.frombuffer(payload, "<f4", num_scales).copy())
    codes = torch.from_numpy(np.frombuffer(payload, np.int8, offset=num_scales * SCALE_BYTES).astype(np.float32))
    per_element = scales.view(num_rows, -1).repeat_interleave(INT8_GROUP, dim=1)[:, : layout.width]
    return codes.view(num_rows, -1) * per_element
