"""Ask an exported tiny model something, with nothing but plain transformers.

    python docs/try_it.py FOLDER

FOLDER is a model's, or one of several models, where front.json says which is the best.
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

folder = Path(sys.argv[1])
if (index := folder / "front.json").exists():
    models = json.loads(index.read_text())["models"]
    folder = folder / next(model["folder"] for model in models if model["best"])
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
print(f"{folder}:")
for prompt in ("Sqhxbe=", "Bqhxbe=", "Rqhxbe="):  # sort, back, rot
    inputs = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    print(tokenizer.decode(answer[0], skip_special_tokens=True))
