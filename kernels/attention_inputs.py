"""What one layer brings to paged attention beside its queries: its pages, and how it scores."""

from dataclasses import dataclass

import torch

from ..errors import KernelError


@dataclass(frozen=True, slots=True)
class LayerPages:
    """One layer's keys and values: k, v [P, K, S, D], and for int8 the scales of their rows, f32 [P, K, S] each."""

    k: torch.Tensor
    v: torch.Tensor
    k_scales: torch.Tensor | None
    v_scales: torch.Tensor | None

    @property
    def is_fp8(self) -> bool:
        """Whether keys and values are fp8."""
        return self.k.dtype.itemsize == 1 and self.k.dtype.is_floating_point

    @property
    def is_narrow(self) -> bool:
        """Whether keys and values are int8 or fp8."""
        return self.is_fp8 or self.k.dtype == torch.int8

    @property
    def scale_strides(self) -> tuple[int, ...]:
        """Strides that k_scales and v_scales share."""
        return (0, 0, 0) if self.k_scales is None else self.k_scales.stride()

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Of k and v by page, head and slot, and those of the scales."""
        return self.k.stride()[:3], self.v.stride()[:3], self.scale_strides

    def check(self, caller: str) -> None:
        """Raise KernelError, in the name of ``caller``, unless the tensors make pages."""
        k, v = self.k, self.v
        if k.ndim != 4 or v.shape != k.shape or k.stride(3) != 1 or v.stride(3) != 1:
            raise KernelError(
                f"{caller} got pages {list(k.shape)} and {list(v.shape)} with strides {k.stride()} and {v.stride()}; "
                "pass two [P, K, S, D] with a contiguous last axis"
            )
        tensors = [tensor for tensor in (k, v, self.k_scales, self.v_scales) if tensor is not None]
        if k.dtype != v.dtype or len({tensor.device for tensor in tensors}) != 1:
            raise KernelError(
                f"{caller} got k_pages {k.dtype} on {k.device} and v_pages {v.dtype} on {v.device}; use one dtype and "
                "one device, for scales too"
            )
        if k.dtype != torch.int8:
            if self.k_scales is not None or self.v_scales is not None:
                raise KernelError(f"{caller} got scales for pages of {k.dtype}; only int8 pages have them")
            return
        if self.k_scales is None or self.v_scales is None:
            raise KernelError(f"{caller} got int8 pages without k_scales and v_scales; pass f32 [P, K, S] each")
        scales = (self.k_scales, self.v_scales)
        if any(s.shape != k.shape[:3] or s.dtype != torch.float32 or s.stride() != scales[0].stride() for s in scales):
            raise KernelError(
                f"{caller} got k_scales {scales[0].dtype} {list(scales[0].shape)} and v_scales {scales[1].dtype} "
                f"{list(scales[1].shape)}; pass f32 {list(k.shape[:3])} each, with the same strides"
            )


@dataclass(frozen=True, slots=True)
class Scoring:
    """What becomes of q . k, and how many keys a query sees; 0 for a window or a cap there is none of."""

    softmax_scale: float
    sliding_window: int
    softcap: float
