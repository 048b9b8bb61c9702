#include "model/operations.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "core/base/error.h"
#include "core/ops/cross_entropy/cross_entropy.h"
#include "model/optimizers/optimizer.h"
#include "parallel/pipeline/block_routes.h"

namespace lamina::model {
namespace {

constexpr double read_queries = 8,
                 read_sources = 16;  // that one launch of the depth read's kernel for tensor cores serves
constexpr double grouped_experts = 256, tensors_squared = 512;  // of one launch

// Operands per element, of the compute dtype and of the accumulation dtype.
struct Operands {
  double compute = 0, accumulation = 0;
};

class Builder {
 public:
  Builder(const ModelConfig& config, const ChunkPass& pass)
      : c_(config), p_(pass), tokens_(pass.tokens), hidden_(static_cast<double>(config.hidden_size)) {}

 protected:
  double bytes(const Operands& operands) const {
    return operands.compute * p_.sizes.compute + operands.accumulation * p_.sizes.accumulation;
  }

  void add(const std::string& name, const char* op, const Work& work, KernelClass kernels = KernelClass::products) {
    for (Operation& other : operations_) {
      if (other.name == name && other.op == op && other.phase == phase_ && other.work == work) {
        other.calls += 1;
        return;
      }
    }
    operations_.push_back({name, op, phase_, kernels, work, 1});
  }
  void rows(const std::string& name, const char* op, double elements, const Operands& operands, double launches = 1,
            double flops = 0) {
    add(name, op, {flops, elements * bytes(operands), launches});
  }

  // rows x in times [out, in], into the compute dtype or the accumulation dtype.
  void product(const std::string& name, double rows, double in, double out, bool accumulates = false) {
    const double result = rows * out * (accumulates ? p_.sizes.accumulation : p_.sizes.compute);
    add(name, "matmul", {2 * rows * in * out, (rows * in + in * out) * p_.sizes.compute + result, 1});
  }
  // The gradients of its input, and of its weight, which is added to.
  void product_backward(const std::string& name, double rows, double in, double out) {
    product(name, rows, out, in);
    add(name, "matmul", {2 * rows * in * out, bytes({rows * (in + out), 2 * in * out}), 1});
  }

  const ModelConfig& c_;
  const ChunkPass p_;
  const double tokens_, hidden_;
  Phase phase_ = Phase::forward;
  std::vector<Operation> operations_;
};

// Which of a sublayer's operations are issued.
enum class Part : uint8_t { all, all_but_last, cheap };

// The sublayers: Mla, Kda, Mlp and Moe.
class Sublayers : public Builder {
 public:
  using Builder::Builder;

 protected:
  void sublayer(int site) {
    phase_ = Phase::forward;
    sublayer_forward(site, Part::all);
  }
  void sublayer_backward(int site) {
    phase_ = Phase::again;
    if (p_.recompute != Recompute::none)
      sublayer_forward(site, p_.recompute == Recompute::full ? Part::all_but_last : Part::cheap);
    phase_ = Phase::backward;
    const int64_t layer = site / 2;
    if (site % 2 == 0)
      c_.mixer(layer) == Mixer::kda ? kda_backward() : mla_backward();
    else
      c_.is_moe(layer) ? moe_backward() : mlp_backward("MLP", static_cast<double>(c_.intermediate_size));
  }

 private:
  void sublayer_forward(int site, Part part) {
    const int64_t layer = site / 2;
    if (site % 2 == 0)
      c_.mixer(layer) == Mixer::kda ? kda(part) : mla(part);
    else
      c_.is_moe(layer) ? moe(part) : mlp("MLP", static_cast<double>(c_.intermediate_size), part);
  }

  struct MlaWidths {
    double heads, nope, shared, value, latent, rank, key, in;
  };
  MlaWidths mla_widths() const {
    MlaWidths w{};
    w.heads = static_cast<double>(c_.num_attention_heads);
    w.nope = static_cast<double>(c_.qk_nope_head_dim), w.shared = static_cast<double>(c_.qk_rope_head_dim);
    w.value = static_cast<double>(c_.v_head_dim), w.latent = static_cast<double>(c_.kv_lora_rank);
    w.rank = static_cast<double>(c_.q_lora_rank.value_or(0));
    w.key = w.nope + w.shared;
    w.in = (w.rank > 0 ? w.rank : w.heads * w.key) + w.latent + w.shared;
    return w;
  }
  static std::string mla_in(const MlaWidths& w) { return w.rank > 0 ? "MLA: q_a, kv_a" : "MLA: q, kv_a"; }

  void mla(Part part) {
    const MlaWidths w = mla_widths();
    const bool is_cheap = part == Part::cheap;
    const char* const norm = is_cheap ? "rms_norm_apply" : "rms_norm_forward";
    if (!is_cheap) product(mla_in(w), tokens_, hidden_, w.in);
    if (w.rank > 0) {
      rows("MLA: norms", norm, tokens_ * w.rank, {2, 0});
      if (!is_cheap) product("MLA: q_b", tokens_, w.rank, w.heads * w.key);
    }
    rows("MLA: norms", norm, tokens_ * w.latent, {2, 0});
    product("MLA: kv_b", tokens_, w.latent, w.heads * (w.nope + w.value));
    if (w.shared > 0)
      rows("MLA: packed keys", "pack_shared_keys", tokens_ * (w.heads * (w.nope + w.key) + w.shared), {1, 0});
    if (is_cheap) return;
    const double width = tokens_ * w.heads * (w.key + w.value);
    add("MLA: attention", "attention_forward", {width * static_cast<double>(p_.seq_len), bytes({2 * width, 0}), 1},
        KernelClass::attention);
    if (part == Part::all) product("MLA: o", tokens_, w.heads * w.value, hidden_);
  }

  void mla_backward() {
    const MlaWidths w = mla_widths();
    product_backward("MLA: o", tokens_, w.heads * w.value, hidden_);
    // Statistics of o; gradients of keys and values; gradients of queries.
    const double pairs = tokens_ * w.heads * static_cast<double>(p_.seq_len);
    add("MLA: attention", "attention_backward",
        {pairs * (4 * w.key + 3 * w.value), bytes({tokens_ * w.heads * (6 * w.key + 7 * w.value), 0}), 3},
        KernelClass::attention);
    if (w.shared > 0)
      rows("MLA: packed keys", "unpack_shared_keys", tokens_ * (w.heads * (w.nope + w.key) + w.shared), {1, 0}, 2);
    product_backward("MLA: kv_b", tokens_, w.latent, w.heads * (w.nope + w.value));
    rows("MLA: norms", "rms_norm_backward", tokens_ * w.latent, {3, 0}, 2);
    if (w.rank > 0) {
      product_backward("MLA: q_b", tokens_, w.rank, w.heads * w.key);
      rows("MLA: norms", "rms_norm_backward", tokens_ * w.rank, {3, 0}, 2);
    }
    product_backward(mla_in(w), tokens_, hidden_, w.in);
  }

  struct KdaWidths {
    double heads, head, width, in, flops;
  };
  KdaWidths kda_widths() const {
    KdaWidths w{};
    w.heads = static_cast<double>(c_.linear_num_heads), w.head = static_cast<double>(c_.linear_head_dim);
    w.width = w.heads * w.head;
    w.in = 3 * w.width + 2 * w.head + w.heads;
    w.flops = tokens_ * w.heads * (6 * w.head * w.head + 3 * kda_chunk * w.head + kda_chunk * kda_chunk);
    return w;
  }
  static constexpr const char* kda_in = "KDA: q, k, v, f_a, g_a, beta";

  void kda(Part part) {
    const KdaWidths w = kda_widths();
    const double taps = static_cast<double>(c_.short_conv_kernel_size), wide = tokens_ * w.width;
    if (part != Part::cheap) {
      product(kda_in, tokens_, hidden_, w.in);
      for (int i = 0; i < 2; ++i) product("KDA: f_b, g_b", tokens_, w.head, w.width);
    }
    rows("KDA: convolution", "short_conv_forward", 3 * wide, {2, 0}, 1, 2 * 3 * wide * taps);
    rows("KDA: L2 norm", "l2_norm_forward", 2 * wide, {2, 0});
    rows("KDA: gate", "kda_gate_forward", wide, {1, 1});
    if (part == Part::cheap) return;
    // q, k, v, g in and o out; between the two kernels decayed q and k, k decayed to the end, and two squares per chunk.
    add("KDA: recurrence", "kda_forward", {w.flops, wide * bytes({4 + 2 * (3 + 2 * kda_chunk / w.head), 1}), 2},
        KernelClass::kda);
    rows("KDA: gated norm", "gated_rms_norm_forward", wide, {3, 0});
    if (part == Part::all) product("KDA: o", tokens_, w.width, hidden_);
  }

  void kda_backward() {
    const KdaWidths w = kda_widths();
    const double taps = static_cast<double>(c_.short_conv_kernel_size), wide = tokens_ * w.width;
    product_backward("KDA: o", tokens_, w.width, hidden_);
    rows("KDA: gated norm", "gated_rms_norm_backward", wide, {6, 0}, 2);  // its output is made again
    // Per element of a head's row: squares of a chunk, and states.
    const double squares = 2 * kda_chunk / w.head, state = w.head / kda_chunk;
    const double prepare = 2 + 3 + squares, scan = 3 + squares + 1 + 1 + state, scan_back = 3 + squares + 1 + 2 + state,
                 gradients = 2 + 3 + 2 * state + 2;
    add("KDA: recurrence", "kda_backward", {3 * w.flops, wide * bytes({prepare + scan + scan_back + gradients, 3}), 4},
        KernelClass::kda);
    rows("KDA: L2 norm", "l2_norm_backward", 2 * wide, {3, 0});
    rows("KDA: convolution", "short_conv_backward", 3 * wide, {3, 0}, 2, 4 * 3 * wide * taps);
    rows("KDA: gate", "kda_gate_backward", wide, {2, 1}, 3);
    for (int i = 0; i < 2; ++i) product_backward("KDA: f_b, g_b", tokens_, w.head, w.width);
    product_backward(kda_in, tokens_, hidden_, w.in);
  }

  void mlp(const std::string& name, double width, Part part) {
    if (part == Part::cheap) return;
    product(name + ": gate, up", tokens_, hidden_, 2 * width);
    if (part == Part::all_but_last) return;
    rows(name + ": SwiGLU", "swiglu_forward", tokens_ * width, {3, 0});
    product(name + ": down", tokens_, width, hidden_);
  }
  void mlp_backward(const std::string& name, double width) {
    product_backward(name + ": down", tokens_, width, hidden_);
    rows(name + ": SwiGLU", "swiglu_backward", tokens_ * width, {6, 0});  // its output is made again
    product_backward(name + ": gate, up", tokens_, hidden_, 2 * width);
  }

  struct MoeWidths {
    double experts, held, chosen, width, shared, pairs, rows;  // rows: of this rank's experts
  };
  MoeWidths moe_widths() const {
    MoeWidths w{};
    w.experts = static_cast<double>(c_.num_experts), w.held = w.experts / p_.expert_ranks;
    w.chosen = static_cast<double>(c_.num_experts_per_token), w.width = static_cast<double>(c_.moe_intermediate_size);
    w.shared = static_cast<double>(c_.num_shared_experts) * w.width;
    w.pairs = tokens_ * w.chosen;
    w.rows = tokens_ * (p_.expert_ranks > 1 ? expected_expert_ranks(c_, p_.expert_ranks) : 1);
    return w;
  }
  // With expert ranks the host knows the numbers of rows, so cuBLAS multiplies, for which a kernel writes addresses.
  void grouped(const std::string& name, const char* op, const MoeWidths& w, double in, double out) {
    const double launches = std::ceil(w.held / grouped_experts);
    add(name, op,
        {2 * w.pairs * in * out, bytes({w.pairs * (in + out) + w.held * in * out, 0}),
         p_.expert_ranks > 1 ? launches + 1 : launches},
        KernelClass::experts);
  }
  void grouped_backward(const std::string& name, const MoeWidths& w, double in, double out) {
    grouped(name, "grouped_linear_input_gradient", w, out, in);
    add(name, "grouped_linear_weight_gradient",
        {2 * w.pairs * in * out, bytes({w.pairs * (in + out), 2 * w.held * in * out}),
         std::ceil(w.held / grouped_experts)},
        KernelClass::experts);
  }
  void gather(double from, double to) { rows("experts: rows in order", "gather_rows", hidden_ * (from + to), {1, 0}); }
  void combine(double from, double to, bool accumulates) {
    rows("experts: sums of rows", "combine_rows", hidden_ * (from + (accumulates ? 2 : 1) * to), {1, 0});
  }

  void moe(Part part) {
    if (part == Part::cheap) return;
    const MoeWidths w = moe_widths();
    const bool is_balanced = c_.aux_loss_alpha > 0, has_ranks = p_.expert_ranks > 1;
    product("router", tokens_, hidden_, w.experts, true);
    rows("router: choice", "router_forward", tokens_ * w.experts, {0, is_balanced ? 3.0 : 2.0}, is_balanced ? 4 : 1);
    if (part == Part::all) rows("router: counts", "router_observe", w.pairs, {0, 1});
    if (w.shared > 0) mlp("shared experts", w.shared, part);
    if (has_ranks) gather(tokens_, w.rows);
    rows("experts: order", "group_rows", w.rows * w.chosen, {0, 5}, 4);
    gather(w.rows, w.pairs);
    grouped("experts: gate, up", "grouped_linear", w, hidden_, 2 * w.width);
    if (part == Part::all_but_last) return;
    rows("experts: SwiGLU", "swiglu_forward", w.pairs * w.width, {3, 0});
    grouped("experts: down", "grouped_linear", w, w.width, hidden_);
    combine(w.pairs, w.rows, !has_ranks && w.shared > 0);
    if (has_ranks) combine(w.rows, tokens_, w.shared > 0);
  }

  void moe_backward() {
    const MoeWidths w = moe_widths();
    const bool has_ranks = p_.expert_ranks > 1;
    if (w.shared > 0) mlp_backward("shared experts", w.shared);
    if (has_ranks) gather(tokens_, w.rows);
    gather(w.rows, w.pairs);
    grouped_backward("experts: down", w, w.width, hidden_);
    rows("experts: SwiGLU", "swiglu_backward", w.pairs * w.width, {6, 0});
    rows("experts: weights' gradients", "combine_rows", w.pairs, {0, 2});
    gather(w.rows, w.pairs);
    grouped_backward("experts: gate, up", w, hidden_, 2 * w.width);
    combine(w.pairs, w.rows, !has_ranks && w.shared > 0);
    if (has_ranks) combine(w.rows, tokens_, w.shared > 0);
    rows("router: choice", "router_backward", tokens_ * w.experts, {1, 1});
    product_backward("router", tokens_, hidden_, w.experts);
  }
};

// What stands between the sublayers, in the order of Chunk and the residual schemes.
class ChunkOperations : public Sublayers {
 public:
  ChunkOperations(const ModelConfig& config, const ChunkPass& pass)
      : Sublayers(config, pass),
        blocks_(pipeline::make_block_layout(config)),
        num_sublayers_(static_cast<int>(2 * config.num_hidden_layers)),
        has_blocks_(config.has_depth_reads()) {}

  std::vector<Operation> all() {
    const auto [begin, end, is_last] = p_.range;
    if (p_.is_first) rows("embedding", "embedding_forward", tokens_ * hidden_, {2, 0});
    for (int site = begin; site < end; ++site) {
      read(site);
      sublayer(site);
    }
    phase_ = Phase::forward;
    if (is_last) {
      read(end);
      head();
    } else {
      finish_stream();
    }
    phase_ = Phase::backward;
    for (int i = 0; i < p_.num_sent; ++i) rows("hops: gradients", "cast", tokens_ * hidden_, {1, 1});
    if (is_last)
      read_backward(end);
    else
      rows("hops: gradients", "cast", tokens_ * hidden_, {1, 1});
    for (int site = end - 1; site >= begin; --site) {
      reread(site);
      phase_ = Phase::backward;
      if (p_.sizes.compute < p_.sizes.accumulation) rows("residual: gradient", "cast", tokens_ * hidden_, {1, 1});
      if (p_.defers_weights) rows("residual: gradient", "cast", tokens_ * hidden_, {2, 0});
      sublayer_backward(site);
      read_backward(site);
    }
    if (p_.is_first) rows("embedding", "embedding_backward", tokens_ * hidden_, {0, 3}, 6);
    for (int i = 0; i < p_.num_received + (p_.is_first ? 0 : 1); ++i)
      rows("hops: gradients", "cast", tokens_ * hidden_, {1, 1});
    return std::move(operations_);
  }

 private:
  bool keeps_inputs() const { return p_.recompute == Recompute::none; }
  int block_of(int site) const { return blocks_.block_of(std::min(site, num_sublayers_ - 1)); }
  bool opens(int site) const { return site < num_sublayers_ && blocks_.opens_block(site); }
  bool begins_part(int site) const { return site == p_.range.begin || opens(site); }
  bool sees_open_sum(int site) const { return !opens(site); }
  int last_site() const { return p_.range.is_last ? p_.range.end : p_.range.end - 1; }

  // Before sublayer `site`, or the head.
  void read(int site) {
    phase_ = Phase::forward;
    if (!has_blocks_)
      return rows("residual: addition, norm", "rms_norm_forward", tokens_ * hidden_,
                  {site == p_.range.begin ? 2.0 : 4.0, 0});
    bool adds = false;
    if (begins_part(site)) {
      if (opens(site) && site > p_.range.begin) close_block(site - 1);
      read_summaries(block_of(site));
    } else {
      adds = !blocks_.opens_block(site - 1);
    }
    if (site == 0)
      rows("residual: addition, norm", "rms_norm_forward", tokens_ * hidden_, {2, 0});
    else
      merge(site, adds);
  }

  // What backward needs of it and was not kept.
  void reread(int site) {
    phase_ = Phase::again;
    if (keeps_inputs()) return;
    if (!has_blocks_ || site == 0) return rows("residual: addition, norm", "rms_norm_apply", tokens_ * hidden_, {2, 0});
    read_summaries_again(block_of(site));
    merge(site, false);
  }

  void read_backward(int site) {
    const bool is_output = site == p_.range.end;
    if (has_blocks_ && is_output && !keeps_inputs()) reread(site);
    phase_ = Phase::backward;
    if (!has_blocks_)
      return rows("residual: addition, norm", "rms_norm_backward", tokens_ * hidden_, {2, is_output ? 1.0 : 2.0}, 2);
    if (site == 0) {
      rows("residual: addition, norm", "rms_norm_backward", tokens_ * hidden_, {2, 2}, 2);
    } else {
      const bool has_sum = sees_open_sum(site);
      rows("depth merge, norm", "attn_res_merge_backward", tokens_ * hidden_,
           {has_sum ? 4.0 : 3.0, !has_sum    ? 0.0
                                 : is_output ? 1.0
                                             : 2.0},
           2, has_sum ? 8 * tokens_ * hidden_ : 0);
    }
    if (begins_part(site)) read_summaries_backward(block_of(site));
  }

  // The part of a block that is in this chunk: the sites that one pass over the summaries serves.
  double num_queries(int block) const {
    int count = 0;
    for (int site = std::max(p_.range.begin, 1); site <= last_site(); ++site) count += block_of(site) == block ? 1 : 0;
    return count;
  }
  static double num_launches(double sources, double queries) {
    return sources <= read_sources ? std::ceil(queries / read_queries) : 1;
  }
  void read_summaries(int block) {
    const double sources = block + 1, queries = num_queries(block), launches = num_launches(sources, queries);
    if (queries > 0)
      rows("depth read", "attn_res_phase1_forward", tokens_ * hidden_, {launches * sources + queries, 0}, 1 + launches,
           4 * tokens_ * hidden_ * sources * queries);
  }
  // Once per block, unless the forward pass has just left it: the last chunk's last block.
  void read_summaries_again(int block) {
    const bool is_left = p_.range.is_last && block == block_of(num_sublayers_);
    if (block == block_made_again_ || is_left) return;
    block_made_again_ = block;
    read_summaries(block);
  }
  void read_summaries_backward(int block) {
    const double sources = block + 1, queries = num_queries(block), launches = num_launches(sources, queries);
    if (queries == 0) return;
    // The chunk's last part overwrites the summaries' gradients, all others add to them.
    const double passes = 2 * launches - (block == block_of(last_site()) ? 1 : 0);
    rows("depth read", "attn_res_phase1_backward", tokens_ * hidden_, {launches * sources + queries, passes * sources},
         2 + launches, 8 * tokens_ * hidden_ * sources * queries);
  }
  void merge(int site, bool adds) {
    const bool has_sum = sees_open_sum(site);
    rows("depth merge, norm", "attn_res_merge_forward", tokens_ * hidden_,
         {3 + (has_sum ? 1.0 : 0.0) + (adds ? 2.0 : 0.0), 0}, 1, has_sum ? 4 * tokens_ * hidden_ : 0);
  }
  void close_block(int last) {
    if (!blocks_.opens_block(last)) rows("residual: sum of a block", "add", tokens_ * hidden_, {3, 0});
  }
  void finish_stream() {
    const int last = p_.range.end - 1;
    if (last < p_.range.begin || (has_blocks_ && opens(last))) return;
    rows("residual: sum of a block", "add", tokens_ * hidden_, {3, 0});
  }

  // In pieces of tokens, with both gradients.
  void head() {
    const auto vocab = static_cast<double>(c_.vocab_size);
    const DType acc = p_.sizes.accumulation == 8 ? DType::f64 : DType::f32;
    const auto piece = static_cast<double>(
        ops::cross_entropy_piece(static_cast<int64_t>(tokens_), c_.vocab_size, acc, DeviceKind::cuda));
    const double pieces = std::ceil(tokens_ / piece), rows_of_piece = tokens_ / pieces;
    for (int i = 0; i < static_cast<int>(pieces); ++i) {
      product("head: logits", rows_of_piece, hidden_, vocab, true);
      rows("head: loss", "softmax_cross_entropy", rows_of_piece * vocab, {1, 2});
      product_backward("head: gradients", rows_of_piece, hidden_, vocab);
    }
  }

  pipeline::BlockLayout blocks_;
  int num_sublayers_;
  bool has_blocks_;
  int block_made_again_ = -1;
};

}  // namespace

Work& Work::operator+=(const Work& other) {
  flops += other.flops;
  bytes += other.bytes;
  launches += other.launches;
  return *this;
}

Work operator*(double count, const Work& work) {
  return {count * work.flops, count * work.bytes, count * work.launches};
}

std::vector<Operation> chunk_operations(const ModelConfig& config, const ChunkPass& pass) {
  LAMINA_CHECK(config.residual != Residual::mhc, "mhc has no code for GPUs");
  return ChunkOperations(config, pass).all();
}

std::vector<Operation> update_operations(const Config& config, int num_ranks) {
  const ElementSizes s = element_sizes(config.train.precision);
  const std::vector<ParameterSpec> specs = parameter_specs(config.model);
  const std::vector<UpdateRule> rules = update_rules(config, specs);
  const double share = 1.0 / num_ranks;
  double elements = 0;
  std::map<OptimizerName, ShapeCounts> shapes;
  for (size_t i = 0; i < specs.size(); ++i) {
    elements += static_cast<double>(specs[i].shape.num_elements());
    if (rules[i].optimizer) shapes[rules[i].optimizer->facts().name][rows_and_columns(specs[i].shape)] += 1;
  }
  const double tensors = std::max(1.0, share * static_cast<double>(specs.size()));
  std::vector<Operation> operations = {{"gradient's norm",
                                        "sum_squares",
                                        Phase::update,
                                        KernelClass::products,
                                        {0, share * elements * s.accumulation, std::ceil(tensors / tensors_squared)},
                                        1}};
  for (const auto& [name, counts] : shapes)
    for (Operation& operation : optimizer_of(name).operations(counts, s, share))
      operations.push_back(std::move(operation));
  return operations;
}

}  // namespace lamina::model
