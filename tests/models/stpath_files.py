"""Invented STPath weights and vocabularies: the published names and shapes, or narrower, random numbers."""

import json
from pathlib import Path

import torch

N_FEATURES, N_ORGANS, N_TECHS = 1536, 25, 5
SMALL = {"hidden_dim": 32, "n_layers": 2, "n_heads": 4}
TRUE = {"hidden_dim": 512, "n_layers": 4, "n_heads": 4}


def random_state(n_tokens: int, *, hidden_dim: int, n_layers: int, n_heads: int, seed: int = 0) -> dict:
    """A state dict by the published names, scaled so that attention and bias are neither flat nor one-hot."""
    generator = torch.Generator().manual_seed(seed)

    def linear(n_out, n_in, scale=1.0):
        return torch.randn(n_out, n_in, generator=generator) * scale / n_in**0.5

    def vector(n, mean=0.0):
        return mean + 0.1 * torch.randn(n, generator=generator)

    d = hidden_dim
    state = {
        "input_encoder.image_embed.weight": linear(d, N_FEATURES),
        "input_encoder.image_embed.bias": vector(d),
        "input_encoder.gene_embed.weight": torch.randn(d, n_tokens, generator=generator) * 0.1,
        "input_encoder.tech_embed.weight": torch.randn(N_TECHS, d, generator=generator),
        "input_encoder.organ_embed.weight": torch.randn(N_ORGANS, d, generator=generator),
        "gene_exp_head.0.weight": vector(d, 1.0),
        "gene_exp_head.0.bias": vector(d),
        "gene_exp_head.1.weight": linear(n_tokens, d),
        "gene_exp_head.1.bias": vector(n_tokens, 1.0),
    }
    for block in range(n_layers):
        attention, mlp = f"model.blks.{block}.attn", f"model.blks.{block}.mlp"
        state |= {
            f"{attention}.layernorm_qkv.0.weight": vector(d, 1.0),
            f"{attention}.layernorm_qkv.0.bias": vector(d),
            f"{attention}.layernorm_qkv.1.weight": linear(3 * d, d),
            f"{attention}.layernorm_qkv.1.bias": vector(3 * d),
            f"{attention}.edge_bias.0.weight": torch.randn(n_heads, 3, generator=generator) * 0.1,
            f"{attention}.W_output.0.weight": linear(d, d, 0.5),
            f"{attention}.W_output.0.bias": vector(d),
            f"{mlp}.fc1.weight": linear(2 * d, d),
            f"{mlp}.fc1.bias": vector(2 * d),
            f"{mlp}.norm.weight": vector(2 * d, 1.0),
            f"{mlp}.norm.bias": vector(2 * d),
            f"{mlp}.fc2.weight": linear(d, 2 * d, 0.5),
            f"{mlp}.fc2.bias": vector(d),
        }
    return state


def vocabulary(symbols: list[str]) -> dict[str, str]:
    """Ensembl ids of symbols, in another order than theirs, and an alias of the first one."""
    n = len(symbols)
    ids = {symbol: f"ENSG{(7 * place) % n + 1:011d}" for place, symbol in enumerate(symbols)}
    assert len(set(ids.values())) == n, "give a number of symbols that 7 does not divide"
    return ids | {f"{symbols[0]}-ALIAS": ids[symbols[0]]}


def write_files(folder: Path, symbols: list[str], **sizes: int) -> Path:
    """Weights of a narrow network, ``stfm.pth``, with their vocabulary beside them; the path of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "symbol2ensembl.json").write_text(json.dumps(vocabulary(symbols)))
    torch.save(random_state(len(symbols) + 2, **SMALL | sizes), folder / "stfm.pth")
    return folder / "stfm.pth"
