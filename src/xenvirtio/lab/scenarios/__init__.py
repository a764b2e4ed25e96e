"""Stories told on real Xen, one module each; `registry.py` lists them and runs them."""
