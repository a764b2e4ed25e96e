"""What the lab boots, one module each; every `build_*` function returns the cached path, built when missing."""
