"""The peer of `generate`: transformers.generate. Takes a job as JSON, answers as JSON."""

import json
import sys
import time

import torch
import transformers


def main():
    """A warm-up of a few tokens, then each set of prompts."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    torch.manual_seed(17)
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    # Without an end every row has all its tokens. Its own defaults would cut the choice to the 50 likeliest words.
    how = dict(max_new_tokens=job["new"], eos_token_id=None, pad_token_id=tokenizer.eos_token_id, top_k=0, top_p=1.0, use_cache=True)
    how |= {"do_sample": True, "temperature": job["temperature"]} if job["temperature"] else {"do_sample": False}
    model.generation_config.eos_token_id = None
    answers = []
    with torch.no_grad():
        for texts in job["sets"]:
            ids = torch.tensor([tokenizer(text).input_ids for text in texts])
            mask = torch.ones_like(ids)
            if job["warm"]:
                model.generate(input_ids=ids, attention_mask=mask, **{**how, "max_new_tokens": 4})
            begin = time.perf_counter()
            out = model.generate(input_ids=ids, attention_mask=mask, **how)
            seconds = time.perf_counter() - begin
            new = out[:, ids.shape[1] :]
            answers.append({"seconds": seconds, "prompt": list(ids.shape), "tokens": new.numel(), "texts": tokenizer.batch_decode(new, skip_special_tokens=True)})
    print(json.dumps(answers))


main()
