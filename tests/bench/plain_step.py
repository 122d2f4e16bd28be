"""The peer of first_step.py: one LoRA step as anyone would write it with transformers' Trainer and PEFT.

python tests/bench/plain_step.py MODEL ROWS.jsonl FOLDER      writes FOLDER/trained when the step is done
"""

import json
import sys
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

MODEL, ROWS, FOLDER = sys.argv[1:]

tokenizer = AutoTokenizer.from_pretrained(MODEL)
texts = [json.loads(line)["text"] + tokenizer.eos_token for line in Path(ROWS).read_text().splitlines()]
rows = [tokenizer(text, truncation=True, max_length=128) for text in texts]
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained(MODEL),
    LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"),
)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=FOLDER,
        max_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        learning_rate=2e-4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=42,
    ),
    train_dataset=rows,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
Path(FOLDER).mkdir(parents=True, exist_ok=True)
(Path(FOLDER) / "trained").write_text("1\n")
