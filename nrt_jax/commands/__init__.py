"""The command line: flags -> config -> one call of the library. Only this folder reads flags and prints for users.

Read flags.py first: it lists what each command takes. The module named like a command runs it (`run(args)`).
"""
