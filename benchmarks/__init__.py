"""Measurements: `make bench`, or `make bench-quick` in under three minutes.

Every module that measures is a noun with two functions: `measure(plan)` returns figures as plain
JSON, `tables(figures)` shows them as Markdown. What is measured runs in fresh interpreters
(`child`), in turns with what it is compared to (`rounds`), against a server in a process of its own
(`sink`). `results` collects, `targets` judges, `pages` writes the documentation.
"""
