"""The rotary embedding's angles. The norm and the rotation themselves are ops of `kernels`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inference.models.config import RopeConfig, RopeKind


class RotaryAngles:
    """Turns positions into the cosines and sines of one forward pass, shared by its layers."""

    def __init__(self, config: RopeConfig, *, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self._frequencies = inverse_frequencies(config, head_dim).to(device)
        self._dtype = dtype

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of each row's angles.

        Shapes: positions int64 [T]; returns two float32 [T, D / 2]. The values are rounded to the model's dtype first,
        as in transformers, because the models were trained and measured with those.
        """
        angles = positions[:, None].float() * self._frequencies
        return angles.cos().to(self._dtype).float(), angles.sin().to(self._dtype).float()


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Angle per position of each pair of features, float32 [D / 2].

    Semantics: theta^(-2i / D); linear divides all by `factor`; llama3 divides those of long wavelengths, keeps those of
    short ones and blends between. Source: Su et al. (arXiv 2104.09864); the Llama 3.1 release.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (config.theta**exponents)
    if config.kind is RopeKind.LINEAR:
        return frequencies / config.factor
    if config.kind is RopeKind.LLAMA3:
        return _stretched(frequencies, config)
    return frequencies


def _stretched(frequencies: Tensor, config: RopeConfig) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    turns = config.original_max_positions / wavelengths  # how often a pair turned in the original context
    share = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    blended = (1 - share) * frequencies / config.factor + share * frequencies
    is_long = wavelengths > config.original_max_positions / config.low_freq_factor
    is_short = wavelengths < config.original_max_positions / config.high_freq_factor
    return torch.where(is_long, frequencies / config.factor, torch.where(is_short, frequencies, blended))
