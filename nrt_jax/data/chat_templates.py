"""The chat formats of the model families as data of our own: no template code of a tokenizer is ever run."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """The text around each turn. {content} is the turn's text, {trimmed} that stripped, {bos} and {eos} the tokens."""

  user: str
  assistant: str
  system: str | None  # None: the system text goes into a user turn, before a blank line
  system_turn: str = "first"  # which user turn takes it where `system` is None: "first" or "last"
  begin: str = ""  # opens the conversation
  generation: str = ""  # opens the assistant's turn
  end_of_turn: str | None = None  # a stop token beside the tokenizer's own end token
  needs: tuple[str, ...] = ()  # tokens without which the template is not this tokenizer's
  detect: str | None = None  # template "chat" picks the first family whose token the tokenizer holds


CHAT_TEMPLATES = {
  # Llama 3 Instruct. The 3.1 and 3.2 templates differ only by a dated system text of their own, which we never insert.
  "llama3": ChatTemplate(
    begin="{bos}",
    system="<|start_header_id|>system<|end_header_id|>\n\n{trimmed}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{trimmed}<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{trimmed}<|eot_id|>",
    generation="<|start_header_id|>assistant<|end_header_id|>\n\n",
    end_of_turn="<|eot_id|>",
    needs=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    detect="<|start_header_id|>",
  ),
  # Qwen 2, 2.5 and 3. Qwen 2 and 2.5 insert a system text where there is none: put it into prompt.system to match.
  "chatml": ChatTemplate(
    system="<|im_start|>system\n{content}<|im_end|>\n",
    user="<|im_start|>user\n{content}<|im_end|>\n",
    assistant="<|im_start|>assistant\n{content}<|im_end|>\n",
    generation="<|im_start|>assistant\n",
    end_of_turn="<|im_end|>",
    needs=("<|im_start|>", "<|im_end|>"),
    detect="<|im_start|>",
  ),
  # Mistral 7B Instruct v0.3, where [INST] is a token.
  "mistral": ChatTemplate(
    begin="{bos}",
    system=None,
    system_turn="last",
    user="[INST] {content}[/INST]",
    assistant=" {trimmed}{eos}",
    needs=("[INST]", "[/INST]"),
    detect="[INST]",
  ),
  # Mistral 7B Instruct v0.1 and v0.2, where [INST] is plain text: it can't be detected, name it.
  "mistral_v1": ChatTemplate(
    begin="{bos}", system=None, user=" [INST] {content} [/INST]", assistant=" {content}{eos}"
  ),
}
