"""Faults brought into running commands, and what is left of their results: `make faults`."""
