"""How fast backends are, one beside the other, and what size costs VFR.

load.c         generators and receivers          workloads.py   what is measured, as a table
load.py        two of them in two nodes          run.py         rounds over the backends
stage.py       the lab for it                    scale.py       rules, sessions, domains, bursts, memory
cost.py        the kernel's BPF statistics       figures.py     medians, spreads, ratios: pure
report.py      JSON and Markdown                 plots.py       SVG

Nothing here judges: the report says what was seen, how far it scattered, and what is to be reached.
"""
