"""The training twin of the demo model: a small Llama in plain PyTorch, with Hugging Face's tensor names.

It exists to be trained and measured here; hopformer's own layers run the result. It has no KV cache and no dtypes of
its own: everything is one causal pass over padded rows.

Legend: B rows, N tokens in a row, H query heads, K KV heads, D head_dim, E hidden_size, V vocab_size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class DemoShape:
    """Sizes of the demo model; the defaults give 5.8 MB in bf16."""

    vocab_size: int = 1536
    hidden_size: int = 192
    intermediate_size: int = 384
    num_layers: int = 8
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048

    def config(self, eos_token_id: int, pad_token_id: int) -> dict[str, object]:
        """config.json of a LlamaForCausalLM with these sizes."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": None,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
            "torch_dtype": "bfloat16",
        }


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, shape: DemoShape) -> None:
        super().__init__()
        self.shape = shape
        kv_size = shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, shape.num_heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(shape.num_heads * shape.head_dim, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        """x: [B, N, E]; cos, sin: [N, D]; bias: [N, N], -inf where not seen. Returns [B, N, E]."""
        rows, length, _ = x.shape
        shape = self.shape
        q = self.q_proj(x).view(rows, length, shape.num_heads, shape.head_dim).transpose(1, 2)  # [B, H, N, D]
        k = self.k_proj(x).view(rows, length, shape.num_kv_heads, shape.head_dim).transpose(1, 2)  # [B, K, N, D]
        v = self.v_proj(x).view(rows, length, shape.num_kv_heads, shape.head_dim).transpose(1, 2)  # [B, K, N, D]
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        # A KV head's query heads stand one below the other, so K and V are not copied for each.
        q = q.reshape(rows, shape.num_kv_heads, -1, shape.head_dim)  # [B, K, H / K * N, D]
        scores = (q @ k.transpose(2, 3)).view(rows, shape.num_heads, length, length) * shape.head_dim**-0.5
        weights = (scores + bias).softmax(-1, dtype=torch.float32).to(v.dtype)  # [B, H, N, N]
        out = (weights.view(rows, shape.num_kv_heads, -1, length) @ v).view(rows, shape.num_heads, length, -1)
        return self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))


class Mlp(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, shape: DemoShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, N, E]. Returns [B, N, E]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, shape: DemoShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        """x: [B, N, E]; cos, sin: [N, D]; bias: [N, N], -inf where not seen. Returns [B, N, E]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and last norm: what Hugging Face saves under ``model.``."""

    def __init__(self, shape: DemoShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def forward(self, ids: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        """ids: [B, N] int64; cos, sin: [N, D]; bias: [N, N]. Returns the normed hidden states, [B, N, E]."""
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin, bias)
        return self.norm(x)


class DemoLlama(nn.Module):
    """LlamaForCausalLM with tied embeddings; ``state_dict()`` has exactly the names that its safetensors file has."""

    def __init__(self, shape: DemoShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:  # the two projections that write to the residual start smaller, as in GPT-2
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.04 / (2 * shape.num_layers) ** 0.5 if residual else 0.04)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [B, N] int64. Returns the normed hidden states, [B, N, E]."""
        cos, sin = _rope_table(self.shape, ids.shape[1])
        bias = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)  # [N, N]
        return self.model(ids, cos, sin, bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [..., E]. Returns [..., V] through the tied embedding."""
        return F.linear(hidden, self.model.embed_tokens.weight)


def _rope_table(shape: DemoShape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0..length, each [N, D] float32 with the two halves alike."""
    inverse = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = torch.outer(torch.arange(length), inverse).repeat(1, 2)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [B, H, N, D] in its own dtype; the halves of D turn against each other (RoFormer, arXiv:2104.09864)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)
