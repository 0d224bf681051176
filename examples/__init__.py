"""Six short scripts to copy from, and the reproductions of papers in examples/papers."""
