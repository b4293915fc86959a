"""Tensors in, tensors out: the operations of a Llama layer, one file each, and nothing of ours below them.

CUDA and ROCm tensors run Triton kernels, CPU tensors the PyTorch path (and Triton's interpreter under
TRITON_INTERPRET=1); the results agree to rounding.
"""

from .attention_plan import AttentionPlan, plan_attention
from .gemv import MAX_ROWS, linear_add, norm_linear, norm_swiglu
from .linear import LeftLinear, Linear, PackedLinear, normed_swiglu, pack_linear
from .paged_attention import paged_attention
from .quant_linear import QuantLinear, quantize_linear
from .quant_matmul import QuantWeight, quant_matmul, quantize_weight
from .rms_norm import add_rms_norm
from .rope_kv_write import rope_and_write_kv
from .sample import sample
from .swiglu import swiglu

__all__ = [
    "MAX_ROWS",
    "AttentionPlan",
    "LeftLinear",
    "Linear",
    "PackedLinear",
    "QuantLinear",
    "QuantWeight",
    "add_rms_norm",
    "linear_add",
    "norm_linear",
    "norm_swiglu",
    "normed_swiglu",
    "pack_linear",
    "paged_attention",
    "plan_attention",
    "quant_matmul",
    "quantize_linear",
    "quantize_weight",
    "rope_and_write_kv",
    "sample",
    "swiglu",
]
