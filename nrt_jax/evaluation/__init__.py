"""Completions of held-out questions, graded for people to read; training never sees these grades.

Read held_out.py first, then summary.py, which makes metrics of completions; sets.py is the table of built-in sets. No
program is compiled here: what generates is passed in.
"""
