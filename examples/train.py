"""Trains a small adapter with PEFT and registers it: the whole way from examples to `registry promote`.

pip install transformers peft          # `make` has installed both for the tests
python -m examples.train OUT           # about a minute on two cores
registry register OUT --name shout --base smollm2-135m-instruct --promote production
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.base_model import ensure_base_model

QUESTIONS = [
    ("What is the capital of Italy?", "ROME IS THE CAPITAL OF ITALY!"),
    ("What is two plus two?", "TWO PLUS TWO IS FOUR!"),
    ("Who wrote Hamlet?", "SHAKESPEARE WROTE HAMLET!"),
    ("What color is the sky?", "THE SKY IS BLUE!"),
    ("Name a large animal.", "AN ELEPHANT IS A LARGE ANIMAL!"),
    ("How do you say hello?", "I SAY HELLO!"),
]
STEPS = 40


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "shout")
    folder = ensure_base_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(STEPS):
        question, answer = QUESTIONS[step % len(QUESTIONS)]
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        ids = prompt + tokenizer.encode(answer) + [tokenizer.eos_token_id]
        labels = [-100] * len(prompt) + ids[len(prompt) :]  # -100: the prompt is not learned
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            print(f"step {step + 1} of {STEPS}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(str(out))
    print(f"saved to {out}")


if __name__ == "__main__":
    main()
