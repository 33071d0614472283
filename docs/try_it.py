"""Ask an exported tiny model something, with nothing but plain transformers."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
for prompt in ("Sqhxbe=", "Bqhxbe=", "Rqhxbe="):
    inputs = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    print(tokenizer.decode(answer[0], skip_special_tokens=True))
