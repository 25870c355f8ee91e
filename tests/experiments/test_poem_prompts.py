"""The templates for judging poems show each poem once, and ask for a verdict in the form that is read."""

import pytest
from paths import EXPERIMENTS

from nrt_jax.evaluation.judging import prompts


@pytest.mark.parametrize(
  "name,kind,form,verdict",
  [("poem_pairwise", prompts.PAIRWISE, "Verdict: X", "tie"), ("poem_score", prompts.SCALAR, "Score: N", 9)],
)
def test_templates_are_read_and_ask_for_the_form(name, kind, form, verdict):
  template = prompts.read_template(EXPERIMENTS / "full_size" / f"{name}.txt", kind)
  assert "{question}" in template and template.splitlines()[-1] == form
  assert prompts.read_verdict(kind, form.replace(form[-1:], str(verdict))) == verdict
