"""The engine of GGUF models: llama.cpp on the CPU, in a process of its own."""
