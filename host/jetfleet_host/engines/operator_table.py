"""Which ONNX operators TensorRT's parser has, by release.

Sources: onnx-tensorrt, docs/operators.md of TensorRT 10.15 (opset 9 to 24) and docs/Changelog.md, which says what came after 10.3. The page
of 11 was not at hand; 11 is held against 10.15's, since operators were added, not taken away, from one page to the next. Where the library
itself is at hand (TensorRT for RTX) its own parser answers, not this table.
"""

from __future__ import annotations

import msgspec

_SUPPORTED = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BlackmanWindow Cast CastLike Ceil Celu
Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu
Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
GreaterOrEqual GridSample GroupNormalization GRU HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If ImageScaler
InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul
Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu
QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RMSNormalization
RNN RoiAlign RotaryEmbedding Round STFT ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size
Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu
Unsqueeze Upsample Where Xor
"""
_NEWER_THAN_10_3 = frozenset(("Attention", "BlackmanWindow", "HammingWindow", "HannWindow", "RMSNormalization", "RotaryEmbedding", "STFT",
                              "TensorScatter"))


class Release(msgspec.Struct, frozen=True):
    """What one release's parser takes. `title` is how messages call it; opsets are inclusive."""

    name: str
    title: str
    operators: frozenset[str]
    first_opset: int
    last_opset: int


_ALL = frozenset(_SUPPORTED.split())
# 10.3 came with ONNX 1.16; its page was not at hand, and set 20 is the last that all of 10.x is sure to read.
RELEASES = {release.name: release for release in (
    Release("tensorrt-10.3", "TensorRT 10.3", _ALL - _NEWER_THAN_10_3, 9, 20),
    Release("tensorrt-11", "TensorRT 11", _ALL, 9, 24),
    Release("tensorrt-rtx", "TensorRT for RTX", _ALL, 9, 24),
)}
