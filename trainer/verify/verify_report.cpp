// What `lamina verify` found, as text: why a layout fails, and the table of all.
#include <fmt/format.h>

#include <algorithm>

#include "trainer/verify/verify.h"

namespace lamina {
namespace {

// The rank that shows most: one that is not at its bound, or the one that holds most.
size_t telling_rank(const LayoutReport& report) {
  for (size_t rank = 0; rank < report.held.size(); ++rank)
    if (report.held[rank] != report.bound[rank]) return rank;
  return static_cast<size_t>(std::max_element(report.held.begin(), report.held.end()) - report.held.begin());
}

struct Row {
  std::string layout, blocks, held, expert_rows;
};

Row row_of(const LayoutReport& report) {
  Row row{report.layout.name, "", "", ""};
  if (report.held.empty()) return row;
  const size_t rank = telling_rank(report);
  row.blocks = fmt::format("{}/{}", report.summary_bytes, report.planned_summary_bytes);
  row.held = fmt::format("{}/{}", report.held[rank], report.bound[rank]);
  row.expert_rows = fmt::format("{}/{}", report.expert_bytes, report.counted_expert_bytes);
  return row;
}

}  // namespace

std::string fault_of(const LayoutReport& report, double tolerance) {
  if (!report.refusal.empty()) return report.layout.may_be_refused ? "" : "refused: " + report.refusal;
  if (!report.failure.empty()) return report.failure;
  if (!(report.gradient_difference <= tolerance)) {
    // Where two experts are equally good, a rounding decides; then other experts get other gradients.
    const std::string moved =
        report.moved_choices == 0
            ? ""
            : fmt::format("; {} choices of experts are not one rank's, which rounding explains if fp64 has none",
                          report.moved_choices);
    return fmt::format("the gradient of {} differs from one rank's by {:.2g} of its norm, expected at most {:.2g}{}",
                       report.worst_tensor, report.gradient_difference, tolerance, moved);
  }
  if (!(report.loss_difference <= tolerance))
    return fmt::format("found loss {:.9g}, a relative difference to one rank's of {:.2g}, expected at most {:.2g}",
                       report.loss, report.loss_difference, tolerance);
  if (report.summary_bytes != report.planned_summary_bytes)
    return fmt::format("found {} bytes of block summaries sent, planned are {}", report.summary_bytes,
                       report.planned_summary_bytes);
  if (report.stream_bytes != report.planned_stream_bytes)
    return fmt::format("found {} bytes of hidden stream sent, planned are {}", report.stream_bytes,
                       report.planned_stream_bytes);
  if (report.expert_bytes != report.counted_expert_bytes)
    return fmt::format("found {} bytes of rows sent to experts and back, the routing makes {}", report.expert_bytes,
                       report.counted_expert_bytes);
  if (report.held != report.bound) {
    const size_t rank = telling_rank(report);
    return fmt::format("rank {} held {} block summaries, planned are {}", rank, report.held[rank], report.bound[rank]);
  }
  return "";
}

std::string Verification::fault() const {
  std::string first;
  int count = 0;
  for (const bool refused : {false, true})  // a wrong gradient is more to know than a layout that can't be
    for (const LayoutReport& report : layouts) {
      const std::string fault = report.refusal.empty() == refused ? "" : fault_of(report, tolerance);
      if (!fault.empty() && ++count == 1) first = fmt::format("{}: {}", report.layout.name, fault);
    }
  return count > 1 ? fmt::format("{} (and {} more layout{})", first, count - 1, count == 2 ? "" : "s") : first;
}

std::string to_text(const Verification& verification) {
  const bool has_rows =
      std::any_of(verification.layouts.begin(), verification.layouts.end(),
                  [](const LayoutReport& r) { return r.expert_bytes > 0 || r.counted_expert_bytes > 0; });
  std::vector<Row> rows = {{"layout", "blocks sent/planned", "held/bound", "rows sent/routed"}};
  for (const LayoutReport& report : verification.layouts) rows.push_back(row_of(report));
  Row widest;
  for (const Row& row : rows) {
    widest.layout.resize(std::max(widest.layout.size(), row.layout.size()));
    widest.blocks.resize(std::max(widest.blocks.size(), row.blocks.size()));
    widest.expert_rows.resize(std::max(widest.expert_rows.size(), row.expert_rows.size()));
  }
  const auto sent = [&](const Row& row) {
    std::string text = fmt::format("{:>{}} {:>10}", row.blocks, widest.blocks.size(), row.held);
    if (has_rows) text += fmt::format("  {:>{}}", row.expert_rows, widest.expert_rows.size());
    return text;
  };
  std::string text = fmt::format("{:<{}} {:>5} {:>10} {:>9} {:>9}  {}  verdict  worst tensor\n", rows[0].layout,
                                 widest.layout.size(), "ranks", "loss", "loss diff", "grad diff", sent(rows[0]));
  for (size_t i = 0; i < verification.layouts.size(); ++i) {
    const LayoutReport& report = verification.layouts[i];
    text += fmt::format("{:<{}} {:>5} ", report.layout.name, widest.layout.size(), report.layout.num_ranks());
    if (!report.refusal.empty()) {
      text += fmt::format("refused: {}\n", report.refusal);
    } else if (!report.failure.empty()) {
      text += fmt::format("FAILED: {}\n", report.failure);
    } else {
      text += fmt::format("{:>10.6f} {:>9.1e} {:>9.1e}  {}  {:<7}  {}\n", report.loss, report.loss_difference,
                          report.gradient_difference, sent(rows[i + 1]),
                          fault_of(report, verification.tolerance).empty() ? "ok" : "FAILED",
                          report.gradient_difference == 0 ? "none, all are equal" : report.worst_tensor);
    }
  }
  return text;
}

}  // namespace lamina
