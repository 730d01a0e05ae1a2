"""The Chinchilla law: how does the final loss depend on parameters and tokens?

Hoffmann et al. 2022 (arXiv 2203.15556), approach 3; corrected coefficients in Besiroglu et al.
2024 (arXiv 2404.10102): E 1.8172, A 482.01, B 2085.43, alpha .3478, beta .3658, nats per token of
MassiveText.
"""

import jax.numpy as jnp

from analysis.law import Input, Law, amplitude, exponent, floor

LAW = Law(
    name="chinchilla",
    equation="L = E + A / N^alpha + B / D^beta",
    source="Hoffmann et al. 2022, arXiv 2203.15556",
    inputs=(Input("N", "parameters"), Input("D", "tokens")),
    params=(
        floor("E"),
        amplitude("A", of="N", exponent="alpha"),
        amplitude("B", of="D", exponent="beta"),
        exponent("alpha"),
        exponent("beta"),
    ),
    predict=lambda p, x: (
        p["E"]
        + p["A"] * jnp.exp(-p["alpha"] * x["ln_N"])
        + p["B"] * jnp.exp(-p["beta"] * x["ln_D"])
    ),
    domain="final losses, learning rate decayed over each run's own length, each token seen once",
)
