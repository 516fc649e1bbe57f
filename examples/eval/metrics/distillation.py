"""How far a student's predictions are from its teacher's."""

import jax
import jax.numpy as jnp


def distillation_kl(
  student: jax.Array, teacher: jax.Array, temperature: float = 1.0
) -> jax.Array:
  """Returns each example's divergence of the student from the teacher.

      T^2 KL(softmax(teacher / T) || softmax(student / T))

  The factor keeps gradients at the size that they have at `T = 1` (Hinton et
  al. 2015; big_vision evaluators/proj/distill/distance.py).

  Args:
    student: logits `[B, V]`.
    teacher: logits `[B, V]`.
    temperature: `T`, above 0.

  Returns:
    `[B]` float32, in nats; 0 where the two are equal up to a constant.

  Raises:
    ValueError: if the shapes differ or the temperature is not positive.

  Example:
    >>> z = jnp.array([[1.0, 2.0, 3.0]])
    >>> float(distillation_kl(z + 5, z)[0])
    0.0
  """
  if student.shape != teacher.shape:
    raise ValueError(
      f"student and teacher must have the same classes, got logits "
      f"{student.shape} and {teacher.shape}"
    )
  if not temperature > 0:
    raise ValueError(f"temperature must be above 0, got {temperature}")
  p = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
  q = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
  return temperature**2 * (jnp.exp(p) * (p - q)).sum(axis=-1)
