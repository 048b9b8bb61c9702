// Chooses the value of one key (a learning rate, as a rule) before a sweep's runs start, by successive halving.
//
// In every cell each value is trained up to the first rung. The better share of them goes on to the next rung, and so on; the best one
// at the last rung, or the last one left, is chosen. The criterion is the validation loss at the rung's end, the mean over tune's
// seeds. A run that diverges counts as infinitely bad; of equal values the one that the file names first is the better one.
//
// All that is known stands in the run folders below <sweep>/tuning, so that a sweep that was killed goes on where it was, and another
// look gives the same choice. tuning.json and tuning.md are written for readers only.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "launch/study/sweep_file.h"

namespace lamina::study {

struct RungEntry {  // a value at a rung
  size_t rung = 0;  // of TunePlan::rungs
  size_t value = 0;
  int64_t steps = 0;
  std::vector<std::optional<double>> losses;  // [seed]; infinite: diverged; absent: not there yet
  bool goes_on = false;                       // to the next rung, or it is chosen

  std::optional<double> mean() const;  // absent while a seed's is
};

struct CellTuning {
  std::vector<RungEntry> entries;  // rung by rung, in each the values in the file's order
  std::optional<size_t> chosen;    // value
  bool is_at_edge = false;         // the smallest or the largest of the values
  bool is_failed = false;          // every value diverged
  std::vector<PlannedRun> open;    // what the rung at hand still needs
};

// Where the first stage stands, from its folders. Error when a folder holds another configuration's results, or results from which a
// rung's loss can't be told.
std::vector<CellTuning> read_tuning(const SweepPlan& plan);  // [cell]; plan.tune must be there
bool is_complete(const std::vector<CellTuning>& tuning);

// The runs that are to be trained next, in a folder of their own; their configurations are the cell's first run's with the value, the
// seed, and the length of the rung. `shortened`: each rung's run is one of its own, whose warm-up and decay are shortened in
// proportion. `continued`: it goes on from the rung before, at the rates that a run of full length has.
SweepPlan next_rung(const SweepPlan& plan, const std::vector<CellTuning>& tuning);

// Gives the runs of each cell that is decided the chosen value.
void apply_tuning(SweepPlan& plan, const std::vector<CellTuning>& tuning);

// FLOP by size: of the whole stage, and of what comes after the rung at hand.
std::map<std::string, double> tuning_work(const SweepPlan& plan);
std::map<std::string, double> later_tuning_work(const SweepPlan& plan, const std::vector<CellTuning>& tuning);

// The table of (value, rung, loss), readable and in Markdown, and what is to be said of it: whose best value is at the edge of the
// range, and which of tune's seeds are the study's too.
std::string tuning_text(const SweepPlan& plan, const std::vector<CellTuning>& tuning);
std::vector<std::string> tuning_warnings(const SweepPlan& plan, const std::vector<CellTuning>& tuning);
void write_tuning(const SweepPlan& plan,
                  const std::vector<CellTuning>& tuning);  // tuning.json and tuning.md, atomically

}  // namespace lamina::study
