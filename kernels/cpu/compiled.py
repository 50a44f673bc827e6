"""Every native function of a dtype in one place, compiled together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from kernels.cpu import affine, attention, lookup, lora, rows
from kernels.cpu.native import NativeFunction, compile_native
from kernels.errors import UnsupportedTensor


@dataclass(frozen=True, slots=True)
class NativeOps:
    """One function per op; `compose` is the expand that adds several entries of a row up in float32."""

    shrink: NativeFunction
    expand: NativeFunction
    compose: NativeFunction
    look_up: NativeFunction
    rescale: NativeFunction
    attend: NativeFunction
    write_kv: NativeFunction
    rms_norm: NativeFunction
    rotary: NativeFunction
    silu_mul: NativeFunction


@cache
def native_ops(dtype: torch.dtype) -> NativeOps:
    """The functions for one dtype, compiled at the first call. Raises UnsupportedTensor for a dtype that has none."""
    if dtype == torch.bfloat16:
        return NativeOps(
            shrink=compile_native(lora.shrink_bf16, words=lora.SHRINK_WORDS),
            expand=compile_native(lora.expand_bf16, words=lora.EXPAND_WORDS),
            compose=compile_native(lora.compose_bf16, words=lora.EXPAND_WORDS),
            look_up=compile_native(lookup.look_up_bf16, words=lookup.LOOK_UP_WORDS),
            rescale=compile_native(affine.rescale_bf16, words=affine.RESCALE_WORDS),
            attend=compile_native(attention.attend_bf16, words=attention.ATTEND_WORDS),
            write_kv=compile_native(attention.write_kv, words=attention.WRITE_KV_WORDS),
            rms_norm=compile_native(rows.rms_norm_bf16, words=rows.RMS_NORM_WORDS),
            rotary=compile_native(rows.rotary_bf16, words=rows.ROTARY_WORDS),
            silu_mul=compile_native(rows.silu_mul_bf16, words=rows.SILU_MUL_WORDS),
        )
    if dtype == torch.float32:
        return NativeOps(
            shrink=compile_native(lora.shrink_f32, words=lora.SHRINK_WORDS),
            expand=compile_native(lora.expand_f32, words=lora.EXPAND_WORDS),
            compose=compile_native(lora.compose_f32, words=lora.EXPAND_WORDS),
            look_up=compile_native(lookup.look_up_f32, words=lookup.LOOK_UP_WORDS),
            rescale=compile_native(affine.rescale_f32, words=affine.RESCALE_WORDS),
            attend=compile_native(attention.attend_f32, words=attention.ATTEND_WORDS),
            write_kv=compile_native(attention.write_kv, words=attention.WRITE_KV_WORDS),
            rms_norm=compile_native(rows.rms_norm_f32, words=rows.RMS_NORM_WORDS),
            rotary=compile_native(rows.rotary_f32, words=rows.ROTARY_WORDS),
            silu_mul=compile_native(rows.silu_mul_f32, words=rows.SILU_MUL_WORDS),
        )
    raise UnsupportedTensor(f"expected bfloat16 or float32 tensors on a CPU, found {dtype}")
