"""Is a mixture of experts what its papers say?"""

# the first has blocks of one slot, so that the compiler counts no padding; the others pad
VARIANTS = [
    {"experts": 4, "chosen": 2, "shared": 1, "ratio": 0.5, "bias_rate": 0.01, "block": 1},
    {"experts": 8, "chosen": 3, "scores": "sigmoid", "renormalise": True, "block": 4},
]
