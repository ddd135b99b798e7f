"""Arguments of compiled functions: whole numbers, sizes and addresses, and where each stands."""

from __future__ import annotations

import ctypes

# Of a product in threads.
(
    WEIGHTS, INPUTS, OUTPUTS, X, STRIDE, COUNT, OUT, OUT_STRIDE, ROOM_AT, PRODUCT, TEAM_SIZE, TEAM_MEMBER,
    PRODUCT_FIELDS,
) = range(13)  # fmt: skip
ProductParameters = ctypes.c_int64 * PRODUCT_FIELDS

RELU, SILU, TANH, ERF = range(4)  # the last two are GELU's forms

# Of a call: what the model is, what the cache is, what differs from call to call.
_NAMES = (
    "hidden", "heads", "kv_heads", "head_dim", "inner", "turning", "gated", "parallel", "activation", "table", "cos",
    "sin", "entries", "layer_stride", "head_stride", "rows", "positions", "slots", "work", "own", "own_size", "size",
    "member", "barrier", "state", "first", "last", "asking", "asked", "left", "fills",
)  # fmt: skip
(
    HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, TURNING, GATED, PARALLEL, ACTIVATION, TABLE, COS, SIN, ENTRIES,
    LAYER_STRIDE, HEAD_STRIDE, ROWS, POSITIONS, SLOTS, WORK, OWN, OWN_SIZE, SIZE, MEMBER, BARRIER, STATE, FIRST, LAST,
    ASKING, ASKED, LEFT, FILLS,
) = range(len(_NAMES))  # fmt: skip
FIELDS = len(_NAMES)


class Parameters(ctypes.Structure):
    """Sizes, addresses, and strides in numbers of four bytes."""

    _fields_ = tuple((name, ctypes.c_int64) for name in _NAMES)


# Of a layer: address, product and bias of each matrix; kind, gain, bias and ε of each norm; the scale of scores.
QKV, OUTPUT, MLP_IN, MLP_OUT = range(0, 12, 3)
ATTENTION_NORM, MLP_NORM, QUERY_NORM, KEY_NORM = range(12, 28, 4)
SCALE, TABLE_COLUMNS = 28, 29
NO_NORM, RMS_NORM, LAYER_NORM = range(3)
# Of a slot that is asked about: which it is; the address of its checks, how many were made, and how many there are; the
# threshold's bits; addresses of room for states, for a first layer's outputs and for scores; the layer after which its
# last check reached the threshold, or 0.
(
    ASKED_SLOT, ASKED_TESTS, ASKED_MADE, ASKED_END, ASKED_THRESHOLD, ASKED_KEPT, ASKED_SUMS, ASKED_SCORES, ASKED_LEFT,
    ASKED_COLUMNS,
) = range(10)  # fmt: skip
# Of a check: the layer after which it is made; the first layer's outputs, and addresses of its weight, bias and change;
# whether the state is normalised; the activation; how many layers follow, and the address of what they have; address of
# what is added to the outputs' log softmax, or 0.
(
    TEST_AT, TEST_COUNT, TEST_WEIGHT, TEST_BIAS, TEST_CHANGE, TEST_NORMALISE, TEST_ACTIVATION, TEST_DEPTH, TEST_LATER,
    TEST_OFFSETS, TEST_COLUMNS,
) = range(11)  # fmt: skip
# Of a layer behind the first: addresses of weight and bias, and its outputs.
LATER_WEIGHT, LATER_BIAS, LATER_OUTPUTS, LATER_COLUMNS = range(4)
CHECK_ACTIVATIONS = {"tanh": 0, "relu": 1}
