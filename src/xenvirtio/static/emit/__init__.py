"""What `xenvirtio static build` writes, each kind of file by a function from the system to text or bytes."""
