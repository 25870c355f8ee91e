"""From files, hub data sets and tasks to batches of token ids.

Read batches.py first: the position (epoch, index) is its whole state. prompts.py has the only tokenizer code. Nothing
here touches a device.
"""
