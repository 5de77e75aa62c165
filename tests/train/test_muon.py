"""Muon: orthogonal updates for matrices, Adam for the rest."""

from __future__ import annotations

import pytest
import torch

from cinesynth.train.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (1, 16, 16)])
def test_updates_are_close_to_the_orthogonal_factor(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = torch.linalg.svdvals(orthogonalised(matrices))
    assert found.min() > 0.5
    assert found.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    exact = u @ v
    cosine = torch.nn.functional.cosine_similarity(orthogonalised(matrices).flatten(1), exact.flatten(1))
    assert cosine.min() > 0.97


def test_vectors_follow_adam() -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    muon = Muon([ours], lr=0.5, betas=(0.9, 0.95), vector_lr=0.02)
    adam = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.95))
    for _ in range(5):
        for parameter, optimizer in ((ours, muon), (theirs, adam)):
            optimizer.zero_grad()
            (parameter**4).sum().backward()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-7)
