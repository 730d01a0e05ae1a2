"""Which mesh axes does a dimension lie on? Strategies as data: axis name -> mesh axes.

One table for parameters (and what is shaped like them: gradients, optimiser moments), one for
activations. A mesh axis is used once per array; the first dimension that names it gets it.
"""

PARAMETERS: dict[str, tuple[str, ...]] = {
    "d_model": ("fsdp",),
    "ffn": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "vocab": ("tensor", "pipeline"),  # what lies outside the pipeline is shared by its stages
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
    "vocab": ("tensor", "pipeline"),
    "experts": ("expert",),
}

# Where the residual stream lies between layers, by `execution.residuals`. Sharded (Korthikanti et
# al. 2022): positions over tensor too, gathered where a layer begins; what the devices of a tensor
# group each add to the stream is summed and scattered where it ends.
RESIDUALS: dict[str, dict[str, tuple[str, ...]]] = {
    "whole": ACTIVATIONS,
    "sharded": {**ACTIVATIONS, "time": ("sequence", "tensor")},
}
