"""How a next token is drawn: temperature, top-k, guidance."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

DRAFTS = ("none", "prior", "jacobi")
COUPLINGS = ("gumbel", "maximal", "independent")


@dataclass(frozen=True)
class Sampling:
    """Sampling policy of one request; the defaults are ProgEmu's.

    Attributes:
      temperature, top_k: for visual tokens; temperature 0 is greedy, top_k 0 keeps all.
      guidance: classifier-free guidance scale on visual tokens against the null prompt; 1 is none.
      keep_prior: what guidance contrasts with keeps the prior image and drops the prompt alone, so that the scale
        sharpens the prompt (the text scale of InstructPix2Pix); else both are dropped, as in ProgEmu.
      text_temperature, text_top_k, text_guidance: the same for text tokens.
      max_text: text tokens after which a stop is forced.
      min_text: text tokens before a stop is allowed (Emu3: allowed from the third token on).
      draft: "none" decodes the image code by code; with drafts, a pass verifies `window` tokens at once, and the
        result's distribution stays the same: "prior" guesses the prior's code at the same place, "jacobi" starts
        from it and goes on from what the pass before has predicted.
      coupling: how drafts are verified (`sampling.speculation`): "gumbel" gives the codes of draft="none" for the
        same seed; "maximal" and "independent" give others of the same distribution.
      window: tokens of a verifying pass, at least 2.
    """

    temperature: float = 1.0
    top_k: int = 2048
    guidance: float = 1.0
    keep_prior: bool = False
    text_temperature: float = 1.0
    text_top_k: int = 2048
    text_guidance: float = 1.0
    max_text: int = 200
    min_text: int = 2
    draft: str = "none"
    coupling: str = "gumbel"
    window: int = 16

    def __post_init__(self):
        for name in ("temperature", "text_temperature", "guidance", "text_guidance"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value}: expected a finite number that is not negative")
        if self.top_k < 0 or self.text_top_k < 0:
            raise ValueError(f"top_k={min(self.top_k, self.text_top_k)}: expected 0 (all) or more")
        if not 0 <= self.min_text <= self.max_text or self.max_text < 1:
            raise ValueError(f"min_text={self.min_text}, max_text={self.max_text}: expected 0 <= min <= max, max >= 1")
        for name, choices in (("draft", DRAFTS), ("coupling", COUPLINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")
        if not 2 <= self.window <= 4096:
            raise ValueError(f"window={self.window}: expected 2..4096")

    @property
    def guided(self) -> bool:
        """Whether a second, null-prompt row per case is needed."""
        return self.guidance != 1.0 or self.text_guidance != 1.0


def guide(logits: jax.Array, scale: float) -> jax.Array:
    """uncond + scale * (cond - uncond) on log-softmaxed scores.

    Args:
      logits: f32 [2B, V], conditional rows first, then their null-prompt twins.
      scale: guidance scale; 1 returns the conditional scores.

    Returns:
      f32 [B, V].
    """
    scores = jax.nn.log_softmax(logits, axis=-1)
    conditional, null = jnp.split(scores, 2)
    return null + scale * (conditional - null)


def top_k_threshold(logits: jax.Array, k: int) -> jax.Array:
    """The k-th largest value of each row, exactly: f32 [..., V] -> f32 [..., 1].

    Bisects the 32 bits of an order-preserving integer image of the floats, which costs 32 counting passes and
    no sort: `lax.top_k` of 2,048 in 32,768 costs as much as the forward pass of a small model.
    """
    bits = lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.uint32)
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

    def bisect(i, low):
        probe = low | (jnp.uint32(1) << (jnp.uint32(31) - i.astype(jnp.uint32)))
        enough = jnp.sum(order >= probe, axis=-1, keepdims=True) >= k
        return jnp.where(enough, probe, low)

    low = lax.fori_loop(0, 32, bisect, jnp.zeros_like(order[..., :1]))
    bits = jnp.where(low >> 31 == 1, low & jnp.uint32(0x7FFFFFFF), ~low)
    return lax.bitcast_convert_type(bits, jnp.float32)


def restrict(logits: jax.Array, temperature: float, top_k: int) -> jax.Array:
    """Logits of the distribution that is drawn from: the top k of logits f32 [..., V], over the temperature.

    temperature: 0 leaves the largest only. top_k: 0 keeps all.
    """
    if temperature == 0:
        return jnp.where(jnp.arange(logits.shape[-1]) == jnp.argmax(logits, axis=-1, keepdims=True), 0.0, -jnp.inf)
    if 0 < top_k < logits.shape[-1]:
        logits = jnp.where(logits >= top_k_threshold(logits, top_k), logits, -jnp.inf)
    return logits / temperature


def draw(logits: jax.Array, keys: jax.Array, temperature: float, top_k: int) -> jax.Array:
    """Draws one index per row by the Gumbel-max trick, each row from its own key.

    Args:
      logits: f32 [B, V]; -inf where not allowed.
      keys: PRNG keys [B].
      temperature, top_k: as in `restrict`.

    Returns:
      int32 [B].
    """
    logits = restrict(logits, temperature, top_k)
    if temperature:
        logits += jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], jnp.float32))(keys)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
