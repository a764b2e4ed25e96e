from xenvirtio.memory.raw cimport fence, fill, load_u16, load_u32, store_u16, store_u32, store_u64
