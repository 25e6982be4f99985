"""Known numbers of the architectures, from the codes of their authors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raypot.batch import Batch, collate
from raypot.models.painn import PaiNN, PaiNNConfig
from raypot.models.schnet import SchNet, SchNetConfig
from raypot.neighbors import find_edges
from raypot.structures import Block, Structure

GOLDEN = Path(__file__).parent.parent / "golden"
SEED, N_LAYERS, N_RADIAL, CUTOFF = 1234, 3, 5, 5.0


def read(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def methane(golden: dict[str, Any]) -> Batch:
    structure = Structure(
        numbers=np.array(golden["numbers"]), positions=np.array(golden["positions_angstrom"])
    )
    block = Block.from_structures([structure])
    return collate(block, find_edges(block, CUTOFF), torch.float64)


def drawn(n_out: int, n_in: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(n_out, n_in, dtype=dtype))


def drawn_embedding(width: int) -> Tensor:
    """The rows of hydrogen and carbon in a table of 100 elements."""
    return torch.empty(100, width).normal_()[[1, 6]]


def check(scalars: Tensor, golden: dict[str, Any]) -> None:
    carbon, hydrogen = (torch.tensor(row, dtype=torch.float64) for row in golden["value"])
    expected = torch.stack([carbon, *[hydrogen] * 4])
    torch.testing.assert_close(scalars, expected, rtol=0.0, atol=golden["tolerance"]["absolute"])


def test_painn_methane() -> None:
    golden, width = read("painn_methane"), 8
    config = PaiNNConfig(
        n_channels=width, n_radial=N_RADIAL, cutoff=CUTOFF, radial="gaussian", envelope="cosine"
    )
    model = PaiNN(config, (1, 6), ("energy", "charges", "dipole")).double()
    torch.manual_seed(SEED)
    embedding = drawn_embedding(width)
    drawn(3 * width * N_LAYERS, N_RADIAL)
    mixes = [(drawn(width, width), drawn(3 * width, width)) for _ in range(N_LAYERS)]
    updates = [
        (drawn(width, 2 * width), drawn(3 * width, width), drawn(2 * width, width))
        for _ in range(N_LAYERS)
    ]
    torch.manual_seed(SEED)
    filters = drawn(3 * width * N_LAYERS, N_RADIAL, torch.float64).split(3 * width)

    with torch.no_grad():
        model.embedding.weight.copy_(embedding)
        for layer in range(N_LAYERS):
            message, update = model.messages[layer], model.updates[layer]
            used = message.filter.weight.shape[0]  # the first layer has no vectors to carry
            message.filter.weight.copy_(filters[layer][:used])
            message.mix.first.weight.copy_(mixes[layer][0])
            message.mix.second.weight.copy_(mixes[layer][1][:used])
            first, second, project = updates[layer]
            scalar, vector, product = second.split(width)
            update.mix.first.weight.copy_(first)
            update.mix.second.weight.copy_(torch.cat([scalar, product, vector]))
            update.project.weight.copy_(project)
    features = model.features(methane(golden))
    check(features.scalars, golden)
    assert features.vectors is not None


def test_schnet_methane() -> None:
    golden, width = read("schnet_methane"), 12
    config = SchNetConfig(n_channels=width, n_radial=N_RADIAL, cutoff=CUTOFF)
    model = SchNet(config, (1, 6), ("energy",)).double()
    torch.manual_seed(SEED)
    embedding = drawn_embedding(width)
    torch.manual_seed(SEED)
    with torch.no_grad():
        model.embedding.weight.copy_(embedding)
        for block in model.interactions:
            layers = (block.sent, block.mix.first, block.filter.first)
            for layer in (*layers, block.mix.second, block.filter.second):
                layer.weight.copy_(drawn(*layer.weight.shape, torch.float64))
    check(model.features(methane(golden)).scalars, golden)
