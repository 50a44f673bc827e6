"""A PEFT LoRA adapter as a format: configuration, safetensors header, the plan onto a base model's modules, manifest.

Both the registry (before it stores a version) and the worker (before it loads one) read adapters through this package,
so a version that is refused is refused everywhere and for the same reasons. It needs numpy and nothing else: no torch.

Served, as PEFT 0.21 applies it:

    linear layers         LoRA of any rank, rsLoRA, DoRA, lora_bias; rank_pattern and alpha_pattern; names, expressions,
                          all-linear, exclude_modules, layers_to_transform
    embedding and head    LoRA and DoRA on either, lora_bias on the head, ensure_weight_tying; modules_to_save;
                          trainable_token_indices; vocabularies with tokens added or cut, with their tokenizer; tied
                          and untied base models
    norms                 modules_to_save, but those within an attention head
    files                 bfloat16, float16 and float32; PEFT's names, or those of a model's state

Refused, by name:

    a changed base model  init_lora_weights pissa, olora, corda, loftq, lora_ga: PEFT converts such an adapter when it
                          saves it with path_initial_model_for_weight_conversion, and what it then writes is served
    other arithmetic      aLoRA, Arrow, QA-LoRA, KaSA, MonteCLoRA, block-diagonal LoRA, layer_replication, Megatron,
                          target_parameters; trained biases of the base model's own (bias "all" and "lora_only")
    other modules         full training of a linear layer or of a norm within a head; lora_bias on the embedding;
                          modules that the base model lacks, fused ones too
    both at once          LoRA or trained tokens beside a fully trained end; DoRA or a bias beside a resized one
    the unknown           a setting that is not known and says something; a tensor that no setting asks for

Some of it shows only against the base model's own weights and configuration, so the worker alone can tell: two copies
that differ where the model ties its ends, an embedding resized without its untied head, a tokenizer that is none.
"""
