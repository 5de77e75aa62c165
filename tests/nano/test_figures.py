"""The figures' own arithmetic, on videos whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cinesynth.nano.domain import held_out_windows
from cinesynth.nano.evaluation import bikes_samples, home_samples
from cinesynth.nano.figures import (
    RealWindow,
    colour_error,
    first_frame_psnr,
    moves_found,
    other_windows,
    paired_difference,
    repeat_first,
    temporal_ssim,
    window_losses,
)
from tests.nano_clips import encoded_clips


def grey(value: int, frames: int = 4) -> np.ndarray:
    return np.full((frames, 16, 24, 3), value, np.uint8)


def test_colour_error_is_cie76() -> None:
    # White against black is 100 apart; of sRGB 128 grey L* is 53.585.
    assert colour_error(grey(255), grey(0)) == pytest.approx(100, abs=0.05)
    assert colour_error(grey(128), grey(0)) == pytest.approx(53.585, abs=0.1)
    assert colour_error(grey(77), grey(77)) == 0


def test_the_first_frame_alone_counts_for_its_psnr() -> None:
    sample = RealWindow("a", grey(100), "", "g")
    video = grey(0)
    video[0] = 110
    assert first_frame_psnr([sample], [video]) == pytest.approx(20 * np.log10(255 / 10))


def test_the_moves_of_real_windows_are_mostly_found_and_those_of_still_ones_are_not() -> None:
    samples = [s for s in home_samples(held_out_windows(24)) if s.camera != "static"]
    assert moves_found(samples, [s.frames for s in samples]) > 0.8
    assert moves_found(samples, repeat_first(samples)) == 0


def test_flicker_lowers_temporal_ssim() -> None:
    still = [s.frames for s in home_samples(held_out_windows(1))]
    flickering = [np.clip(v.astype(int) + 40 * (np.arange(len(v)) % 2)[:, None, None, None], 0, 255) for v in still]
    assert temporal_ssim(repeat_first([RealWindow("a", still[0], "", "g")])) == pytest.approx(1)
    assert temporal_ssim([v.astype(np.uint8) for v in flickering]) < temporal_ssim(still) < 1


def test_other_windows_have_another_move() -> None:
    samples = home_samples(held_out_windows(8))
    others = other_windows(samples)
    assert all(samples[j].camera != samples[i].camera for i, j in enumerate(others))


def test_a_difference_over_groups_has_the_interval_of_a_t_test() -> None:
    samples = [RealWindow(str(i), grey(0), "", f"g{i}") for i in range(8)]
    values = np.array([1.0, 2.0, 4.0, 5.0, 1.0, 2.0, 4.0, 5.0])
    found = paired_difference(samples, values, np.zeros(8))
    half = 2.364624 * np.std(values, ddof=1) / np.sqrt(8)
    assert (found["difference"], found["low"]) == (pytest.approx(3), pytest.approx(3 - half, rel=1e-5))
    assert paired_difference(samples[:4], values[:4], np.zeros(4)) == {"difference": 3}


def test_losses_are_of_the_conditions_that_were_asked_for() -> None:
    clips = encoded_clips()[:3]

    class Spy(torch.nn.Module):
        """Predicts zero: its loss depends on nothing but the noise and the latents."""

        def forward(
            self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
        ) -> tuple[torch.Tensor]:
            given.append((hidden_states[:, 20:, 0].mean((1, 2, 3)), encoder_hidden_states[:, 0].clone()))
            return (torch.zeros_like(hidden_states[:, :16]),)

    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    right = window_losses(Spy(), clips)
    own = given[0]
    given.clear()
    wrong = window_losses(Spy(), clips, first_of=[1, 2, 0], caption_of=[2, 0, 1])
    assert np.array_equal(right, wrong)  # the same noise, the same targets
    assert torch.allclose(given[0][0], own[0][[1, 2, 0]])
    assert torch.allclose(given[0][1], own[1][[2, 0, 1]])


def test_bikes_windows_stay_inside_shots() -> None:
    samples = bikes_samples(stride=8)
    assert len({s.group for s in samples}) == 4
    for sample in samples:
        step = np.abs(np.diff(sample.frames.astype(int), axis=0)).mean((1, 2, 3))
        assert step.max() < 40, sample.name
