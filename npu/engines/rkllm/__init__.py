"""The engine of `.rkllm` models: the vendor's library on the NPU."""
