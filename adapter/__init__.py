"""A PEFT LoRA adapter as a format: configuration, safetensors header, the plan onto a base model's modules, manifest.

Both the registry (before it stores a version) and the worker (before it loads one) read adapters through this package,
so a version that is refused is refused everywhere and for the same reasons. It needs numpy and nothing else: no torch.
"""
