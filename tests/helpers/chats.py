"""Chat templates as model families publish them, cut down to what each is known for, and tokenizers that hold them."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nrt_jax.data import prompts

TEXTS = ["How many clips did Natalia sell altogether in April and May?", "She sold 48 + 24 = 72 clips. #### 72"] * 4

# Always a system block, with a date; texts are trimmed. As in Llama 3.1 and 3.2.
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

CHATML = """{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

# A system text of its own where there is none.
QWEN25 = """{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{% endif %}""" + CHATML

# The reasoning of earlier turns is cut off; a turn that is wrapped as a tool's answer is not the last question.
QWEN3 = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}
{%- if m.role == 'user' and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}
{%- set ns.last = loop.index0 %}
{%- endif %}
{%- endfor %}
{%- for m in messages %}{% set content = m.content %}
{%- if m.role == 'assistant' and '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- if loop.index0 > ns.last %}
{%- set content = '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content %}
{%- endif %}
{%- endif %}
{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

# Turns must alternate; the system text goes into the last user's turn. No blank behind [INST], one before an answer.
MISTRAL_V3 = """{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m.role == 'user' and loop.last and system is defined %}{{- '[INST] ' + system + '\\n\\n' + m.content + '[/INST]' }}
{%- elif m.role == 'user' %}{{- '[INST] ' + m.content + '[/INST]' }}
{%- else %}{{- ' ' + m.content | trim + eos_token }}{% endif %}
{%- endfor %}"""

# No blanks at all, and a place for the system text.
MISTRAL_V7 = """{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'system' %}{{- '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}
{%- elif m.role == 'user' %}{{- '[INST]' + m.content + '[/INST]' }}
{%- else %}{{- m.content + eos_token }}{% endif %}
{%- endfor %}"""

# No system text; the assistant has another name.
GEMMA = """{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}"""

# The system text stands in front; reasoning is cut off; the template itself opens the trace.
R1 = """{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'system' %}{{- m.content }}
{%- elif m.role == 'user' %}{{- '<｜User｜>' + m.content }}
{%- else %}{% set content = m.content %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<｜Assistant｜>' + content + '<eos>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\\n' }}{% endif %}"""

PHI3 = """{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{% else %}{{- eos_token }}{% endif %}"""

THINK, TOOL = ("<think>", "</think>"), ("<tool_response>", "</tool_response>")
FAMILIES = {  # name -> (template, special tokens, tokens that are added but not special)
  "llama3": (LLAMA3, ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), ()),
  "chatml": (CHATML, ("<|im_start|>", "<|im_end|>"), ()),
  "qwen25": (QWEN25, ("<|im_start|>", "<|im_end|>"), TOOL),
  "qwen3": (QWEN3, ("<|im_start|>", "<|im_end|>"), THINK + TOOL),
  "mistral_v3": (MISTRAL_V3, ("<s>", "[INST]", "[/INST]"), ()),
  "mistral_v7": (MISTRAL_V7, ("<s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), ()),
  "gemma": (GEMMA, ("<s>", "<start_of_turn>", "<end_of_turn>"), ("\n\n", "  ")),
  "r1": (R1, ("<s>",), ("<｜User｜>", "<｜Assistant｜>", "ö") + THINK),
  "phi3": (PHI3, ("<s>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>"), ()),
}
END_OF_TURN = {
  "llama3": "<|eot_id|>", "chatml": "<|im_end|>", "qwen25": "<|im_end|>", "qwen3": "<|im_end|>", "gemma": "<end_of_turn>",
  "mistral_v3": "<eos>", "mistral_v7": "<eos>", "r1": "<eos>", "phi3": "<|end|>",
}  # fmt: skip
TAKE_NO_SYSTEM = ("gemma",)
KINDS = ("bytes", "metaspace", "prepend")  # how a tokenizer treats blanks


def tokenizer(family: str, kind: str = "bytes"):
  """A tokenizer of `family`, of which `kind` says how pieces merge and where blanks are put in."""
  template, special, added = FAMILIES[family]
  made = prompts.byte_pair_tokenizer(TEXTS, 290) if kind == "bytes" else _sentence_pieces(kind)
  made.add_tokens([AddedToken(text, normalized=False, special=True) for text in special], special_tokens=True)
  made.add_tokens([AddedToken(text, normalized=False, special=False) for text in added])
  if "<s>" in special:
    made.bos_token = "<s>"
  made.chat_template = template
  return made


def _sentence_pieces(kind: str):
  """As converted from SentencePiece: a blank comes before the text (metaspace), or before each piece (prepend)."""
  core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
  if kind == "metaspace":
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
  else:
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
  core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
  alphabet = [*map(chr, range(33, 127)), *"▁\n｜öëü€🙂"]
  trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False)
  core.train_from_iterator(TEXTS, trainer)
  return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


def turn(role, content):
  return {"role": role, "content": content}


CONVERSATIONS = {
  "one": [turn("user", "How many clips?")],
  "blanks": [turn("user", "  How many clips? \n")],
  "braces": [turn("user", "print({bos}, {{ messages }}, {content}, {question}) \\n {% if 1 %}")],
  "turns": [turn("user", "48 + 24?"), turn("assistant", " 72 \n\n "), turn("user", "\nAnd 72 / 2?")],
  "system": [turn("system", "Be brief. "), turn("user", "48 + 24?"), turn("assistant", "72"), turn("user", "72 / 2?")],
  "letters": [turn("user", "Zoë pays €3  für  zwölf\n\n\nclips 🙂.")],
  "alike": [turn("user", "user"), turn("assistant", "assistant"), turn("user", "user")],
}
