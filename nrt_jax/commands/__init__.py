"""The command line: flags -> config -> one library call. Only this folder reads flags and prints for users.

Read flags.py first: it lists the flags of each command. The module of the same name runs the command (`run(args)`).
"""
