"""From files, hub data sets and tasks to batches of token ids.

Read sources.py, then batches.py: the position (epoch, index) is its whole state. prompts.py, chat_templates.py and
control_tokens.py have the only tokenizer code. Nothing here touches a device.
"""
