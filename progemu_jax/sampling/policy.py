"""How a next token is drawn: temperature, top-k, guidance."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import jax
import jax.numpy as jnp
from jax import lax

MODES = ("rows", "diagonal")
DRAFTS = ("none", "prior", "jacobi")
COUPLINGS = ("gumbel", "maximal", "independent")


@dataclass(frozen=True)
class Sampling:
    """Sampling policy of one request; the defaults are ProgEmu's.

    Attributes:
      temperature, top_k: for visual tokens; temperature 0 is greedy, top_k 0 keeps all.
      guidance: classifier-free guidance scale on visual tokens against the null prompt; 1 is none.
      keep_or_change: draws a code in two steps, whether the prior's at this place stays and, if not, which other one.
        Guidance and temperature act on both by themselves. In one step a low temperature favours the prior's code,
        which is one, over a change, whose probability lies on many codes that look alike.
      keep_prior: what guidance contrasts with keeps the prior image and drops the prompt alone, so that the scale
        sharpens the prompt (the text scale of InstructPix2Pix); else both are dropped, as in ProgEmu.
      text_temperature, text_top_k, text_guidance: the same for text tokens.
      max_text: text tokens after which a stop is forced.
      min_text: text tokens before a stop is allowed (Emu3: allowed from the third token on).
      mode: "rows" draws the image's codes one after the other, exactly as the model was trained. "diagonal" draws all
        codes of an anti-diagonal in one pass (`text.diagonals`), h + w - 1 passes for h x w codes: codes of a diagonal
        do not see each other, so that its images are of another distribution, close to the first as far as the
        diagonal head has learnt it. It needs a model with one (`config.progemu.diagonal`).
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
    keep_or_change: bool = False
    keep_prior: bool = False
    text_temperature: float = 1.0
    text_top_k: int = 2048
    text_guidance: float = 1.0
    max_text: int = 200
    min_text: int = 2
    mode: str = "rows"
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
        for name, choices in (("mode", MODES), ("draft", DRAFTS), ("coupling", COUPLINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")
        if not 2 <= self.window <= 4096:
            raise ValueError(f"window={self.window}: expected 2..4096")
        if self.diagonal and self.draft != "none":
            raise ValueError(f"draft={self.draft!r}: mode='diagonal' takes no drafts; leave one of them out")

    @property
    def diagonal(self) -> bool:
        return self.mode == "diagonal"

    @property
    def verified(self) -> int:
        """Tokens that one pass verifies: `window`, or 0 without drafts."""
        return 0 if self.draft == "none" else self.window

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


def two_steps(logits: jax.Array, prior: jax.Array, policy: Sampling) -> jax.Array:
    """Logits of the distribution that `Sampling.keep_or_change` draws from.

    Args:
      logits: f32 [2B, ..., V] as for `guide` where the policy is guided, else [B, ..., V].
      prior: int32 [B, ...], index of the prior's code, -1 for none: then in one step.

    Returns:
      f32 [B, ..., V], to be drawn from at temperature 1.
    """
    scores, g = jax.nn.log_softmax(logits, axis=-1), policy.guidance
    conditional, null = jnp.split(scores, 2) if policy.guided else (scores, scores)
    here = jax.nn.one_hot(prior, logits.shape[-1], dtype=bool)  # nowhere for -1

    def odds(scores: jax.Array) -> jax.Array:
        """Log odds of a change, [B, ..., 1]."""
        keep = jnp.minimum(jnp.max(jnp.where(here, scores, -jnp.inf), axis=-1, keepdims=True), -1e-6)
        return jnp.log1p(-jnp.exp(keep)) - keep

    change = odds(null) + g * (odds(conditional) - odds(null))
    change = jnp.sign(change) * jnp.inf if policy.temperature == 0 else change / policy.temperature
    twice = jnp.concatenate([here, here])
    rows = jnp.concatenate([conditional, null])

    def drawn(rows: jax.Array, out: jax.Array | bool) -> jax.Array:
        guided = jnp.where(out, -jnp.inf, guide(rows, g))
        return restrict(guided, policy.temperature, policy.top_k)

    others = jax.nn.log_softmax(drawn(jnp.where(twice, -1e9, rows), here), axis=-1)
    both = jnp.where(here, jax.nn.log_sigmoid(-change), jax.nn.log_sigmoid(change) + others)
    plain = drawn(rows, False)
    return jnp.where((prior >= 0)[..., None], both, plain)


def top_k_threshold(logits: jax.Array, k: int) -> jax.Array:
    """The k-th largest value of each row, exactly: f32 [..., V] -> f32 [..., 1]; 1 <= k <= V.

    Counts how many reach a probe, and moves the probe until k do: six to ten passes, and no sort (`lax.top_k` of
    2,048 in 32,768 costs as much as the forward pass of a small model). The first probe takes the row for normal
    values, the next ones interpolate the counts; every third halves the interval in an order-preserving integer
    image of the floats, so that 96 passes are the most.
    """
    logits = logits.astype(jnp.float32)
    size = logits.shape[-1]
    order = _order(logits)

    def reach(probe: jax.Array) -> jax.Array:
        return jnp.sum(order >= probe, axis=-1, keepdims=True, dtype=jnp.int32)

    finite = jnp.isfinite(logits)
    number = jnp.maximum(jnp.sum(finite, axis=-1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(finite, logits, 0), axis=-1, keepdims=True) / number
    spread = jnp.sqrt(jnp.sum(jnp.where(finite, (logits - mean) ** 2, 0), axis=-1, keepdims=True) / number)
    normal = mean + spread * NormalDist().inv_cdf(min(max(1 - k / size, 1e-6), 1 - 1e-6))

    def more(state: tuple) -> jax.Array:
        _, low, high, count, _ = state
        return ((count != k) & (high - low > 1)).any()

    def body(state: tuple) -> tuple:
        i, low, high, count, above = state
        # `low` is reached by `count` >= k, `high` by `above` < k.
        left, right = _value(low), _value(high - 1)
        inner = left + (right - left) * ((count - k + 0.5) / jnp.maximum(count - above, 1))
        probe = _order(jnp.where(i == 0, normal, inner))
        middle = low + (high - low) // 2
        probe = jnp.where(i % 3 == 2, middle, jnp.clip(probe, low + 1, high - 1))
        found = reach(probe)
        moving = (count != k) & (high - low > 1)
        up, down = moving & (found >= k), moving & (found < k)
        return (
            i + 1,
            jnp.where(up, probe, low),
            jnp.where(down, probe, high),
            jnp.where(up, found, count),
            jnp.where(down, found, above),
        )

    low, high = jnp.min(order, axis=-1, keepdims=True), jnp.max(order, axis=-1, keepdims=True) + 1
    state = (jnp.int32(0), low, high, jnp.full(low.shape, size, jnp.int32), jnp.zeros(low.shape, jnp.int32))
    low = lax.while_loop(more, body, state)[1]
    return _value(jnp.min(jnp.where(order >= low, order, jnp.uint32(2**32 - 1)), axis=-1, keepdims=True))


def _order(x: jax.Array) -> jax.Array:
    """f32 -> uint32 of the same order."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _value(order: jax.Array) -> jax.Array:
    """The inverse of `_order`."""
    bits = jnp.where(order >> 31 == 1, order & jnp.uint32(0x7FFFFFFF), ~order)
    return lax.bitcast_convert_type(bits, jnp.float32)


def largest(x: jax.Array) -> jax.Array:
    """jnp.argmax over the last axis, as two plain reductions, which XLA vectorises on CPU: f32 [..., V] -> int32."""
    places = jnp.arange(x.shape[-1], dtype=jnp.int32)
    first = jnp.where(x == jnp.max(x, axis=-1, keepdims=True), places, x.shape[-1] - 1)
    return jnp.min(first, axis=-1)


def restrict(logits: jax.Array, temperature: float, top_k: int) -> jax.Array:
    """Logits of the distribution that is drawn from: the top k of logits f32 [..., V], over the temperature.

    temperature: 0 leaves the largest only. top_k: 0 keeps all.
    """
    if temperature == 0:
        return jnp.where(jnp.arange(logits.shape[-1]) == largest(logits)[..., None], 0.0, -jnp.inf)
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
    return pick(restrict(logits, temperature, top_k), keys, temperature)


def pick(logits: jax.Array, keys: jax.Array, temperature: float) -> jax.Array:
    """`draw` from logits f32 [B, V] that are restricted already: the largest where the temperature is 0."""
    if temperature:
        logits += jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], jnp.float32))(keys)
    return largest(logits)
