"""A classifier whose logits are uncertain, and correlated, per image."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers

Params = dict[str, dict[str, jax.Array]]

_LEAST_PROBABILITY = 1e-7  # clipped there before the logarithm, as in edward2


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeteroscedasticHead:
  """Logits with a low-rank Gaussian, averaged over Monte Carlo samples.

      u_s = mu(x) + V(x) e_s + d(x) * n_s,   e_s ~ N(0, I_R), n_s ~ N(0, I_K)
      p = mean over s of softmax(u_s / T)

  `mu`, `V` and `d` are linear in `x`, `d` through a softplus (Collier et al.
  2021; google/edward2 `jax/nn/heteroscedastic_lib.MCSoftmaxDenseFA`).

  Args:
    classes: `K`.
    factors: `R`, the rank; 15 for ViT-22B.
    samples: of the Monte Carlo mean; 1,000 for ViT-22B.
    temperature: `T`; 5 for ViT-22B.
    floor: least standard deviation `d`; edward2 has 1e-3.
    shared_noise: one `n_s` for all classes of an image, which is what edward2
      draws, its documentation notwithstanding; it moves all logits together
      where `d` is alike, and so the softmax by little.

  Raises:
    ValueError: if a count is less than 1, or the temperature not positive.
  """

  classes: int = dataclasses.field(kw_only=False)
  factors: int = 15
  samples: int = 1000
  temperature: float = 5.0
  floor: float = 1e-3
  shared_noise: bool = False

  def __post_init__(self):
    for name in ("classes", "factors", "samples"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} must be at least 1, got {getattr(self, name)}"
        )
    if self.temperature <= 0:
      raise ValueError(f"temperature must be positive, got {self.temperature}")

  def init(self, key: jax.Array, in_features: int) -> Params:
    """Returns the three layers: "mean", "factors" and "diagonal".

    Kernels are LeCun-normal, biases zero.

    Args:
      key: PRNG key.
      in_features: `D`, features of the input.
    """
    sizes = {
      "mean": self.classes,
      "factors": self.classes * self.factors,
      "diagonal": self.classes,
    }
    return {
      name: {
        "kernel": initializers.lecun_normal()(key, (in_features, size)),
        "bias": jnp.zeros(size),
      }
      for key, (name, size) in zip(
        jax.random.split(key, 3), sizes.items(), strict=True
      )
    }

  def __call__(self, params: Params, x: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the logarithms of the probabilities, `[B, K]` float32.

    Args:
      params: as `init` makes them.
      x: `[B, D]`.
      key: of the samples; another key is another draw.

    Cost: three matmuls, then samples x B x K x R FLOPs twice; memory of one
      sample, which backward draws again.
    """
    x = x.astype(jnp.float32)
    mean, factors, diagonal = (
      x @ params[name]["kernel"] + params[name]["bias"]
      for name in ("mean", "factors", "diagonal")
    )
    factors = factors.reshape(-1, self.classes, self.factors)
    diagonal = jax.nn.softplus(diagonal) + self.floor

    @jax.checkpoint
    def sample(total, key):
      key_low, key_own = jax.random.split(key)
      low = jax.random.normal(key_low, (len(x), self.factors))
      own = (len(x), 1 if self.shared_noise else self.classes)
      noise = jnp.einsum("bkr,br->bk", factors, low)
      noise = noise + diagonal * jax.random.normal(key_own, own)
      logits = (mean + noise) / self.temperature
      return total + jax.nn.softmax(logits), None

    keys = jax.random.split(key, self.samples)
    total, _ = lax.scan(sample, jnp.zeros_like(mean), keys)
    return jnp.log(jnp.maximum(total / self.samples, _LEAST_PROBABILITY))
