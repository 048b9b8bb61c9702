#include "trainer/record/depth_read_watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace lamina {

DepthReadWatch::DepthReadWatch(const ModelConfig& model)
    : blocks_(pipeline::make_block_layout(model)),
      is_full_(model.residual == Residual::full_attnres),
      saturated_(static_cast<size_t>(2 * model.num_hidden_layers + 1)),
      unread_(static_cast<size_t>(blocks_.num_blocks() + 1)) {}

bool DepthReadWatch::State::lasts(bool holds, int64_t step) {
  if (!holds) {
    *this = {};
    return false;
  }
  if (since < 0) since = step;
  if (is_told || step - since < many_steps) return false;
  return is_told = true;
}

std::string DepthReadWatch::name_of_read(int site) const {
  if (site == blocks_.begin.back()) return "the output read";
  return fmt::format("the read of layer {} {}", site / 2, site % 2 == 0 ? "mixer" : "mlp");
}

std::string DepthReadWatch::name_of_source(int source) const {
  if (source == 0) return "embedding";
  const auto block = static_cast<size_t>(source) - 1;
  const int begin = blocks_.begin[block], last = blocks_.begin[block + 1] - 1;
  if (is_full_) return fmt::format("layer {} {}", begin / 2, begin % 2 == 0 ? "mixer" : "mlp");
  if (begin / 2 == last / 2) return fmt::format("block {} (layer {})", block, begin / 2);
  return fmt::format("block {} (layers {}-{})", block, begin / 2, last / 2);
}

std::vector<std::string> DepthReadWatch::observe(int64_t step, std::span<const DepthRead> reads) {
  constexpr const char* advice = "a lower train.optimizer.attn_res_lr_factor usually helps";
  std::vector<std::string> lines;
  if (blocks_.num_blocks() == 0) return lines;
  const int output = blocks_.begin.back(), num_blocks = blocks_.num_blocks();
  // Of each source the greatest weight and the greatest share of the uniform one, over the reads that see it finished.
  std::vector<double> weight(unread_.size(), 0.0), share(unread_.size(), 0.0);
  std::vector<bool> is_seen(unread_.size(), false);
  for (const DepthRead& read : reads) {
    const auto n = static_cast<double>(read.weights.size());
    if (read.weights.size() < 2) continue;  // nothing to choose from
    State& state = saturated_[static_cast<size_t>(read.site)];
    if (state.lasts(read.largest_weight >= saturated_weight, step))
      lines.push_back(fmt::format(
          "{} has been saturated since step {}: its largest weight is {:.3f} on average, its entropy {:.3f} of {:.3f} "
          "nats; {}",
          name_of_read(read.site), state.since, read.largest_weight, read.entropy, std::log(n), advice));
    const int block = blocks_.block_of(std::min(read.site, output - 1));
    const int num_finished = read.site == output ? num_blocks + 1 : block + 1;
    for (int source = 0; source < num_finished; ++source) {
      const auto s = static_cast<size_t>(source);
      is_seen[s] = true;
      weight[s] = std::max(weight[s], read.weights[s]);
      share[s] = std::max(share[s], read.weights[s] * n);
    }
  }
  for (size_t source = 0; source < unread_.size(); ++source)
    if (unread_[source].lasts(is_seen[source] && share[source] < unread_share, step))
      lines.push_back(fmt::format(
          "{} has been read by nobody since step {}: later reads give it a weight of {:.4f} at most, {:.2f} of the "
          "uniform one, "
          "so its layers learn next to nothing; {}",
          name_of_source(static_cast<int>(source)), unread_[source].since, weight[source], share[source], advice));
  return lines;
}

}  // namespace lamina
