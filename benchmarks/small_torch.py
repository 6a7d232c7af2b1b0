"""The demo's two small models and their training step in plain PyTorch, for `small.py`."""

import os

import numpy as np
import torch
from small import BETAS, CODES, DECAY, RATE, TASK, TOKENIZER, TRANSFORMER, images, packed_rows
from torch import nn
from torch.nn import functional as F

GROUPS = 4  # channels of a norm's group, at least


class Layer(nn.Module):
    """Pre-norm attention with rotary positions, then SwiGLU."""

    def __init__(self, width, heads, inner):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-5) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x, cos, sin):
        B, T, M = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)

        def turned(y):
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat((-b, a), -1) * sin

        y = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, M))
        gate, up = self.gate_up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Transformer(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        width, heads = TRANSFORMER["hidden_size"], TRANSFORMER["num_heads"]
        self.embed, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary, bias=False)
        self.prior = nn.Linear(width, width, bias=False)
        inner = TRANSFORMER["intermediate_size"]
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(TRANSFORMER["num_layers"]))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        for table in (self.embed, self.head):
            nn.init.normal_(table.weight, std=0.02)
        half = TRANSFORMER["head_dim"] // 2
        self.register_buffer("rates", TRANSFORMER["rope_theta"] ** (-torch.arange(half) / half), persistent=False)

    def forward(self, tokens, aligned, positions):
        """Hidden states of the last norm."""
        angles = (positions[..., None] * self.rates).repeat(1, 1, 2)[:, None]
        x = self.embed(tokens) + self.prior(self.embed(aligned.clamp(min=0))) * (aligned >= 0)[..., None]
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return self.norm(x)


def transformer():
    """(model, function of it that gives the loss)."""
    from progemu_jax.text import sequence, vocabulary

    words = vocabulary.load(None, CODES)
    batch, codebook = packed_rows(sequence, words)
    batch = {name: torch.from_numpy(np.asarray(x)).long() for name, x in batch.items()}
    codebook = torch.from_numpy(codebook)
    distances = torch.cdist(codebook, codebook) ** 2
    least = (distances + torch.eye(CODES) * 1e9).amin(1).mean()
    spread = torch.softmax(-distances / (TASK["soften"] * least), 1)
    kinds, kind = torch.zeros(len(sequence.Kind)), sequence.Kind
    kinds[kind.VISUAL] = 1.0
    for which, name in {
        kind.PRIOR: "prior", kind.PROMPT: "prompt", kind.STRUCTURE: "structure", kind.TEXT: "text", kind.EOS: "text",
    }.items():  # fmt: skip
        kinds[which] = TASK[f"weight_{name}"]
    tokens, targets = batch["tokens"], batch["tokens"][:, 1:]
    aligned, weight = batch["aligned"], kinds[batch["kinds"][:, 1:]]
    start = words.visual_start
    counted = weight > 0
    visual = counted & (batch["kinds"][:, 1:] == sequence.Kind.VISUAL)
    soft = visual & (aligned[:, :-1] != targets)

    def loss(model):
        x = model(tokens, aligned, batch["positions"])[:, :-1]
        scores = torch.log_softmax(model.head(x[counted]).float(), -1)
        own = scores.gather(1, targets[counted][:, None])[:, 0]
        rows = soft[counted]
        spread_over = (scores[rows, start : start + CODES] * spread[targets[soft] - start]).sum(1)
        own = own.masked_scatter(rows, spread_over)
        return -(own * weight[counted]).sum() / weight.sum()

    return Transformer(words.size), loss


class Norm(nn.Module):
    """Group norm, modulated by the codes' vectors where there are any (MoVQ)."""

    def __init__(self, channels, codes=0):
        super().__init__()
        groups = next(g for g in range(min(32, channels // GROUPS), 0, -1) if channels % g == 0)
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.scale, self.shift = (nn.Conv2d(codes, channels, 1) if codes else None for _ in range(2))

    def forward(self, x, codes):
        y = self.norm(x)
        if self.scale is None:
            return y
        factor = x.shape[-1] // codes.shape[-1]
        grown = (F.interpolate(f(codes), scale_factor=factor) for f in (self.scale, self.shift))
        return y * next(grown) + next(grown)


class Block(nn.Module):
    def __init__(self, inputs, features, codes):
        super().__init__()
        self.norms = nn.ModuleList((Norm(inputs, codes), Norm(features, codes)))
        self.convs = nn.ModuleList(nn.Conv2d(c, features, 3, padding=1) for c in (inputs, features))
        self.short = nn.Conv2d(inputs, features, 1) if inputs != features else nn.Identity()

    def forward(self, x, codes):
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.silu(norm(y, codes)))
        return self.short(x) + y


class Attention(nn.Module):
    def __init__(self, channels, codes):
        super().__init__()
        self.norm = Norm(channels, codes)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x, codes):
        q, k, v = self.qkv(self.norm(x, codes)).flatten(2).transpose(1, 2).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(x.shape))


class Half(nn.Module):
    """Encoder (codes 0) or decoder of two levels."""

    def __init__(self, inputs, outputs, codes):
        super().__init__()
        ch, mult = TOKENIZER["ch"], TOKENIZER["ch_mult"]
        widths = [ch * m for m in mult]
        top = widths[-1]
        middle = [Block(top, top, codes), Attention(top, codes), Block(top, top, codes)]
        if codes:
            parts = [
                *middle,
                *(Block(top, top, codes) for _ in range(2)),
                "up",
                Block(top, ch, codes),
                Block(ch, ch, codes),
            ]
        else:
            parts = [Block(ch, ch, 0), "down", Block(ch, top, 0), *middle]
        self.first = nn.Conv2d(inputs, top if codes else ch, 3, padding=1)
        sized = {"up": top, "down": ch}
        self.parts = nn.ModuleList(
            nn.Conv2d(sized[p], sized[p], 3, 2 if p == "down" else 1, 1 if p == "up" else 0)
            if isinstance(p, str)
            else p
            for p in parts
        )
        last = ch if codes else top
        self.norm, self.last = Norm(last, codes), nn.Conv2d(last, outputs, 3, padding=1)

    def forward(self, x, codes=None):
        x = self.first(x)
        for part in self.parts:
            if not isinstance(part, nn.Conv2d):
                x = part(x, codes)
            elif part.stride == (2, 2):
                x = part(F.pad(x, (0, 1, 0, 1)))
            else:
                x = part(F.interpolate(x, scale_factor=2))
        return self.last(F.silu(self.norm(x, codes)))


class VQGAN(nn.Module):
    def __init__(self, vectors=16):
        super().__init__()
        pixels = TOKENIZER["patch"] ** 2
        self.encoder, self.decoder = Half(pixels, vectors, 0), Half(vectors, pixels, vectors)
        self.before, self.after = nn.Conv2d(vectors, vectors, 1), nn.Conv2d(vectors, vectors, 1)
        self.register_buffer("table", torch.randn(CODES, vectors))

    def forward(self, x):
        """(reconstruction, commitment loss); the codes follow as moving averages."""
        patch = TOKENIZER["patch"]
        z = self.before(self.encoder(F.pixel_unshuffle(x, patch)))
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()
        codes = (0.5 * self.table.square().sum(1) - flat @ self.table.T).argmin(1)
        vectors = self.table[codes]
        with torch.no_grad():
            counts = torch.bincount(codes, minlength=CODES)[:, None]
            means = torch.zeros_like(self.table).index_add_(0, codes, flat) / counts.clamp(min=1)
            self.table.copy_(torch.where(counts > 0, 0.99 * self.table + 0.01 * means, self.table))
        commit = (flat - vectors).square().mean()
        vectors = (flat + (vectors - flat).detach()).to(z.dtype)
        vectors = vectors.view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        return F.pixel_shuffle(self.decoder(self.after(vectors), vectors), patch), commit


def tokenizer():
    x = torch.from_numpy(images()).float()[:, None] / 127.5 - 1

    def loss(model):
        y, commit = model(x)
        y = y.float()
        edges = sum((x.diff(dim=d) - y.diff(dim=d)).abs().mean() for d in (2, 3))
        return (x - y).abs().mean() + edges + 0.25 * commit

    return VQGAN(), loss


def side(model, dtype):
    """A function that takes so many steps and returns their losses."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    net, loss = {"transformer": transformer, "tokenizer": tokenizer}[model]()
    if model == "tokenizer":
        net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, betas=BETAS, eps=1e-6, weight_decay=DECAY, fused=True)

    def steps(count):
        losses = []
        for _ in range(count):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                value = loss(net)
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(value.detach())
        return [float(x) for x in losses]

    return steps
