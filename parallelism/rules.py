"""Which mesh axes does a dimension lie on? Strategies as data: axis name -> mesh axes.

One table for parameters (and what is shaped like them: gradients, optimiser moments), one for
activations. A mesh axis is used once per array; the first dimension that names it gets it.
"""

PARAMETERS: dict[str, tuple[str, ...]] = {
    "d_model": ("fsdp",),
    "ffn": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "vocab": ("tensor",),
    "experts": ("expert",),
    "layers": ("pipeline",),
    "streams": (),  # a device holds every stream of its rows, so that none waits for another
}

ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),  # every axis that holds tokens of its own
    "time": ("sequence",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
    "vocab": ("tensor",),
    "experts": ("expert",),
}
