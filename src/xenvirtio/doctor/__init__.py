"""Why is my device not there: checks of everything `xenvirtio serve` needs, each with its way out.

`checks/` judges, a function per check, from a `Machine` to a `Finding`. `machine.py` is what they may look at, so that
a test builds any situation from files and canned answers. Whatever may hang, or touches Xen, happens in a child
process (`probe.py`, started by `runner.py` with a deadline): opening /dev/xen/privcmd before XenStore is there blocks
for ever and takes every other misc device with it.
"""
