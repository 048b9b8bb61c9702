// Does a layout train the model of one rank? Runs the gradients of one step at each layout, ranks as threads of this process,
// and compares loss, every gradient, bytes of block summaries and of rows for the experts, and summaries held with one rank,
// with the plan and with the routing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "trainer/step/engine.h"

namespace lamina {

struct Layout {
  std::string name;  // as written
  int pipeline = 1, virtual_stages = 1, data = 1;
  std::vector<std::string> overrides;  // what else it sets: "parallel.schedule=gpipe", "train.recompute=full"
  bool may_be_refused = false;         // one of `all`
  int num_ranks() const { return pipeline * data; }
};

// LAYOUT[,LAYOUT...], each PIPELINExVIRTUAL_STAGESxDATA or `all`, followed by any of :SCHEDULE, :cached or :full,
// :recompute=MODE, :expert=N (ranks that share out the experts) and :split=3/3/1/1. `all` is every layout up to max_ranks and 4
// virtual stages, with every share of the experts and every schedule that is one of its own there (1f1b has one chunk per
// rank, interleaved_1f1b several); a combination that the configuration doesn't allow is in it once. Throws Error for what it
// can't read.
std::vector<Layout> parse_layouts(const std::string& text, const Config& config, int max_ranks);

// What the layout doesn't say is the configuration's; its split where that has as many chunks, balanced otherwise; its ranks
// for experts where they divide the data-parallel ones, 1 otherwise. Throws Error with the reason when the layout is not
// possible.
Config with_layout(const Config& config, const Layout& layout);

// Depth queries start at zero, where every read is a mean and a wrong route may hide; so do the weights that mix streams. Sets them to
// a function of their name that gives logits of order one.
void move_depth_queries(Engine& engine);

// Differences to one rank, relative to its value, that rounding explains.
double default_tolerance(Precision precision);

struct VerifyOptions {
  int64_t step = 1;                  // whose sequences; from 1
  double tolerance = 0;              // 0: default_tolerance() of train.precision
  std::filesystem::path checkpoint;  // parameters; empty: initial ones with depth queries moved
  int num_threads = 1;               // shared by the ranks, unless run.num_threads says how many each has
  std::function<void(const std::string&)> progress;
  std::function<void(Engine&)>
      before_step;  // for fault injection in tests: on each rank of each layout but the one rank
};

struct LayoutReport {
  Layout layout;
  std::string refusal;  // why it is not possible; nothing else is set then
  std::string failure;  // how the step ended early; nothing else is set then
  double loss = 0, loss_difference = 0;
  double gradient_difference = 0;  // of the worst tensor: norm of the difference over norm
  std::string worst_tensor;
  int64_t stream_bytes = 0, planned_stream_bytes = 0;    // sent over hops by all ranks, both directions
  int64_t summary_bytes = 0, planned_summary_bytes = 0;  // the same of block summaries
  std::vector<int> held, bound;                          // block summaries at peak, [rank]
  int64_t expert_bytes = 0, counted_expert_bytes = 0;    // rows sent to experts and back; what the routing makes of it
  int64_t moved_choices = 0;                             // tokens x layers that went to other experts than on one rank
};
// Why the layout fails; empty when it does not.
std::string fault_of(const LayoutReport& report, double tolerance);

struct Verification {
  int64_t step = 1;
  double tolerance = 0;
  double loss = 0, gradient_norm = 0;  // of one rank
  std::vector<LayoutReport> layouts;
  // One line for all faults; empty when there are none.
  std::string fault() const;
};
std::string to_text(const Verification& verification);

// model.vocab_size must be resolved. Throws Error for what keeps the one rank from running; what a layout does is in its report.
// A tensor whose gradient is (nearly) zero is measured against a thousandth of default_tolerance() of the norm of all.
Verification verify_layouts(const Config& config, const std::vector<Layout>& layouts, const VerifyOptions& options);

}  // namespace lamina
