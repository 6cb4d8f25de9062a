"""Qwen2 in plain PyTorch for training, with the parameter names of transformers, and the Muon optimiser."""
import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight.type_as(x)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv, self.dim = c["num_attention_heads"], c["num_key_value_heads"], 64
        h = c["hidden_size"]
        self.q_proj = nn.Linear(h, self.heads * self.dim)
        self.k_proj = nn.Linear(h, self.kv * self.dim)
        self.v_proj = nn.Linear(h, self.kv * self.dim)
        self.o_proj = nn.Linear(self.heads * self.dim, h, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = rotate(self.q_proj(x).view(b, t, self.heads, self.dim).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(b, t, self.kv, self.dim).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(b, t, self.kv, self.dim).transpose(1, 2)
        r = self.heads // self.kv
        k, v = k.repeat_interleave(r, 1), v.repeat_interleave(r, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        h, i = c["hidden_size"], c["intermediate_size"]
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(h, i, bias=False), nn.Linear(h, i, bias=False), nn.Linear(i, h, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = Mlp(c)

    def forward(self, x, cos, sin, drop):
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), cos, sin), drop)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), drop)


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])


class Qwen2(nn.Module):
    """Qwen2ForCausalLM with tied embeddings; forward gives the mean loss in nats per token."""

    def __init__(self, c):
        super().__init__()
        self.model = Body(c)
        angle = torch.outer(torch.arange(c["max_position_embeddings"]).float(), c["rope_theta"] ** (-torch.arange(0, 64, 2).float() / 64))
        angle = torch.cat((angle, angle), -1)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        depth = 2 * c["num_hidden_layers"]
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02 / (depth**0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids, targets, drop=0.0):
        x = F.dropout(self.model.embed_tokens(ids), drop)
        cos, sin = self.cos[: ids.shape[1]].type_as(x), self.sin[: ids.shape[1]].type_as(x)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            for layer in self.model.layers:
                x = layer(x, cos, sin, drop)
            logits = F.linear(self.model.norm(x), self.model.embed_tokens.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def orthogonal(g, steps=5):
    """Newton-Schulz: the nearest orthogonal matrix, roughly, for a stack of matrices."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Muon:
    """Momentum with orthogonal updates for the matrices of the layers; equal shapes are stacked."""

    def __init__(self, params, weight_decay, momentum=0.95):
        self.decay, self.momentum, self.groups = weight_decay, momentum, {}
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.state = {s: torch.zeros(len(ps), *s, device=ps[0].device) for s, ps in self.groups.items()}

    @torch.no_grad()
    def step(self, lr):
        for shape, ps in self.groups.items():
            g, m = torch.stack([p.grad for p in ps]), self.state[shape]
            m.lerp_(g, 1 - self.momentum)
            u = orthogonal(g.lerp(m, self.momentum)).float() * max(1, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(ps, 1 - lr * self.decay)
            torch._foreach_add_(ps, list(u.unbind()), alpha=-lr)
