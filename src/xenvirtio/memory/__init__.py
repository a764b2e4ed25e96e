"""Reaching guest memory: raw access by address, translation of DMA addresses, batched copies."""
