"""The binding of Rockchip's runtime for language models, librkllmrt.so; the only place that knows C by that name."""
