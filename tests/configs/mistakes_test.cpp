// Typical mistakes, each with the exact line the user reads. Line numbers are those of `base`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/error.h"

namespace lamina {
namespace {

const std::string base = R"(run:
  name: tiny
model:
  hidden_size: 64
  num_hidden_layers: 4
  residual: block_attnres
  attn_res_block_size: 2
  num_attention_heads: 4
  kv_lora_rank: 16
  qk_nope_head_dim: 8
  v_head_dim: 16
  intermediate_size: 96
data:
  seq_len: 32
  train:
    - path: data/english
      weight: 1.0
  validation: {path: data/english, num_sequences: 8}
train:
  num_steps: 100
  global_batch_size: 8
  micro_batch_size: 2
  optimizer:
    lr: 1e-3
  lr_schedule: {name: wsd, warmup_steps: 10, decay_steps: 20}
)";

std::string message_of(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  try {
    parse_config(yaml, "a.yaml", overrides);
  } catch (const Error& failure) {
    return failure.what();
  }
  return "no error";
}

struct Edit {
  const char* from;  // replaced once in the base; empty: `to` is appended
  const char* to;
  const char* message;
};

const Edit edits[] = {
    // Unknown keys
    {"hidden_size: 64", "hiden_size: 64", "a.yaml:4: model.hiden_size: unknown key, did you mean hidden_size?"},
    {"  num_steps: 100", "  steps: 100", "a.yaml:20: train.steps: unknown key, did you mean num_steps?"},
    {"  num_steps: 100", "  num_step: 100", "a.yaml:20: train.num_step: unknown key, did you mean num_steps?"},
    {"  micro_batch_size: 2", "  microbatch_size: 2",
     "a.yaml:22: train.microbatch_size: unknown key, did you mean micro_batch_size?"},
    {"  micro_batch_size: 2", "  micro_batch_size: 2\n  batch_size: 2",
     "a.yaml:23: train.batch_size: unknown key, did you mean global_batch_size?"},
    {"  hidden_size: 64", "  hidden_size: 64\n  lr: 1e-3",
     "a.yaml:5: model.lr: unknown key, did you mean train.optimizer.lr?"},
    {"    lr: 1e-3", "    lrr: 1e-3", "a.yaml:24: train.optimizer.lrr: unknown key, did you mean lr?"},
    {"    lr: 1e-3", "    lr: 1e-3\n    betas: [0.9, 0.95]",
     "a.yaml:25: train.optimizer.betas: unknown key, did you mean beta1?"},
    {"    lr: 1e-3", "    lr: 1e-3\n    nesterov: true",
     "a.yaml:25: train.optimizer.nesterov: unknown key, expected one of name, lr, weight_decay, momentum, qk_clip, "
     "beta1, beta2, eps, attn_res_lr_factor, groups"},
    {"model:\n", "modle:\n", "a.yaml:3: modle: unknown key, did you mean model?"},
    {"", "optim: {}\n",
     "a.yaml:26: optim: unknown key, expected one of run, model, data, parallel, train, stages, checkpoint, "
     "logging, debug"},
    {"", "optimizer: {lr: 1}\n", "a.yaml:26: optimizer: unknown key, did you mean train.optimizer?"},
    {"", "num_steps: 5\n", "a.yaml:26: num_steps: unknown key, did you mean train.num_steps?"},
    {"      weight: 1.0", "      wieght: 1.0", "a.yaml:17: data.train[0].wieght: unknown key, did you mean weight?"},
    {"num_sequences: 8", "num_sequence: 8",
     "a.yaml:18: data.validation.num_sequence: unknown key, did you mean num_sequences?"},
    {"", "parallel: {tensor: 2}\n",
     "a.yaml:26: parallel.tensor: unknown key, expected one of pipeline, virtual_stages, data, expert, "
     "schedule, block_transport, gpu_transport, split, timeout_seconds"},
    // Wrong types
    {"hidden_size: 64", "hidden_size: abc", "a.yaml:4: model.hidden_size: found 'abc', expected an integer"},
    {"hidden_size: 64", "hidden_size: 64.5", "a.yaml:4: model.hidden_size: found '64.5', expected an integer"},
    {"hidden_size: 64", "hidden_size: 1.5", "a.yaml:4: model.hidden_size: found '1.5', expected an integer"},
    {"hidden_size: 64", "hidden_size: 1_000", "a.yaml:4: model.hidden_size: found '1_000', expected an integer"},
    {"hidden_size: 64", "hidden_size: 1e-3", "a.yaml:4: model.hidden_size: found '1e-3', expected an integer"},
    {"hidden_size: 64", "hidden_size: 1e16", "a.yaml:4: model.hidden_size: found '1e16', expected an integer"},
    {"hidden_size: 64", "hidden_size: inf", "a.yaml:4: model.hidden_size: found 'inf', expected an integer"},
    {"hidden_size: 64", "hidden_size: 0x40", "a.yaml:4: model.hidden_size: found '0x40', expected an integer"},
    {"hidden_size: 64", "hidden_size: 64k", "a.yaml:4: model.hidden_size: found '64k', expected an integer"},
    {"hidden_size: 64", "hidden_size: \"64\"",
     "a.yaml:4: model.hidden_size: found the text \"64\", expected an integer"},
    {"hidden_size: 64", "hidden_size: [64]", "a.yaml:4: model.hidden_size: found a list, expected an integer"},
    {"hidden_size: 64", "hidden_size: {a: 1}", "a.yaml:4: model.hidden_size: found a section, expected an integer"},
    {"hidden_size: 64", "hidden_size:", "a.yaml:4: model.hidden_size: found nothing, expected an integer"},
    {"hidden_size: 64", "hidden_size: true", "a.yaml:4: model.hidden_size: found 'true', expected an integer"},
    {"lr: 1e-3", "lr: fast", "a.yaml:24: train.optimizer.lr: found 'fast', expected a number"},
    {"lr: 1e-3", "lr: 1e-3x", "a.yaml:24: train.optimizer.lr: found '1e-3x', expected a number"},
    {"lr: 1e-3", "lr: 1,5", "a.yaml:24: train.optimizer.lr: found '1,5', expected a number"},
    {"lr: 1e-3", "lr: .nan", "a.yaml:24: train.optimizer.lr: found '.nan', expected a number"},
    {"lr: 1e-3", "lr: inf", "a.yaml:24: train.optimizer.lr: found 'inf', expected a number"},
    {"lr: 1e-3", "lr: 1e999", "a.yaml:24: train.optimizer.lr: found 1e999, expected a number that fits a double"},
    {"hidden_size: 64", "hidden_size: 64\n  tie_word_embeddings: yes",
     "a.yaml:5: model.tie_word_embeddings: found 'yes', expected true or false"},
    {"hidden_size: 64", "hidden_size: 64\n  tie_word_embeddings: 1",
     "a.yaml:5: model.tie_word_embeddings: found '1', expected true or false"},
    {"name: tiny", "name: [tiny]", "a.yaml:2: run.name: found a list, expected a text"},
    {"name: tiny", "name:", "a.yaml:2: run.name: found nothing, expected a text (\"\" is the empty one)"},
    {"  name: tiny", "  seed: -1", "a.yaml:2: run.seed: found -1, expected at least 0"},
    {"  name: tiny", "  seed: 18446744073709551616",
     "a.yaml:2: run.seed: found 18446744073709551616, expected at most 18446744073709551615"},
    {"  name: tiny", "  num_threads: 3000000000",
     "a.yaml:2: run.num_threads: found 3000000000, expected at most 2147483647"},
    {"run:\n  name: tiny", "run: tiny", "a.yaml:1: run: found 'tiny', expected a section of key: value lines"},
    {"run:\n  name: tiny", "run: [tiny]", "a.yaml:1: run: found a list, expected a section of key: value lines"},
    {"    - path: data/english\n      weight: 1.0", "    path: data/english",
     "a.yaml:15: data.train: found a section, expected a list with at least one item"},
    {"\n    - path: data/english\n      weight: 1.0", " data/english",
     "a.yaml:15: data.train: found 'data/english', expected a list with at least one item"},
    {"\n    - path: data/english\n      weight: 1.0", " [data/english]",
     "a.yaml:15: data.train[0]: found 'data/english', expected a section of key: value lines"},
    {"\n    - path: data/english\n      weight: 1.0", " []",
     "a.yaml:15: data.train: found an empty list, expected a list with at least one item"},
    // Out of range
    {"hidden_size: 64", "hidden_size: 0", "a.yaml:4: model.hidden_size: found 0, expected at least 1"},
    {"hidden_size: 64", "hidden_size: -64", "a.yaml:4: model.hidden_size: found -64, expected at least 1"},
    {"hidden_size: 64", "hidden_size: 99999999999999999999",
     "a.yaml:4: model.hidden_size: found 99999999999999999999, expected at most 9223372036854775807"},
    {"hidden_size: 64", "hidden_size: 64\n  vocab_size: -1",
     "a.yaml:5: model.vocab_size: found -1, expected at least 0"},
    {"hidden_size: 64", "hidden_size: 64\n  rms_norm_eps: 0",
     "a.yaml:5: model.rms_norm_eps: found 0, expected above 0"},
    {"hidden_size: 64", "hidden_size: 64\n  q_lora_rank: 0",
     "a.yaml:5: model.q_lora_rank: found 0, expected at least 1"},
    {"attn_res_block_size: 2", "attn_res_block_size: 0",
     "a.yaml:7: model.attn_res_block_size: found 0, expected at least 1"},
    {"lr: 1e-3", "lr: 0", "a.yaml:24: train.optimizer.lr: found 0, expected above 0"},
    {"lr: 1e-3", "lr: 1e-3\n    beta1: 1.0",
     "a.yaml:25: train.optimizer.beta1: found 1.0, expected at least 0 and below 1"},
    {"lr: 1e-3", "lr: 1e-3\n    beta2: -0.1",
     "a.yaml:25: train.optimizer.beta2: found -0.1, expected at least 0 and below 1"},
    {"decay_steps: 20", "decay_steps: 20, min_lr_ratio: 1.5",
     "a.yaml:25: train.lr_schedule.min_lr_ratio: found 1.5, expected at least 0 and at most 1"},
    {"weight: 1.0", "weight: 0",
     "a.yaml:17: data.train[0].weight: found 0, expected above 0, here or in the weights of one of `stages`"},
    {"", "logging: {interval: 0}\n", "a.yaml:26: logging.interval: found 0, expected at least 1"},
    {"", "checkpoint: {keep: -1}\n", "a.yaml:26: checkpoint.keep: found -1, expected at least 0"},
    {"", "checkpoint: {minutes: -0.5}\n", "a.yaml:26: checkpoint.minutes: found -0.5, expected at least 0"},
    {"", "checkpoint: {minutes: half}\n", "a.yaml:26: checkpoint.minutes: found 'half', expected a number"},
    // Names of a closed list
    {"residual: block_attnres", "residual: block_attnress",
     "a.yaml:6: model.residual: found 'block_attnress', expected one of standard, full_attnres, block_attnres, mhc; "
     "did you mean block_attnres?"},
    {"residual: block_attnres", "residual: hyper",
     "a.yaml:6: model.residual: found 'hyper', expected one of standard, full_attnres, block_attnres, mhc"},
    {"  num_steps: 100", "  precision: fp16\n  num_steps: 100",
     "a.yaml:20: train.precision: found 'fp16', expected one of fp32, bf16, fp64"},
    {"  num_steps: 100", "  precision: [bf16]\n  num_steps: 100",
     "a.yaml:20: train.precision: found a list, expected one of fp32, bf16, fp64"},
    {"lr: 1e-3", "lr: 1e-3\n    name: sgd",
     "a.yaml:25: train.optimizer.name: found 'sgd', expected one of adamw, muon"},
    {"  name: tiny", "  device: gpu", "a.yaml:2: run.device: found 'gpu', expected cpu or cuda"},
    // Missing
    {"  hidden_size: 64\n", "", "a.yaml:3: model.hidden_size: required key is missing, expected an integer at least 1"},
    {"    lr: 1e-3\n", "    name: adamw\n",
     "a.yaml:23: train.optimizer.lr: required key is missing, expected a number above 0"},
    {"  optimizer:\n    lr: 1e-3\n", "",
     "a.yaml:19: train.optimizer.lr: required key is missing, expected a number above 0"},
    {"path: data/english\n      weight: 1.0", "weight: 1.0",
     "a.yaml:16: data.train[0].path: required key is missing, expected a text"},
    {"  train:\n    - path: data/english\n      weight: 1.0\n", "",
     "a.yaml:13: data.train: required key is missing, expected a list"},
    // YAML itself
    {"  hidden_size: 64", "  hidden_size: 64\n  hidden_size: 65",
     "a.yaml:5: hidden_size: duplicate key, first on line 4"},
    {"", "model: {}\n", "a.yaml:26: model: duplicate key, first on line 3"},
    {"name: tiny", "name: [tiny", "a.yaml:3: YAML syntax: end of sequence flow not found"},
    {"  hidden_size: 64", "\thidden_size: 64", "a.yaml:4: YAML syntax: illegal map value"},
    {"", "---\nrun: {}\n", "a.yaml: found 2 YAML documents, expected one"},
    {"name: tiny", "[1, 2]: tiny", "a.yaml:2: found a key that is not a name"},
    {"run:\n  name: tiny", "run: &self {name: *self}",
     "a.yaml:1: found more than 32 levels, expected sections and keys"},
    {"  residual: block_attnres\n  attn_res_block_size: 2", "  residual: block\n    attn_res",
     "a.yaml:6: model.residual: found 'block attn_res', expected one of standard, full_attnres, block_attnres, mhc; "
     "did you mean block_attnres?"},
    {"    lr: 1e-3\n", "    ? |\n      a\n      b\n    : 1\n",
     "a.yaml:24: train.optimizer.a b : unknown key, expected one of name, lr, weight_decay, momentum, qk_clip, beta1, "
     "beta2, eps, attn_res_lr_factor, groups"},
    // Keys that do not go together
    {"residual: block_attnres\n  attn_res_block_size: 2", "residual: standard\n  attn_res_block_size: 3",
     "a.yaml:7: model.attn_res_block_size has no effect with model.residual: standard; remove it "
     "(model.attn_res_block_size=null on the command line)"},
    {"residual: block_attnres\n  attn_res_block_size: 2", "residual: full_attnres\n  attn_res_block_size: 3",
     "a.yaml:7: model.attn_res_block_size has no effect with model.residual: full_attnres; remove it "
     "(model.attn_res_block_size=null on the command line)"},
    {"name: wsd", "name: cosine",
     "a.yaml:25: train.lr_schedule.decay_steps has no effect with train.lr_schedule.name: cosine; remove it "
     "(train.lr_schedule.decay_steps=null on the command line)"},
    {"name: wsd, warmup_steps: 10, decay_steps: 20", "name: constant, min_lr_ratio: 0.5",
     "a.yaml:25: train.lr_schedule.min_lr_ratio has no effect with train.lr_schedule.name: constant; remove it "
     "(train.lr_schedule.min_lr_ratio=null on the command line)"},
    {"path: data/english, num_sequences", "num_sequences",
     "a.yaml:18: data.validation.num_sequences has no effect without data.validation.path; remove it "
     "(data.validation.num_sequences=null on the command line)"},
    {"", "debug: {dump_path: x.h5}\n",
     "a.yaml:26: debug.dump_path has no effect with debug.dump_step: 0; remove it (debug.dump_path=null on the command "
     "line)"},
    {"global_batch_size: 8", "global_batch_size: 7",
     "a.yaml:21: train.global_batch_size: found 7, expected a multiple of train.micro_batch_size (2)"},
    {"", "debug: {dump_step: 101}\n", "a.yaml:26: debug.dump_step: found 101, expected at most train.num_steps (100)"},
    {"", "logging: {trace_steps: [100, 101]}\n",
     "a.yaml:26: logging.trace_steps: found 101, expected at most train.num_steps (100)"},
    {"      weight: 1.0", "    - path: data/english",
     "a.yaml:17: data.train[1].path: found 'data/english' a second time, expected each source once; its weight is its "
     "share"},
    {"    - path: data/english", "    - path: \"\"",
     "a.yaml:16: data.train[0].path: found an empty text, expected a folder"},
    {"name: tiny", "name: \"\"",
     "a.yaml:2: run.name: found '', expected a name that can be a folder's (not empty, no '/')"},
    {"name: tiny", "name: a/b",
     "a.yaml:2: run.name: found 'a/b', expected a name that can be a folder's (not empty, no '/')"},
};

TEST(Mistakes, TheBaseIsRight) {
  EXPECT_EQ(message_of(base), "no error");
}

TEST(Mistakes, EachHasItsLine) {
  for (const Edit& edit : edits) {
    std::string yaml = base;
    const std::string from = edit.from;
    if (from.empty()) {
      yaml += edit.to;
    } else {
      const size_t at = yaml.find(from);
      ASSERT_NE(at, std::string::npos) << from;
      yaml.replace(at, from.size(), edit.to);
    }
    EXPECT_EQ(message_of(yaml), edit.message);
  }
  EXPECT_GE(std::size(edits), 50u);
}

struct Override {
  const char* text;
  const char* message;
};

const Override wrong_overrides[] = {
    {"model.mixers=mla",
     "command line: model.mixers=mla: model.mixers: found 'mla', expected a list with at least one item"},
    {"model.mixers=[mla, kdda]",
     "command line: model.mixers=[mla, kdda]: model.mixers[1]: found 'kdda', expected one of mla, kda; did you mean "
     "kda?"},
    {"model.mixers=[kda]",
     "a.yaml:8: model.num_attention_heads has no effect without mla in model.mixers; remove it "
     "(model.num_attention_heads=null on the command line)"},
    {"model.mixers=[mla, mla, mla, mla, mla]",
     "command line: model.mixers=[mla, mla, mla, mla, mla]: model.mixers: found 5 entries, expected at most "
     "model.num_hidden_layers (4)"},
    {"model.mixers=[mla, kda]",
     "a.yaml:3: model.linear_num_heads: required key is missing with kda in model.mixers, expected an integer at least "
     "1"},
    {"model.linear_head_dim=64",
     "command line: model.linear_head_dim=64: model.linear_head_dim has no effect without kda in model.mixers; remove "
     "it "
     "(model.linear_head_dim=null on the command line)"},
    {"model.intermediate_size=null",
     "a.yaml:3: model.intermediate_size: required key is missing for the dense MLP, expected an integer at least 1"},
    {"model.num_shared_experts=2",
     "command line: model.num_shared_experts=2: model.num_shared_experts has no effect with model.num_experts: 0; "
     "remove it (model.num_shared_experts=null on the command line)"},
    {"parallel={expert: 2}",
     "command line: parallel={expert: 2}: parallel.expert has no effect with model.num_experts: 0; remove it "
     "(parallel.expert=null on the command line)"},
    {"model.num_experts=8",
     "a.yaml:3: model.num_experts_per_token: required key is missing with model.num_experts, expected an integer at "
     "least 1"},
    {"parallel={pipeline: 0}", "command line: parallel={pipeline: 0}: parallel.pipeline: found 0, expected at least 1"},
    {"parallel={virtual_stages: 0}",
     "command line: parallel={virtual_stages: 0}: parallel.virtual_stages: found 0, expected at least 1"},
    {"parallel={schedule: 1f1}",
     "command line: parallel={schedule: 1f1}: parallel.schedule: found '1f1', expected one of gpipe, 1f1b, "
     "interleaved_1f1b, zero_bubble; did you mean 1f1b?"},
    {"parallel={schedule: 1f1b, virtual_stages: 2}",
     "command line: parallel={schedule: 1f1b, virtual_stages: 2}: parallel.schedule: found 1f1b with "
     "parallel.virtual_stages: 2, expected interleaved_1f1b: 1f1b has one chunk per rank"},
    {"parallel={pipeline: 7}",
     "command line: parallel={pipeline: 7}: parallel.pipeline: found 7 x virtual_stages (1) = 7 chunks, expected at "
     "most 6: each of the 4 layers one chunk, and one for the embedding and one for the head"},
    {"parallel={pipeline: 2147483647, virtual_stages: 2147483647}",
     "command line: parallel={pipeline: 2147483647, virtual_stages: 2147483647}: parallel.pipeline: found 2147483647 x "
     "virtual_stages (2147483647) = 4611686014132420609 chunks, expected at most 6: each of the 4 layers one chunk, "
     "and "
     "one for the embedding and one for the head"},
    {"parallel={split: even}",
     "command line: parallel={split: even}: parallel.split: found 'even', expected auto or a list with at least one "
     "item"},
    {"parallel.split=[]",
     "command line: parallel.split=[]: parallel.split: found an empty list, expected auto or a list with at least one "
     "item"},
    {"parallel.split=[4, x]", "command line: parallel.split=[4, x]: parallel.split[1]: found 'x', expected an integer"},
    {"parallel.split=[5, -1]",
     "command line: parallel.split=[5, -1]: parallel.split[1]: found -1, expected at least 0"},
    {"parallel.split=[4, 0]",
     "command line: parallel.split=[4, 0]: parallel.split: found 2 entries, expected 1 = parallel.pipeline (1) x "
     "parallel.virtual_stages (1)"},
    {"parallel={pipeline: 2, split: [4]}",
     "command line: parallel={pipeline: 2, split: [4]}: parallel.split: found 1 entry, expected 2 = parallel.pipeline "
     "(2) x parallel.virtual_stages (1)"},
    {"parallel={pipeline: 2, split: [2, 1]}",
     "command line: parallel={pipeline: 2, split: [2, 1]}: parallel.split: found entries that add up to 3, expected "
     "model.num_hidden_layers (4)"},
    {"parallel={pipeline: 2, split: [2, 3]}",
     "command line: parallel={pipeline: 2, split: [2, 3]}: parallel.split[1]: found 3, expected at most 2: the chunks "
     "share model.num_hidden_layers (4)"},
    {"parallel={pipeline: 3, split: [2, 0, 2]}",
     "command line: parallel={pipeline: 3, split: [2, 0, 2]}: parallel.split[1]: found 0, expected at least 1: only "
     "the "
     "first and the last chunk may have no layers"},
    {"train.optimizer.name=moun",
     "command line: train.optimizer.name=moun: train.optimizer.name: found 'moun', expected one of adamw, muon; did "
     "you mean muon?"},
    {"train.optimizer={name: muon, lr: 1e-3, momentum: 1}",
     "command line: train.optimizer={name: muon, lr: 1e-3, momentum: 1}: train.optimizer.momentum: found 1, expected "
     "at least 0 and below 1"},
    {"train.optimizer={name: muon, lr: 1e-3, qk_clip: -1}",
     "command line: train.optimizer={name: muon, lr: 1e-3, qk_clip: -1}: train.optimizer.qk_clip: found -1, expected "
     "at least 0"},
    {"train.router_bias_rate=-1",
     "command line: train.router_bias_rate=-1: train.router_bias_rate: found -1, expected at least 0"},
    {"data.document_mask=2",
     "command line: data.document_mask=2: data.document_mask: found '2', expected true or false"},
    {"logging={peak_gflops: -1}",
     "command line: logging={peak_gflops: -1}: logging.peak_gflops: found -1, expected at least 0"},
    {"train.num_steps",
     "command line: train.num_steps: found no key.path=value, expected one like train.num_steps=100"},
    {"=5", "command line: =5: found no key.path=value, expected one like train.num_steps=100"},
    {"train..num_steps=5",
     "command line: train..num_steps=5: found no key.path=value, expected one like train.num_steps=100"},
    {"train.num_steps=abc", "command line: train.num_steps=abc: train.num_steps: found 'abc', expected an integer"},
    {"train.num_stepz=5", "command line: train.num_stepz=5: train.num_stepz: unknown key, did you mean num_steps?"},
    {"num_steps=5", "command line: num_steps=5: num_steps: unknown key, did you mean train.num_steps?"},
    {"train.num_steps.x=5",
     "command line: train.num_steps.x=5: train.num_steps is '100', expected a section to set x in"},
    {"train.num_steps=[", "command line: train.num_steps=[: YAML syntax: end of sequence flow not found"},
    {"train=5", "command line: train=5: train: found '5', expected a section of key: value lines"},
    {"data.train=data/x",
     "command line: data.train=data/x: data.train: found 'data/x', expected a list with at least one item"},
    {"data.train=[{path: a, path: b}]", "command line: data.train=[{path: a, path: b}]: path: duplicate key"},
    {"data.train.1.weight=2",
     "command line: data.train.1.weight=2: data.train is a list of 1; found '1', expected an index from 0 to 0"},
    {"data.train.x.weight=2",
     "command line: data.train.x.weight=2: data.train is a list of 1; found 'x', expected an index from 0 to 0"},
    {"data.train.0.weight=-1",
     "command line: data.train.0.weight=-1: data.train[0].weight: found -1, expected at least 0"},
    {"train.global_batch_size=9",
     "command line: train.global_batch_size=9: train.global_batch_size: found 9, expected a multiple of "
     "train.micro_batch_size (2)"},
    {"train.num_steps=", "a.yaml:19: train.num_steps: required key is missing, expected an integer at least 1"},
};

// What is no mistake: a key at its default where it has no effect, as generated files have it; whole numbers in any form; a schedule that
// is longer than the run, which is made shorter and told.
TEST(Mistakes, HarmlessOnesAreNone) {
  for (const char* text :
       {"parallel.expert=1", "model.residual=standard", "model.short_conv_kernel_size=4", "parallel.gpu_transport=auto",
        "train.router_bias_rate=0.001", "debug.dump_path=", "data.document_mask=false"})
    EXPECT_EQ(message_of(base, {text}), "no error") << text;
  for (const auto& [text, steps] : {std::pair{"1e3", 1000}, {"64.0", 64}, {"2.5e2", 250}, {"+1e2", 100}})
    EXPECT_EQ(
        parse_config(base, "a.yaml", std::vector<std::string>{fmt::format("train.num_steps={}", text)}).train.num_steps,
        steps);

  const Config whole = parse_config(base, "a.yaml", std::vector<std::string>{"train.num_steps=30"});
  EXPECT_TRUE(whole.notes.empty());
  EXPECT_EQ(whole.train.lr_schedule.decay_steps, 20);
  const Config shorter = parse_config(base, "a.yaml", std::vector<std::string>{"train.num_steps=25"});
  ASSERT_EQ(shorter.notes.size(), 1u);
  EXPECT_EQ(
      shorter.notes[0],
      "train.lr_schedule does not fit into train.num_steps (25): warmup_steps 8 (for 10) and decay_steps 16 (for 20)");
  EXPECT_EQ(shorter.train.lr_schedule.warmup_steps, 8);
  EXPECT_EQ(shorter.train.lr_schedule.decay_steps, 16);
  EXPECT_TRUE(parse_config(to_yaml(shorter), "again.yaml").notes.empty());
  const Config cosine = parse_config(
      base, "a.yaml", std::vector<std::string>{"train.lr_schedule={name: cosine, warmup_steps: 9223372036854775807}"});
  EXPECT_EQ(cosine.train.lr_schedule.warmup_steps, 100);
  EXPECT_EQ(cosine.notes.size(), 1u);
}

TEST(Mistakes, OverridesNameTheCommandLine) {
  for (const Override& wrong : wrong_overrides) EXPECT_EQ(message_of(base, {wrong.text}), wrong.message);
}

TEST(Mistakes, AFileWithoutASectionNamesTheFirstMissingKey) {
  EXPECT_EQ(message_of(""), "a.yaml: model.hidden_size: required key is missing, expected an integer at least 1");
  EXPECT_EQ(message_of("# nothing\n"),
            "a.yaml: model.hidden_size: required key is missing, expected an integer at least 1");
  EXPECT_EQ(message_of("hello"), "a.yaml:1: found 'hello', expected a section of key: value lines");
}

TEST(Mistakes, FilesThatCantBeRead) {
  const auto message = [](const std::string& path) -> std::string {
    try {
      load_config(path);
    } catch (const Error& failure) {
      return failure.what();
    }
    return "no error";
  };
  EXPECT_EQ(message("no/such.yaml"), "no/such.yaml: can't open the configuration: No such file or directory");
  EXPECT_EQ(message("."), ".: found a folder, expected a configuration file");
}

TEST(Mistakes, TheProductRuleHasEveryFactor) {
  const auto message = [](int64_t global, int64_t micro, int data, int world_size, int pipeline = 1) -> std::string {
    Config config;
    config.train.global_batch_size = global;
    config.train.micro_batch_size = micro;
    config.parallel.data = data;
    config.parallel.pipeline = pipeline;
    try {
      return std::to_string(resolve_data_parallel(config, world_size));
    } catch (const Error& failure) {
      return failure.what();
    }
  };
  EXPECT_EQ(message(24, 2, 0, 1), "1");
  EXPECT_EQ(message(24, 2, 0, 4), "4");
  EXPECT_EQ(message(24, 2, 4, 4), "4");
  EXPECT_EQ(message(24, 2, 0, 8, 2), "4");
  EXPECT_EQ(message(24, 2, 4, 8, 2), "4");
  EXPECT_EQ(message(24, 2, 0, 4, 4), "1");
  EXPECT_EQ(
      message(24, 2, 2, 4),
      "parallel.data: found 2, expected 4: the number of ranks (4) = pipeline (1) x data (2); 0 means all ranks / "
      "pipeline");
  EXPECT_EQ(
      message(24, 2, 4, 4, 2),
      "parallel.data: found 4, expected 2: the number of ranks (4) = pipeline (2) x data (4); 0 means all ranks / "
      "pipeline");
  EXPECT_EQ(
      message(24, 2, 0, 8, 3),
      "parallel.pipeline: found 3 with 8 ranks, expected a divisor of the number of ranks: ranks = pipeline (3) x "
      "data; of the numbers of ranks the nearest are 6 and 9");
  EXPECT_EQ(message(24, 2, 0, 1, 2),
            "parallel.pipeline: found 2 with 1 rank, expected a divisor of the number of ranks: ranks = pipeline (2) x "
            "data; of the numbers of ranks the nearest is 2");
  EXPECT_EQ(message(24, 2, 0, 5),
            "train.global_batch_size: found 24, expected a multiple of 10: global_batch_size = micro_batch_size (2) x "
            "data (5) x num_microbatches; the nearest are 20 and 30");
  EXPECT_EQ(message(24, 2, 0, 10, 2),
            "train.global_batch_size: found 24, expected a multiple of 10: global_batch_size = micro_batch_size (2) x "
            "data (5) x num_microbatches; the nearest are 20 and 30");
  {
    Config config;
    config.train.global_batch_size = 24;
    config.train.micro_batch_size = 2;
    config.parallel.pipeline = 2;
    config.parallel.expert = 4;
    EXPECT_EQ(resolve_data_parallel(config, 8), 4);
    try {
      resolve_data_parallel(config, 12);
      ADD_FAILURE() << "no error";
    } catch (const Error& failure) {
      EXPECT_STREQ(failure.what(),
                   "parallel.expert: found 4, expected a divisor of the data-parallel ranks (6 = 12 ranks / pipeline "
                   "(2))");
    }
  }
  EXPECT_EQ(message(24, 2, 0, 16),
            "train.global_batch_size: found 24, expected a multiple of 32: global_batch_size = micro_batch_size (2) x "
            "data (16) x num_microbatches; the nearest is 32");
}

TEST(Mistakes, ExpertsFitTogether) {
  const std::vector<std::string> experts = {"model.num_experts=8", "model.num_experts_per_token=2",
                                            "model.moe_intermediate_size=16"};
  const auto message = [&](const std::string& more) {
    std::vector<std::string> overrides = experts;
    overrides.push_back(more);
    return message_of(base, overrides);
  };
  EXPECT_EQ(message("model.num_shared_experts=0"), "no error");
  EXPECT_EQ(message("model.num_experts_per_token=9"),
            "command line: model.num_experts_per_token=9: model.num_experts_per_token: found 9, expected at most "
            "model.num_experts (8)");
  EXPECT_EQ(message("model.first_k_dense_replace=4"),
            "command line: model.first_k_dense_replace=4: model.first_k_dense_replace: found 4, expected below "
            "model.num_hidden_layers (4); model.num_experts: 0 makes every layer dense");
  EXPECT_EQ(message("model.first_k_dense_replace=0"),
            "a.yaml:12: model.intermediate_size has no effect with model.first_k_dense_replace: 0; remove it "
            "(model.intermediate_size=null on the command line)");
  EXPECT_EQ(
      message("parallel={expert: 3}"),
      "command line: parallel={expert: 3}: parallel.expert: found 3, expected a divisor of model.num_experts (8)");
  EXPECT_EQ(message("model.gate_lower_bound=0"),
            "command line: model.gate_lower_bound=0: model.gate_lower_bound: found 0, expected below 0");
}

// Keys of Muon without Muon, and of experts without experts, would be ignored.
TEST(Mistakes, KeysOfMuonAndOfExpertsNeedThem) {
  for (const char* key : {"momentum", "qk_clip"}) {
    const std::string path = fmt::format("train.optimizer.{}", key), given = path + "=0.5";
    EXPECT_EQ(message_of(base, {given}),
              fmt::format("command line: {}: {} has no effect with train.optimizer.name: adamw; remove it ({}=null on "
                          "the command line)",
                          given, path, path));
    EXPECT_EQ(message_of(base, {"train.optimizer.name=muon", given}), "no error");
  }
  EXPECT_EQ(message_of(base, {"train.router_bias_rate=0"}),
            "command line: train.router_bias_rate=0: train.router_bias_rate has no effect with model.num_experts: 0; "
            "remove it (train.router_bias_rate=null on the command line)");
  EXPECT_EQ(message_of(base, {"model.num_experts=8", "model.num_experts_per_token=2", "model.moe_intermediate_size=16",
                              "train.router_bias_rate=0"}),
            "no error");
}

TEST(Mistakes, OfGroupsOfTheOptimizer) {
  const auto message = [](const std::string& group) {
    return message_of(base, {"train.optimizer.groups=[" + group + "]"});
  };
  const std::string line = "command line: train.optimizer.groups=[";
  EXPECT_EQ(message("{pattern: '*', lr_factor: 0.5}"), "no error");
  EXPECT_EQ(
      message("{pattern: '*'}"),
      line +
          "{pattern: '*'}]: train.optimizer.groups[0]: found a pattern only, expected an lr_factor, a weight_decay "
          "or a rule");
  EXPECT_EQ(
      message("{pattern: '', lr_factor: 1}"),
      line +
          "{pattern: '', lr_factor: 1}]: train.optimizer.groups[0].pattern: found an empty text, expected a pattern "
          "of tensor names");
  EXPECT_EQ(message("{lr_factor: 1}"),
            line + "{lr_factor: 1}]: train.optimizer.groups[0].pattern: required key is missing, expected a text");
  EXPECT_EQ(
      message("{pattern: a, speed: 1}"),
      line +
          "{pattern: a, speed: 1}]: train.optimizer.groups[0].speed: unknown key, expected one of pattern, lr_factor, "
          "weight_decay, rule");
  EXPECT_EQ(message("{pattern: a, lr_factor: -1}"),
            line + "{pattern: a, lr_factor: -1}]: train.optimizer.groups[0].lr_factor: found -1, expected at least 0");
  EXPECT_EQ(
      message("{pattern: a, rule: sgd}"),
      line + "{pattern: a, rule: sgd}]: train.optimizer.groups[0].rule: found 'sgd', expected one of adamw, muon");
  EXPECT_EQ(
      message_of(base, {"model.residual=standard", "model.attn_res_block_size=null",
                        "train.optimizer.attn_res_lr_factor=0.1"}),
      "command line: train.optimizer.attn_res_lr_factor=0.1: train.optimizer.attn_res_lr_factor has no effect with "
      "model.residual: standard; remove it (train.optimizer.attn_res_lr_factor=null on the command line)");
  // A group's Muon has a momentum; QK-Clip belongs to Muon for all.
  const std::string muon = "train.optimizer.groups=[{pattern: '*.o_proj.weight', rule: muon}]";
  EXPECT_EQ(message_of(base, {muon, "train.optimizer.momentum=0.5"}), "no error");
  EXPECT_NE(message_of(base, {muon, "train.optimizer.qk_clip=0.5"}), "no error");
}

TEST(Mistakes, OfHyperConnections) {
  const auto message = [](const std::string& key, const std::string& value) {
    return message_of(base, {"model.attn_res_block_size=null", "model.residual=mhc", key + "=" + value});
  };
  EXPECT_EQ(message("model.num_residual_streams", "2"), "no error");
  EXPECT_EQ(
      message("model.num_residual_streams", "1"),
      "command line: model.num_residual_streams=1: model.num_residual_streams: found 1, expected at least 2 and at "
      "most 4");
  EXPECT_THAT(message("model.num_residual_streams", "5"),
              testing::HasSubstr("found 5, expected at least 2 and at most 4"));
  for (const auto& [key, value] : {std::pair{"model.attn_res_block_size", "3"},
                                   {"parallel.block_transport", "full"},
                                   {"train.optimizer.attn_res_lr_factor", "0.5"}})
    EXPECT_EQ(
        message(key, value),
        fmt::format("command line: {0}={1}: {0} has no effect with model.residual: mhc; remove it ({0}=null on the "
                    "command line)",
                    key, value));
  EXPECT_EQ(message("run.device", "cuda"),
            "command line: model.residual=mhc: model.residual: found mhc with run.device: cuda, expected standard, "
            "full_attnres or block_attnres; mhc runs on the CPU (run.device: cpu)");
  EXPECT_EQ(message_of(base, {"model.num_residual_streams=3"}),
            "command line: model.num_residual_streams=3: model.num_residual_streams has no effect with model.residual: "
            "block_attnres; remove it (model.num_residual_streams=null on the command line)");
}

TEST(Mistakes, TransportOfBlocksNeedsBlocks) {
  EXPECT_EQ(message_of(base + "parallel:\n  block_transport: full\n",
                       {"model.attn_res_block_size=null", "model.residual=standard"}),
            "a.yaml:27: parallel.block_transport has no effect with model.residual: standard; remove it "
            "(parallel.block_transport=null on the command line)");
}

TEST(Mistakes, OfBf16Products) {
  EXPECT_EQ(message_of(base, {"train.bf16_products=native"}), "no error");
  EXPECT_EQ(message_of(base, {"train.bf16_products=auto", "train.precision=fp32"}), "no error");
  EXPECT_EQ(message_of(base, {"train.bf16_products=bf16"}),
            "command line: train.bf16_products=bf16: train.bf16_products: found 'bf16', expected one of auto, native, "
            "fp32");
  const std::string only =
      "command line: train.bf16_products=fp32: train.bf16_products: found a choice, expected auto: only runs with "
      "train.precision: bf16 and run.device: cpu have one";
  EXPECT_EQ(message_of(base, {"train.bf16_products=fp32", "train.precision=fp32"}), only);
  EXPECT_EQ(message_of(base, {"train.bf16_products=fp32", "run.device=cuda"}), only);
}

// A configuration for GPUs is right or wrong on any machine.
TEST(Mistakes, OfConfigurationsForGpus) {
  EXPECT_EQ(message_of(base, {"run.device=cuda"}), "no error");
  EXPECT_EQ(message_of(base, {"run.device=cuda", "train.precision=fp32", "parallel.gpu_transport=host"}), "no error");
  EXPECT_EQ(
      message_of(base, {"run.device=cuda", "train.precision=fp64"}),
      "command line: train.precision=fp64: train.precision: found fp64 with run.device: cuda, expected bf16 or fp32; "
      "fp64 runs on the CPU (run.device: cpu)");
  EXPECT_EQ(message_of(base, {"run.device=cuda:1"}),
            "command line: run.device=cuda:1: run.device: found 'cuda:1', expected cpu or cuda");
  EXPECT_EQ(
      message_of(base, {"run.device=cuda", "parallel.gpu_transport=mpi"}),
      "command line: parallel.gpu_transport=mpi: parallel.gpu_transport: found 'mpi', expected one of auto, nccl, "
      "host");
  EXPECT_EQ(
      message_of(base, {"parallel.gpu_transport=nccl"}),
      "command line: parallel.gpu_transport=nccl: parallel.gpu_transport has no effect with run.device: cpu; remove "
      "it (parallel.gpu_transport=null on the command line)");
}

}  // namespace
}  // namespace lamina
