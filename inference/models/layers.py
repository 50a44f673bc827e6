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
        self._factor = config.attention_factor
        self._dtype = dtype

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of each row's angles, times the attention factor.

        Shapes: positions int64 [T]; returns two float32 [T, D / 2]. The values are rounded to the model's dtype first,
        as in transformers, because the models were trained and measured with those.
        """
        angles = positions[:, None].float() * self._frequencies
        cos, sin = angles.cos() * self._factor, angles.sin() * self._factor
        return cos.to(self._dtype).float(), sin.to(self._dtype).float()


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Angle per position of each pair of features, float32 [D / 2].

    Semantics: theta^(-2i / D); linear divides all by `factor`; llama3 divides those of long wavelengths, keeps those of
    short ones and blends between; yarn does so by their place among the pairs.
    Source: Su et al. (arXiv 2104.09864); the Llama 3.1 release; Peng et al. (arXiv 2309.00071).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (config.theta**exponents)
    if config.kind is RopeKind.LINEAR:
        return frequencies / config.factor
    if config.kind is RopeKind.LLAMA3:
        return _stretched(frequencies, config)
    if config.kind is RopeKind.YARN:
        return _yarn(frequencies, config, head_dim)
    return frequencies


def _stretched(frequencies: Tensor, config: RopeConfig) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    turns = config.original_max_positions / wavelengths  # how often a pair turned in the original context
    share = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    blended = (1 - share) * frequencies / config.factor + share * frequencies
    is_long = wavelengths > config.original_max_positions / config.low_freq_factor
    is_short = wavelengths < config.original_max_positions / config.high_freq_factor
    return torch.where(is_long, frequencies / config.factor, torch.where(is_short, frequencies, blended))


def _yarn(frequencies: Tensor, config: RopeConfig, head_dim: int) -> Tensor:
    low, high = (_pair_of(turns, config, head_dim) for turns in (config.beta_fast, config.beta_slow))
    if config.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as in transformers, so that the slope is finite
    share = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return frequencies / config.factor * share + frequencies * (1 - share)


def _pair_of(turns: float, config: RopeConfig, head_dim: int) -> float:
    """Which pair of features makes so many turns in the original context, as a fraction."""
    wavelength = config.original_max_positions / turns
    return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(config.theta))
