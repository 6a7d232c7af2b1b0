"""Matrix products in bfloat16 on a CPU, in the forms that XLA's kernel for them takes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from progemu_jax.devices.sharding import platform


def wants_rows(x: jax.Array) -> bool:
    """Whether products of x go to the CPU's kernel for bfloat16: twice as fast as float32's, but for results in float32
    and for left factors that are read along their rows only."""
    return x.dtype == jnp.bfloat16 and platform() == "cpu"


def transposed(x: jax.Array) -> jax.Array | None:
    """[R, I] -> [I, R], for `outer`, where that is faster with it; else None."""
    if not wants_rows(x):
        return None
    # Through one axis: of two, XLA would change the layout alone and move nothing.
    return jax.lax.optimization_barrier(x.T.reshape(-1)).reshape(x.shape[::-1])


def outer(x: jax.Array, y: jax.Array, y_transposed: jax.Array | None) -> jax.Array:
    """[R, I], [R, O] of one dtype -> float32 [I, O], summed over the rows; y_transposed: `transposed(y)`."""
    if y_transposed is None:
        return jnp.einsum("RI,RO->IO", x, y, preferred_element_type=jnp.float32)
    out = jnp.einsum("OR,RI->OI", y_transposed, x, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(out).T  # else XLA makes it the product of the other kind again


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(whole: bool, x: jax.Array, w: jax.Array) -> jax.Array:
    """bfloat16 [R, I], any float [I, O] -> float32 [R, O], on CPU: all three products by XLA's kernel for bfloat16.

    whole: no mesh splits the rows (their transposition through one axis would gather them).
    """
    return jnp.einsum("RI,IO->RO", x, w.astype(x.dtype), preferred_element_type=jnp.float32)


def _product_forward(whole: bool, x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(whole, x, w), (x, w)


def _product_backward(
    whole: bool, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    gradient = gradient.astype(x.dtype)
    of_x = jnp.einsum("RO,IO->RI", gradient, w.astype(x.dtype), preferred_element_type=jnp.float32)
    if not whole:
        of_w = outer(x, gradient, None)
    elif x.shape[1] <= gradient.shape[1]:
        of_w = outer(gradient, x, transposed(x)).T
    else:
        of_w = outer(x, gradient, transposed(gradient))
    return of_x.astype(x.dtype), of_w.astype(w.dtype)


product.defvjp(_product_forward, _product_backward)
