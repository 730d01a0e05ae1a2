"""How are scores fitted by a few skills? Least squares on a rate of guessing plus a logistic of a
product of two small matrices."""

from dataclasses import dataclass

import numpy as np

SLOPES = 3  # of ln N, ln D and their product: the last rows of A
EDGE = 1e-2  # scores are kept this far from the ends of their range before the first logit
DONE = 1e-13  # relative gain of a step

Point = tuple[np.ndarray, np.ndarray, np.ndarray]  # base (B,), A (Z, K), loadings (B, K)


@dataclass(frozen=True)
class Scores:
    """M models with their z (M, Z), rates of guessing (B,) and which scores are there (M, B)."""

    z_MZ: np.ndarray
    chance: np.ndarray
    there: np.ndarray

    def scores(self, point: Point) -> np.ndarray:
        base, A, loadings = point
        eta = np.clip(base + self.z_MZ @ A @ loadings.T, -40, 40)
        return self.chance + (1 - self.chance) / (1 + np.exp(-eta))

    def start(self, y_MB: np.ndarray, skills: int) -> Point:
        """Logits regressed on z benchmark by benchmark, then the best subspace of their fits."""
        share = np.clip((y_MB - self.chance) / (1 - self.chance), EDGE, 1 - EDGE)
        logit = np.log(share / (1 - share))
        fitted = np.empty_like(y_MB)
        ridge = 1e-6 * np.eye(self.z_MZ.shape[1])
        for k in range(y_MB.shape[1]):
            z, at = self.z_MZ[self.there[:, k]], logit[self.there[:, k], k]
            # a ridge where a benchmark's models do not span z: other benchmarks will say
            fitted[:, k] = self.z_MZ @ np.linalg.solve(z.T @ z + ridge, z.T @ at)
        base = fitted.mean(0)
        u, s, v = np.linalg.svd(fitted - base, full_matrices=False)
        A = np.linalg.pinv(self.z_MZ) @ (u[:, :skills] * s[:skills])
        return base, A, v[:skills].T

    def solve(self, y_MB: np.ndarray, point: Point, *, steps: int) -> Point:
        """Levenberg-Marquardt on the scores; damping leaves the rotation of skills where it is."""
        (B,), Z, K = point[0].shape, self.z_MZ.shape[1], point[1].shape[1]
        mask = self.there.ravel()
        damping, cost = 1e-3, np.inf

        def off(p: Point) -> np.ndarray:
            return (self.scores(p) - y_MB).ravel()[mask]

        r = off(point)
        cost = float(r @ r)
        for _ in range(steps):
            base, A, loadings = point
            theta = self.z_MZ @ A
            share = (self.scores(point) - self.chance) / (1 - self.chance)
            g = (1 - self.chance) * share * (1 - share)
            eye = np.eye(B)
            J = np.concatenate(
                [
                    np.einsum("mj,jb->mjb", g, eye).reshape(-1, B),
                    np.einsum("mj,mz,jk->mjzk", g, self.z_MZ, loadings).reshape(-1, Z * K),
                    np.einsum("mj,mk,jb->mjbk", g, theta, eye).reshape(-1, B * K),
                ],
                axis=1,
            )[mask]
            H, gradient = J.T @ J, J.T @ r
            scale = np.maximum(np.diag(H), 1e-9 * np.diag(H).max() + 1e-300)
            while True:
                step = np.linalg.solve(H + damping * np.diag(scale), -gradient)
                new = (
                    base + step[:B],
                    A + step[B : B + Z * K].reshape(Z, K),
                    loadings + step[B + Z * K :].reshape(B, K),
                )
                r_new = off(new)
                cost_new = float(r_new @ r_new)
                if cost_new < cost or damping > 1e8:
                    break
                damping *= 4
            gain = cost - cost_new
            if not gain > 0:
                return point
            point, r, cost, damping = new, r_new, cost_new, max(damping / 5, 1e-12)
            if gain <= DONE * cost:
                return point
        return point


def standard(problem: Scores, point: Point) -> Point:
    """The same logits with skills of unit spread over the models, apart from each other, the one
    that matters most first; more skill is a higher mean score."""
    base, A, loadings = point
    theta = problem.z_MZ @ A
    middle = theta.mean(0)
    u, s, v = np.linalg.svd((theta - middle) @ loadings.T, full_matrices=False)
    K = A.shape[1]
    sign = np.where(v[:K].sum(1) < 0, -1.0, 1.0)
    root = np.sqrt(len(theta))
    turn = loadings.T @ v[:K].T / s[:K] * root * sign
    # the mean is each benchmark's: every family's indicator carries it
    F = A.shape[0] - SLOPES
    shifted = A.copy()
    shifted[:F] -= middle
    return base + middle @ loadings.T, shifted @ turn, v[:K].T * s[:K] / root * sign
