from xenvirtio.memory.raw cimport fence, load_u32, load_u64, store_u32, store_u64
