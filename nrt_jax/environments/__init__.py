"""Environments that are compiled into the sampling loop: what they are, and the ones that come with the library.

`table.py` names them, `interface.py` says what one is, and docs/environments.md how to write one.
"""
