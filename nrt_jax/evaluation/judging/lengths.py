"""The score that a pair's answers would have at equal lengths, since judges like long ones."""

import numpy as np

from nrt_jax.evaluation.estimates import Z

STEPS, LARGEST_STEP = 100, 1.0


def equal_length_score(points: list, differences: list, groups: list) -> tuple[float, list | None]:
  """(score, 95 % interval over questions) where the answers' lengths do not differ (arXiv 2404.04475, one weight).

  Fits points in [0, 1] by sigmoid(a + b tanh(d / std d)), d being the differences in length, and gives sigmoid(a). b
  has a normal prior of deviation 1 (ours), or a separable sample would have no fit. The variance is the sandwich's,
  with the gradients of a question's samples added first. No interval where nothing varies, or of a single question.
  """
  y, d = np.asarray(points, np.float64), np.asarray(differences, np.float64)
  if y.min() == y.max() == round(y.max()):
    return float(y[0]), None
  x_N2 = np.stack([np.ones_like(d), np.tanh(d / d.std()) if d.std() > 0 else np.zeros_like(d)], axis=1)
  prior_22 = np.diag([0.0, 1.0])
  weights = np.array([np.log(y.mean() / (1 - y.mean())), 0.0])
  for _ in range(STEPS):
    chance = _sigmoid(x_N2 @ weights)
    curvature_22 = (x_N2 * (chance * (1 - chance))[:, None]).T @ x_N2 + prior_22
    step = np.linalg.solve(curvature_22, x_N2.T @ (y - chance) - prior_22 @ weights)
    weights = weights + step * min(1.0, LARGEST_STEP / max(np.abs(step).max(), 1e-300))
    if np.abs(step).max() < 1e-12:
      break
  numbers = np.unique(groups, return_inverse=True)[1]
  count = numbers.max() + 1
  gradient_Q2 = np.zeros((count, 2))
  np.add.at(gradient_Q2, numbers, x_N2 * (y - chance)[:, None])
  inverse_22 = np.linalg.inv(curvature_22)
  variance = (inverse_22 @ gradient_Q2.T @ gradient_Q2 @ inverse_22)[0, 0] * count / max(count - 1, 1)
  if count < 2 or variance < 1e-20:
    return float(_sigmoid(weights[0])), None
  half = Z * np.sqrt(variance)
  return float(_sigmoid(weights[0])), [float(_sigmoid(weights[0] - half)), float(_sigmoid(weights[0] + half))]


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))
