"""Is Chain-of-Experts what its paper and its code say?"""

VARIANTS = [
    {"experts": 4, "chosen": 2, "shared": 1, "ratio": 0.5, "block": 1},
    {
        "experts": 4,
        "chosen": 2,
        "residual": "official_inner",
        "routers": "one",
        "ratio": 0.5,
        "block": 4,
    },
]
