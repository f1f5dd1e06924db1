"""The files that are served: one of random bytes, and a model of safetensors shards."""

import itertools
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

KIB, MIB = 2**10, 2**20
SHARDS = 4

LAYER = {
    "input_layernorm.weight": 16 * KIB,
    "mlp.down_proj.weight": 6 * MIB,
    "mlp.gate_up_proj.weight": 12 * MIB,
    "post_attention_layernorm.weight": 16 * KIB,
    "self_attn.k_proj.bias": 4 * KIB,
    "self_attn.k_proj.weight": MIB,
    "self_attn.o_proj.weight": 4 * MIB,
    "self_attn.q_norm.weight": 256,
    "self_attn.q_proj.bias": 8 * KIB,
    "self_attn.q_proj.weight": 4 * MIB,
    "self_attn.v_proj.bias": 4 * KIB,
    "self_attn.v_proj.weight": MIB,
}
"""Bytes of the tensors of one layer: the mixture of a small language model."""

EMBEDDING = 48 * MIB
"""Bytes of the largest tensor, which is the first one that is loaded; half a shard at most."""


def make_file(path: Path, size: int) -> None:
    """`size` random bytes, each MiB different from all others."""
    rng = np.random.default_rng(0)
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, 8 * MIB):
            file.write(rng.bytes(min(8 * MIB, size - start)))


def make_model(directory: Path, size: int) -> list[Path]:
    """A model of about `size` bytes in shards, the first one with an embedding; the files."""
    rng = np.random.default_rng(1)
    directory.mkdir()
    paths = []
    layers = itertools.count()
    for shard in range(SHARDS):
        sizes = {"model.embed_tokens.weight": min(EMBEDDING, size // SHARDS // 2)} if shard == 0 else {}
        while not sizes or sum(sizes.values()) + sum(LAYER.values()) <= size // SHARDS:
            layer = next(layers)
            sizes |= {f"model.layers.{layer:02}.{name}": count for name, count in LAYER.items()}
        tensors = {name: np.frombuffer(rng.bytes(count), np.float16) for name, count in sizes.items()}
        path = directory / f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        save_file(tensors, path)
        paths.append(path)
    return paths
