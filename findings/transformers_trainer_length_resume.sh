#!/usr/bin/env bash
# transformers 5.24.0: Trainer with train_sampling_strategy="group_by_length" resumes in another order: examples come twice or never.
#
# Guess, written down before the run: a Trainer that is resumed in the middle of an epoch is not equal to one that went on, for some of its
# options.
# Seen: equal to the bit with the random and the sequential strategy, gradient accumulation, workers, iterable data, bf16, NEFTune and seven
# schedules and optimizers. With group_by_length the order of the second epoch and later ones is another: it is drawn from the global random
# numbers, which are not the first run's at that point. The resumed run then skips as many batches of its order as the first had taken of
# the other one, so in that epoch some examples are trained on twice and others not at all, without a word. In the first epoch a resume is
# exact, which is where one would test it.
# Fails when every example of the interrupted epoch is seen once.
#
#   transformers_trainer_length_resume.sh [VENV]      a virtual environment with transformers 5.24.0, torch 2.15.0, accelerate 1.15.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.15.0 accelerate==1.15.0
fi
HF_HUB_OFFLINE=1 "$venv/bin/python" - "$folder" <<'PYTHON'
import collections
import contextlib
import io
import sys
import warnings

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
print("transformers", transformers.__version__)
EXAMPLES, BATCH = 24, 2
STEPS = EXAMPLES // BATCH  # of an epoch
LENGTHS = torch.randint(4, 12, (EXAMPLES,), generator=torch.Generator().manual_seed(0)).tolist()


def trained(folder, strategy, resume=None):
    """The examples of every step, in order, and the weights at the end."""
    steps = []
    data = [{"input_ids": [1 + index] * length, "index": index} for index, length in enumerate(LENGTHS)]

    def collate(batch):
        steps.append(sorted(example["index"] for example in batch))
        rows = [torch.tensor(example["input_ids"]) for example in batch]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"input_ids": tokens, "labels": tokens}

    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=2, save_steps=STEPS // 2, train_sampling_strategy=strategy,
        remove_unused_columns=False, report_to=[], disable_tqdm=True, use_cpu=True, seed=0)
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(resume_from_checkpoint=resume)
    return steps, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def resumed(strategy, step):
    """How the run resumed after `step` differs from the one that went on."""
    folder = f"{sys.argv[1]}/{strategy}-{step}"
    whole, weights = trained(folder, strategy)
    assert len(whole) == 2 * STEPS
    rest, again = trained(f"{folder}-resumed", strategy, f"{folder}/checkpoint-{step}")
    rest = rest[-(2 * STEPS - step):]  # before them may stand batches that are made and skipped
    epoch = (step // STEPS) * STEPS
    seen = collections.Counter(index for batch in (whole[:step] + rest)[epoch:epoch + STEPS] for index in batch)
    return sum(count > 1 for count in seen.values()), EXAMPLES - len(seen), torch.equal(weights, again)


results = {}
for strategy in ("random", "group_by_length"):
    for step in (STEPS // 2, STEPS + STEPS // 2):
        twice, never, equal = results[strategy, step] = resumed(strategy, step)
        print(f"{strategy}, resumed after step {step} of {2 * STEPS}: of the epoch's {EXAMPLES} examples {twice} come twice, {never} never;"
              f" final weights equal: {equal}")
assert results["random", STEPS // 2] == results["random", STEPS + STEPS // 2] == (0, 0, True)
if results["group_by_length", STEPS + STEPS // 2][:2] == (0, 0):
    sys.exit("CHANGED: every example of the interrupted epoch is seen once")
PYTHON
