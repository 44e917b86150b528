"""Nuclear norms: by singular values on a CPU, by matrix products alone elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_FLOOR = 0.05  # of the least singular value, so that the greatest is never mapped to zero
_SMALLEST = 1e-7  # singular values below, relative to the matrix, are rounding errors in float32


def nuclear_norm(matrices: jax.Array) -> jax.Array:
    """The sum of singular values of each matrix ``(..., rows, columns)``.

    Rows and columns of zeros change nothing, so a sub-network's matrix may be padded to the
    super-network's size. An accelerator, for which singular values are slow, sums the entries of
    the product with the polar factor; both agree to 1e-4 relative in float32.
    """
    return jax.lax.platform_dependent(matrices, cpu=by_singular_values, default=by_polar_factor)


def by_singular_values(matrices: jax.Array) -> jax.Array:
    """The sum of singular values, which LAPACK finds one matrix at a time."""
    return jnp.vectorize(_sum_of_singular_values, signature="(n,m)->()")(matrices)


# Given a batch, jaxlib's LAPACK calls wait inside XLA's pool of threads for other threads of it: as
# many of them at once as there are threads wait for ever. One matrix a call never waits.
@jax.custom_batching.sequential_vmap
def _sum_of_singular_values(matrix: jax.Array) -> jax.Array:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    if tall.shape[0] > 2 * tall.shape[1]:  # the triangular factor has the same, found faster
        tall = jnp.linalg.qr(tall, mode="r")
    return jnp.sum(jnp.linalg.svd(tall, compute_uv=False))


def by_polar_factor(matrices: jax.Array) -> jax.Array:
    """``<A, U>`` with the polar factor ``U`` of ``A``, by a scaled Newton-Schulz iteration.

    Source: Chen & Chow, "A stable scaling of Newton-Schulz for improving the sign function
    computation of a Hermitian matrix" (2014). Singular values are scaled so that those between a
    lower bound ``l`` and 1 come closest to 1; those too small to come there add next to nothing.
    """
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    norm = jnp.sqrt(jnp.sum(jnp.square(wide), (-2, -1), keepdims=True))
    factor = wide / jnp.where(norm > 0, 1.01 * norm, 1.0)

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def step(factor: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
        cubed = product(product(factor, factor.mT), factor)
        return 1.5 * scale * factor - 0.5 * scale**3 * cubed, None

    factor, _ = jax.lax.scan(step, factor, jnp.asarray(_scales()))
    return jnp.sum(wide * factor, (-2, -1))


def _scales() -> list[float]:
    least, scales = _SMALLEST, []
    while least < 1 - 1e-6:
        bound = max(least, _FLOOR)
        scale = (3 / (1 + bound + bound**2)) ** 0.5
        scales.append(scale)
        least = 0.5 * scale * least * (3 - scale**2 * least**2)
        if bound == _FLOOR and least > _FLOOR:  # what is greater may have come out smaller
            top = 0.5 * scale * (3 - scale**2)
            least = min(least, top)
    return scales
