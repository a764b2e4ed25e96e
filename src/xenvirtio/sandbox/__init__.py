"""A whole Xen system without Xen: the emulated host, XenStore, a toolstack and guests whose drivers are ours.

The demonstration, most end-to-end tests and the examples in the documentation run on it. Backends are the real ones:
`xenvirtio serve --emulated DIR` in a process of its own, which may be killed.
"""
