"""What does S4's state space compute? A diagonal plus a matrix of rank one: kernel and recurrence.

A = diag(lam) - p p*, in steps of the trapezoid rule: A_ = (1 - s A / 2)^-1 (1 + s A / 2),
B_ = (1 - s A / 2)^-1 s B; x_t = A_ x_(t-1) + B_ u_t, y_t = C x_t. Every vector is one half of
conjugate pairs, so a product of two whole vectors is 2 Re of the halves' product.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from model.ops.state_space import document_starts


@dataclass(frozen=True)
class System:
    """lam, p, b, c: complex (D, N), halves of conjugate pairs; `step_D` real."""

    lam_DN: jax.Array
    p_DN: jax.Array
    b_DN: jax.Array
    c_DN: jax.Array
    step_D: jax.Array


def advance(system: System, x_BDN: jax.Array, u_BD: jax.Array) -> jax.Array:
    """One step of the recurrence in O(N): Woodbury's identity for the matrix of rank one."""
    lam_DN, p_DN, half_D1 = system.lam_DN, system.p_DN, system.step_D[:, None] / 2
    inverse_DN = 1 / (1 - half_D1 * lam_DN)
    y_BDN = x_BDN + half_D1 * (lam_DN * x_BDN - p_DN * _paired(p_DN.conj() * x_BDN))
    y_BDN = inverse_DN * (y_BDN + 2 * half_D1 * system.b_DN * u_BD[..., None])
    through_DN = inverse_DN * p_DN
    share_BD1 = _paired(p_DN.conj() * y_BDN) / (1 / half_D1 + _paired(p_DN.conj() * through_DN))
    return y_BDN - through_DN * share_BD1


def _paired(x: jax.Array) -> jax.Array:
    """The sum over modes and their conjugates."""
    return 2 * jnp.sum(x.real, axis=-1, keepdims=True)


def recurrence(
    system: System,
    u_BTD: jax.Array,
    segments_BT: jax.Array | None,
    *,
    state_BDN: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One position after the other; y and the state after the last."""
    B, _, D = u_BTD.shape
    if state_BDN is None:
        state_BDN = jnp.zeros((B, D, system.lam_DN.shape[1]), system.lam_DN.dtype)

    def step(x_BDN, now):
        u_BD, starts_B = now
        x_BDN = advance(system, jnp.where(starts_B[:, None, None], 0, x_BDN), u_BD)
        return x_BDN, _paired(system.c_DN * x_BDN)[..., 0]

    now = (u_BTD.swapaxes(0, 1), document_starts(u_BTD, segments_BT).T)
    state_BDN, y_TBD = jax.lax.scan(step, state_BDN, now)
    return y_TBD.swapaxes(0, 1), state_BDN


def kernel(system: System, length: int) -> jax.Array:
    """The response (T, D) to an impulse, from its generating function at the roots of unity.

    The first `length` terms of sum_l K_l z^l are 2 C~ (2 (1 - z) / s - (1 + z) A)^-1 B with
    C~ = C (1 - A_^length). The papers learn C~ itself, which binds the parameter to one length;
    here C is learned, so a prefix has the same kernel.
    """
    c_DN = system.c_DN - after_steps(system, length)
    # one half of the roots: the kernel is real. The papers divide through by 1 + z, which is zero
    # at z = -1.
    angle_F = (-2 * jnp.pi / length) * jnp.arange(length // 2 + 1, dtype=system.step_D.dtype)
    z_F1 = jax.lax.complex(jnp.cos(angle_F), jnp.sin(angle_F))[:, None]
    plus_FD = 1 + z_F1
    minus_FD = 2 * (1 - z_F1) / system.step_D

    def resolvent(lam_DN):
        return 1 / (minus_FD[..., None] - plus_FD[..., None] * lam_DN)

    one_FDN, other_FDN = resolvent(system.lam_DN), resolvent(system.lam_DN.conj())

    def cauchy(v_DN):
        return jnp.einsum("fdn,dn->fd", one_FDN, v_DN) + jnp.einsum(
            "fdn,dn->fd", other_FDN, v_DN.conj()
        )

    p_DN, b_DN = system.p_DN, system.b_DN
    through_FD = cauchy(c_DN * p_DN) * cauchy(p_DN.conj() * b_DN)
    through_FD = through_FD * plus_FD / (1 + plus_FD * cauchy(p_DN * p_DN.conj()))
    return jnp.fft.irfft(2 * (cauchy(c_DN * b_DN) - through_FD), n=length, axis=0)


def after_steps(system: System, length: int) -> jax.Array:
    """C A_^length (D, N), by squaring A_ as a real (2N, 2N) matrix."""
    D, N = system.lam_DN.shape
    basis_XN = jnp.eye(2 * N, dtype=system.step_D.dtype)
    basis_XDN = jnp.broadcast_to(
        jax.lax.complex(basis_XN[:, :N], basis_XN[:, N:])[:, None], (2 * N, D, N)
    )
    moved_XDN = advance(system, basis_XDN, jnp.zeros((2 * N, D), system.step_D.dtype))
    # row x is where basis vector x goes
    power_DXY = jnp.concatenate([moved_XDN.real, moved_XDN.imag], axis=-1).swapaxes(0, 1)
    row_DX = jnp.concatenate([system.c_DN.real, -system.c_DN.imag], axis=-1)
    while length:
        if length & 1:
            row_DX = jnp.einsum("dxy,dy->dx", power_DXY, row_DX)
        length >>= 1
        if length:
            power_DXY = jnp.einsum("dxy,dyz->dxz", power_DXY, power_DXY)
    return jax.lax.complex(row_DX[:, :N], -row_DX[:, N:])
