"""What docs/make_method_pages.py writes about each method beside what it reads from the method's config.

A failure is known if it was measured here (docs/results/), stated by the method's paper or code, or follows from the
equation. Equations are plain text, so that they read the same in a terminal.
"""

from typing import NamedTuple


class Note(NamedTuple):
  """The hand-written part of a method's page."""

  title: str
  what: str  # one sentence
  equation: str  # plain text, indented by the generator
  where: str  # the symbols of the equation that the page's head does not have
  use: tuple[str, ...]  # when to use it
  failures: tuple[str, ...]
  settings: str = ""  # lines of the example config, behind model and data
  files: tuple[str, ...] = ()  # of experiments/full_size/


LEAVE_ONE_OUT = "The baseline leaves the row's own reward out, so the gradient of the trace term is unbiased."
UNKEPT = (
  "No gradient goes through the reference answer, so nothing preserves its wording while the traces change; in the "
  "miniature on Countdown it lost the task ([results](../results/methods.md#countdown_small))."
)
SHRINK = (
  "Where the model's traces do not help, they shrink to nothing and log p(answer) ends at the SFT control's "
  "([results](../results/methods.md#long_answer); arXiv 2602.03979 reports the same on long answers)."
)
ONE_REFERENCE = (
  "One reference answer: where many answers are right, a trace that settles on another one is punished "
  "([results](../results/methods.md#countdown_small))."
)
VERIFIER = "It needs a verifier: `token_match` compares tokens inside the program, other verifiers run on the host."
FLAT = "Prompts that are always right or always wrong teach nothing, and cost as much as the others."
VERIFIED = '  config.algorithm.verifier = "gsm8k"  # or "math", "exact_match"; default: equal tokens'

NOTES = {
  "nrt": Note(
    "NRT",
    "Rewards a trace by how likely it makes the reference answer, weighs the answer's tokens by how hard they are "
    "without a trace, and trains trace and answer together.",
    "J = E_x E_z[ f(c) ],   f(c) = (1/T) Σ_i w_i c_i,   w_i = -log c∅_i\n\n"
    "∇J = E[ A Σ_t ∇log π(z_t | x, z_<t)  +  Σ_i s_i ∇log π(y*_i | x, z, y*_<i) ],   s_i = w_i c_i / T\n\n"
    "A = (R' - mean R') / std R',   R' = max(0, f(c) - f(c∅))",
    "`algorithm.reward` selects another f; [equations.md](../equations.md#the-six-rewards) has all six, and the two "
    "forms of NRT (the paper's, the released code's).",
    (
      "You have question-answer pairs, no verifier, and a model that can already write something useful before an "
      "answer. This is the method to start with.",
      "For plain cross-entropy on the answer, as in the released code's main runs, set `algorithm.answer_weight` to "
      '`"one"`.',
    ),
    (
      "**Traces grow without content where they do not help**: a trace that hurts is clipped to the empty trace's "
      "reward, one that helps by chance is not, and dividing by the deviation makes that advantage large "
      "([results](../results/methods.md#long_answer)). Watch `answer/logp_gain` beside `trace/length_mean`.",
      "**A model whose traces hurt at the start** is taught to write noise: SmolLM2-135M on GSM8K "
      "([results](../results/smollm2_gsm8k.md)). Measure `answer_logp_gain` with `nrt-jax evaluate` before you train.",
      "If every trace of a group is worse than none, the group has no trace gradient.",
      ONE_REFERENCE,
    ),
    files=("nrt_llama31_8b_tulu3.py", "nrt_paper_llama31_8b_tulu3.py", "rlp_qwen3_17b.py",
           "quiet_star_filter_mistral_7b.py"),
  ),  # fmt: skip
  "jepo": Note(
    "JEPO, one sample (JLB)",
    "Maximises a lower bound of the log-probability of the answer, with one trace in the bound.",
    "J = E_z[ log p ] <= log π(y* | x),   p = Π_i c_i\n\n"
    "A_k = clip( a_k / std(a), ±1 ),   a_k = log p_k - mean_{j≠k} log p_j,   s_i = 1",
    "",
    (
      "Answers of any length where a proper objective matters: the answer term is plain log-likelihood.",
      "As the bound that `jepo_multi` tightens; compare both.",
    ),
    (SHRINK, "A trace without marker is left out of the bound and pays a penalty of 10 instead; a model that rarely "
     "writes its marker learns the marker first.", ONE_REFERENCE),
  ),
  "jepo_multi": Note(
    "JEPO, several samples",
    "The same bound with all samples of a prompt in it: tighter, and samples that make the answer likely weigh more.",
    "J = E[ log (1/G) Σ_k p_k ],   p = Π_i c_i\n\n"
    "a_k = log mean_j p_j - log mean_{j≠k} p_j,   answer weight of sample k: softmax_k(log p)",
    "",
    (
      "Several samples per prompt are affordable and answers can be reached in more than one way: one good trace of "
      "the group is enough.",
    ),
    (
      "With long answers the softmax puts nearly all weight on one sample: log p of whole answers differs by many "
      "nats.",
      SHRINK,
      ONE_REFERENCE,
    ),
    files=("jepo_llama3_8b_math.py", "jepo_llama3_8b_numina_proof.py"),
  ),
  "verifree": Note(
    "VeriFree",
    "The probability of the reference answer as the reward: what an exact-match verifier would pay in expectation, "
    "without its noise.",
    "J = E_z[ p ],   p = Π_i c_i, or 0 without marker\n\n"
    "A_k = p_k - mean_{j≠k} p_j,   s_i = p_k",
    LEAVE_ONE_OUT,
    ("Short answers with one way to write them: numbers, options, names.",),
    (
      "**The product vanishes on long answers**: with 33 tokens the rewards of a group differed by 0.00006 at the "
      "first step ([results](../results/methods.md#long_answer)). Adam hides that; SGD, or a second term of normal "
      "size, does not.",
      ONE_REFERENCE,
    ),
    files=("verifree_qwen3_8b.py",),
  ),
  "latro": Note(
    "LaTRO",
    "log p(answer) as the reward, less a KL term that keeps traces near the initial policy.",
    "R_k = log p_k - 0.05 Σ_t log π(z_t) / π_0(z_t),   p = Π_i c_i\n\n"
    "A_k = R_k - mean_{j≠k} R_j,   s_i = 0",
    LEAVE_ONE_OUT,
    ("Only the traces should change, and the model's way of writing answers is good already.",),
    (UNKEPT, "With `rl_logit` it was the slowest of its family at the same learning rate "
     "([results](../results/methods.md#running_sum)). `answer_coef = 1` is the theory's answer term.", SHRINK),
  ),
  "rl_logit": Note(
    "RL-Logit",
    "log p(answer), or minus its perplexity's log, with a leave-one-out baseline and the exact answer term.",
    "R_k = log p_k = Σ_i log c_ki,   A_k = R_k - mean_{j≠k} R_j,   s_i = ∂R/∂log c_i = 1",
    '`reward = "mean_log_prob"` is the perplexity form, "prob" and "arithmetic_mean" the paper\'s other designs.',
    (
      "The plainest likelihood method: an exact gradient with nothing scaled, clipped or filtered.",
      "As the baseline of a study on long answers.",
    ),
    (
      SHRINK,
      "The reward is a sum over tokens, so prompts with long answers dominate the batch. The perplexity form divides "
      "by the length.",
      ONE_REFERENCE,
    ),
  ),
  "dro": Note(
    "DRO",
    "Rewards the gain of log p over an empty trace, and weighs the answer tokens that the traces move most.",
    "R = Σ_j w_j (log c_j - log c∅_j),   w_j = σ_j / mean σ,   σ_j = deviation of log c_j over the group",
    "That w increases with σ is the paper's; the form of w is ours. Propagation factors, the term on the answer's "
    "length and data filters are not here.",
    ("Long answers of which only a few tokens depend on the reasoning.",),
    (
      UNKEPT,
      "It found the hard words of long answers and lost them again ([results](../results/methods.md#long_answer)).",
      "σ comes from G samples: with small groups the weights are noise.",
    ),
  ),
  "rlpr": Note(
    "RLPR",
    "Whole completions are trained; the reward is the mean probability of the reference answer in the place of the "
    "model's own.",
    "R = 0.9 clip( mean_i c_i - mean_i c∅_i, 0, 1 ) + 0.1 for format,   0 without format,   - 1 for repetition\n\n"
    "A = (R - mean R) / std R;   groups whose deviation is below 0.5 of its moving average don't count",
    "c∅ is the initial policy's.",
    (
      "An instruct model that writes good answers already, and data without a verifier. The model's own answer is "
      "trained, so it keeps its own style.",
    ),
    (
      "**Collapse of the wording**: the model's own answer is trained but never compared, and the reference gets no "
      "gradient. One seed of three ended at accuracy 0 on running sums, all three on long answers "
      "([results](../results/methods.md#running_sum)). Once R falls below the frozen baseline all rewards are 0.",
      "The mean is dominated by easy tokens: a trace hardly moves it where most of the answer is form.",
    ),
    files=("rlpr_qwen25_7b.py",),
  ),
  "nover": Note(
    "NOVER",
    "Ranks the completions of a prompt by the perplexity of the reference answer under a reference that follows the "
    "policy, and prefers short ones.",
    "log P = -mean_i log c_i / max(1, 1 + log10 |z|)\n\n"
    "R = 1 for format + rank (1 the best ... 1/V the worst of V) + share of the others that are longer and worse",
    "Without format R = 0.",
    ("Rewards of very different size between prompts: ranks don't see it.", "Short traces are worth something to you."),
    (
      "Ranks pay for differences that are only noise: perplexities that hardly differ get the full range of ranks.",
      "Efficiency rewards brevity: traces that do not help vanish (0.3 tokens in the miniature's Countdown).",
    ),
  ),
  "sft": Note(
    "SFT",
    "Next-token prediction on prompt, given trace, marker and reference answer; the control of every verifier-free "
    "method.",
    "L = - Σ_i log π(y*_i | x, z_given, y*_<i)   (and the trace's and marker's tokens)",
    "Without traces in the data z_given is empty.",
    (
      "Run it beside every verifier-free run, on as many answers: it shows what the answer term alone does.",
      "As the first stage, to teach a marker or a form; with packed rows, as pretraining.",
    ),
    (
      "Without given traces it trains the marker right behind the question, so **the model's own traces vanish** "
      "([results](../results/smollm2_gsm8k.md)).",
      "It says nothing about which trace is good.",
    ),
    settings='  config.data.trace_column = "trace"  # optional: given traces, {..., "trace": ...} on some lines\n'
    "  config.data.max_trace_length = 512  # tokens of them",
  ),
  "grpo": Note(
    "GRPO",
    "A verifier says right or wrong; advantages are standardised within the samples of a prompt.",
    "A_k = (r_k - mean r) / std r\n\n"
    "L = - mean_k (1/|o_k|) Σ_t [ min(ρ_t A_k, clip(ρ_t, 0.8, 1.2) A_k) - 0.04 KL(π ‖ π_ref) ]",
    "r is 1 or 0; o is the whole completion.",
    ("You have a verifier and want the reference point of the literature.",),
    (
      VERIFIER,
      "Dividing by |o| makes a token of a long answer weigh less, dividing by std weighs easy and hard prompts up "
      "(arXiv 2503.20783): `dr_grpo` drops both.",
      FLAT + " `dapo` leaves them out or draws others.",
    ),
    settings=VERIFIED,
    files=("grpo_qwen25_math_7b.py", "rpt_r1_distill_qwen_14b.py", "early_rl_olmo2_1b.py"),
  ),
  "dr_grpo": Note(
    "Dr. GRPO",
    "GRPO without the division by the group's deviation and by the completion's length.",
    "A_k = r_k - mean r,   L = - (1/N) Σ_k (1/C) Σ_t min(ρ_t A_k, clip(ρ_t, 0.8, 1.2) A_k)",
    "C is a constant: `normalisation_constant`, or the limit on the trace's length.",
    ("Verifiable rewards with an unbiased gradient and the fewest choices to defend.",),
    (VERIFIER, FLAT, "The loss's size depends on C; with it, on the learning rate and on clipping by norm."),
    settings=VERIFIED,
  ),
  "dapo": Note(
    "DAPO",
    "GRPO with a higher upper clip, a loss over tokens, no groups of one verdict, and care for completions that were "
    "cut.",
    "A_k = (r_k - mean r) / std r,   r = 1 or -1,   L = - (1/Σ_k|o_k|) Σ_k Σ_t min(ρ_t A_k, clip(ρ_t, 0.8, 1.28) A_k)",
    "`max_draws` K draws up to K times until a step is full of groups whose verdicts differ.",
    ("Long completions and a verifier; prompts of very mixed difficulty.",),
    (
      VERIFIER,
      "Drawing again costs whole rollouts: with `max_draws` K a step may sample K times as much. `draws/count` and "
      "`draws/kept_groups` say what it did.",
      "With the default `max_draws` 1 nothing is drawn again; groups of one verdict are only left out.",
    ),
    settings=VERIFIED + "\n  config.algorithm.max_draws = 4",
    files=("dapo_qwen25_math_7b.py", "dapo_qwen25_32b.py"),
  ),
  "rloo": Note(
    "RLOO",
    "REINFORCE with the mean of the other samples as baseline; no ratio, no clip.",
    "A_k = r_k - mean_{j≠k} r_j,   L = - (1/N) Σ_k (1/C) A_k Σ_t log π(o_t)",
    LEAVE_ONE_OUT,
    ("On-policy updates with a verifier, one update per rollout: nothing that a clip would do.",),
    (VERIFIER, FLAT, "It has no ratio, so it takes one minibatch: `optimizer.minibatches` above 1 is refused."),
    settings=VERIFIED,
  ),
  "gspo": Note(
    "GSPO",
    "PPO's clip on one ratio for the whole completion: the geometric mean of its tokens' ratios.",
    "ρ_k = exp( (1/|o_k|) Σ_t log π(o_t) / π_old(o_t) )\n\n"
    "L = - mean_k min(ρ_k A_k, clip(ρ_k, 1 - 3e-4, 1 + 4e-4) A_k),   A_k = (r_k - mean r) / std r",
    "",
    ("Several updates per rollout, and mixtures of experts, whose token ratios are noisy.",),
    (
      "**Its trust region is narrower than bfloat16's rounding** between sampler and update: ratios must compare with "
      'the update\'s own log-probabilities (`ratio_base = "update"`, the default; '
      "[decisions](../decisions.md#sampling)).",
      VERIFIER,
      FLAT,
    ),
    settings=VERIFIED,
  ),
  "nft": Note(
    "NFT",
    "Supervised learning from right and wrong completions: wrong ones train the negative policy that the trained one "
    "implies.",
    "L = -ω(r̂) Σ_t [ s log R_t + (1 - s) log max_ε(V_t) ],   V_t = (1 - r̂ R_t) / (1 - r̂)",
    "s is the label, r̂ its mean over the group, R the ratio to the sampling policy, ω = 1 - r̂, ε = 1. On-policy its "
    "gradient is Dr. GRPO's.",
    (
      "A verifier, several updates per rollout, and the wish to stay in supervised learning.",
      'With `verifier = "likelihood"` it needs none: f(c) of the reference answer is the label.',
    ),
    (
      "Soft labels with ε = 1 end in a policy sharper than the posterior; a small ε blows up where R comes near 1/r̂.",
      "Groups with one label don't count.",
    ),
    settings=VERIFIED,
    files=("nft_qwen25_math_7b.py",),
  ),
  "rft": Note(
    "RFT",
    "Likelihood of the completions that a verifier accepts, all of them alike (expert iteration).",
    "L = - Σ_{k: right} Σ_t log π(o_t)",
    "It is NFT with `negative_weight` 0 and ω = 1.",
    ("The simplest use of a verifier, and a strong baseline on easy prompts.",),
    ("Nothing is learnt from wrong completions.", "Easy prompts dominate: they have the most right samples.", VERIFIER),
    settings=VERIFIED,
  ),
  "dpo": Note(
    "Iterative DPO",
    "Each step samples a group, takes its best and its worst member, and makes one preferred to the other.",
    "L = - log σ( β [ log π(y_w)/π_ref(y_w) - log π(y_l)/π_ref(y_l) ] )  +  chosen_coef NLL(y_w) / |y_w|",
    "y_w and y_l are traces ranked by how likely they make the reference answer; or whole completions ranked by a "
    "verifier; or the demonstration against the worst sample (`chosen = \"demonstration\"`).",
    (
      "Preferences are all you trust: the size of a reward does not matter, only which is better.",
      "RARO's cheap rival: demonstration against own sample.",
    ),
    (
      UNKEPT + " `chosen_coef` 1 adds cross-entropy on the chosen row.",
      "With one update per step β only scales the step; DPO needs many prompts and several minibatches.",
      "A group without a strict winner makes no pair.",
    ),
    settings="  config.optimizer.minibatches = 4",
  ),
  "rationalization": Note(
    "Rationalization",
    "Shows the model question and answer, samples the trace between them, and learns it as if it came from the "
    "question alone.",
    "z ~ π(· | x, y*),   L = - log π(z, marker, y* | x)   for the z that are kept",
    "`keep` selects by f(c) - f(c∅) under the plain prompt.",
    (
      "A strong instruct model that explains answers well, and questions that are too hard to sample right answers to.",
    ),
    (
      "**A model that was never shown an answer before the question** writes anything there: it ended below the "
      "control in every miniature ([results](../results/methods.md#running_sum), "
      "[and](../results/raro.md#what-it-shows)).",
      "A trace may give away that it knew the answer, or repeat it: then the answer is likely behind it, and no "
      "likelihood filters it out.",
    ),
    settings='  config.prompt.hint_template = "{question} (The answer is {answer}.)"',
  ),
  "raro": Note(
    "RARO",
    "A critic is shown the expert's and the policy's answer and names the expert's; policy and critic are trained "
    "together, each against the other.",
    "                        critic   policy\n"
    "names the expert's      1        0\n"
    "names the policy's      0        1\n"
    "neither (a tie)         τ_crit   τ_pol\n\n"
    "L = λ_pol L_policy + λ_crit L_critic + kl_coef (KL_policy + KL_critic)",
    "Advantages are taken within a question's completions, and within a pair's verdicts. [raro.md](../raro.md) is its "
    "guide: warm-up, what to watch, tournaments.",
    (
      "Many answers are right, nobody can grade them, and judging is easier than answering: proofs, verse, programs.",
    ),
    (
      "**A critic that knows too little holds the policy where it is**: on Countdown it named 0.53 to 0.57 of the "
      "wrong answers, and RARO gained nothing where SFT did ([results](../results/raro.md#countdown)).",
      "It did not beat cheaper baselines in miniature: `rl_logit` and `dpo` were a little better on zigzag "
      "([results](../results/raro.md#what-it-shows)). The paper, at 1.5 billion parameters, has the opposite order.",
      "A critic that knows nothing ends in ties for ever: warm it up ([raro.md](../raro.md#warming-the-critic-up)).",
    ),
    settings="  config.sampling.max_trace_length = 2048  # the whole completion",
    files=("raro_qwen25_countdown.py", "raro_qwen25_deepmath.py", "raro_qwen25_poetry.py"),
  ),
}
