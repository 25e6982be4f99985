"""Forces and stress as derivatives of the energy, as one pure function of a state.

forces = -dE/dpositions. stress = dE/dstrain / volume, where a symmetric strain moves positions
and cell alike, x -> x + x strain; positive under tension.

**Shapes** N atoms, S structures.
**Source** the strain derivative is the virial theorem in the form of Knuth et al., Comput. Phys.
Commun. 190, 33 (2015), eq. 7.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raypot.batch import Batch
from raypot.errors import ConfigError


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, detached and sharing memory with the model."""
    return {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}


def n_parameters(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def predict(
    model: nn.Module, state: dict[str, Tensor], batch: Batch, wanted: tuple[str, ...]
) -> dict[str, Tensor]:
    """Predict the `wanted` properties; derivatives are taken only where they are asked for.

    The function is pure, can be differentiated by `state` and by the batch, and can be traced.

    Args:
        model: gives the structure of the computation; its own values are not read.
        state: parameters and buffers by name.
        batch: S structures.
        wanted: names of energy, forces, stress, charges, dipole.

    Returns:
        energy (S,), forces (N, 3), stress (S, 3, 3) in eV/Å³ and NaN where a structure does not
        repeat in all directions, charges (N,), dipole (S, 3).

    Raises:
        ConfigError: the model has no output that `wanted` needs.
    """
    variables = _variables(batch, wanted)
    if not variables:
        return _only(_call(model, state, batch), wanted)

    def total_energy(moved: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = _call(model, state, _deform(batch, moved))
        return _only(outputs, ("energy",))["energy"].sum(), outputs

    gradients, outputs = torch.func.grad(total_energy, has_aux=True)(variables)
    if "forces" in wanted:
        outputs["forces"] = -gradients["positions"]
    if "stress" in wanted:
        outputs["stress"] = _stress(gradients["strain"], batch)
    return _only(outputs, wanted)


def _variables(batch: Batch, wanted: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors by which the energy is to be differentiated."""
    variables = {}
    if "forces" in wanted:
        variables["positions"] = batch.positions
    if "stress" in wanted:
        variables["strain"] = torch.zeros_like(batch.cell)
    return variables


def _call(model: nn.Module, state: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = torch.func.functional_call(model, state, (batch,))
    return outputs


def _deform(batch: Batch, variables: Mapping[str, Tensor]) -> Batch:
    """Put the positions in place and strain positions and cell (S, 3, 3)."""
    positions = variables.get("positions", batch.positions)
    if "strain" not in variables:
        return batch._replace(positions=positions)
    strain = 0.5 * (variables["strain"] + variables["strain"].mT)  # (S, 3, 3)
    of_atom = strain.index_select(0, batch.structure)  # (N, 3, 3)
    return batch._replace(
        positions=positions + (positions[:, :, None] * of_atom).sum(1),
        cell=batch.cell + batch.cell @ strain,
    )


def _stress(gradient: Tensor, batch: Batch) -> Tensor:
    """Divide dE/dstrain (S, 3, 3) in eV by the volume."""
    first, second, third = batch.cell.unbind(1)  # (S, 3) each
    volume = (first * torch.linalg.cross(second, third)).sum(-1).abs()  # (S,)
    is_bulk = batch.pbc.all(-1)
    stress = gradient / torch.where(is_bulk, volume, 1.0)[:, None, None]
    return torch.where(is_bulk[:, None, None], stress, torch.nan)


def _only(outputs: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Pick `names` from what the model gave."""
    for name in names:
        if name not in outputs:
            raise ConfigError(
                f"predict: {name!r} is asked for but the model gives {', '.join(outputs)}; "
                "build it with the outputs that `outputs_for` returns",
                name=name,
            )
    return {name: outputs[name] for name in names}
