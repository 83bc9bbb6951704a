"""How each format of `wattbit.precision` rounds and scales numbers: exact emulation on any torch device.

Pure functions of float32 tensors. `floats` holds the formats whose values have their own exponent,
`integers` the codes of weights and activations, `tokens` those of activations with a scale for each token,
`clipping` the choice of an activation's range and `blocks` the small floats that share a scale.
"""

from wattbit.numerics.blocks import nvfp4_tensor_scale, round_mxfp4, round_nvfp4
from wattbit.numerics.clipping import activation_quantizer
from wattbit.numerics.floats import (
    FLOAT_FORMATS,
    fp8_activation_scale,
    fp8_weight,
    fp8_weight_scale,
    round_float,
    scale_round_fp8,
)
from wattbit.numerics.integers import (
    ActivationRange,
    AffineQuantizer,
    dequantize_weight,
    fake_quantize,
    integer_weight_scale,
    quantize,
    quantize_steps,
    quantize_weight,
)
from wattbit.numerics.tokens import LEAST_TOKEN_BITS, TokenCodes, quantize_tokens

__all__ = [
    "FLOAT_FORMATS",
    "LEAST_TOKEN_BITS",
    "ActivationRange",
    "AffineQuantizer",
    "TokenCodes",
    "activation_quantizer",
    "dequantize_weight",
    "fake_quantize",
    "fp8_activation_scale",
    "fp8_weight",
    "fp8_weight_scale",
    "integer_weight_scale",
    "nvfp4_tensor_scale",
    "quantize",
    "quantize_steps",
    "quantize_tokens",
    "quantize_weight",
    "round_float",
    "round_mxfp4",
    "round_nvfp4",
    "scale_round_fp8",
]
