#include <array>

#include "parallel/pipeline/dependencies.h"
#include "parallel/pipeline/schedule.h"

namespace lamina::pipeline {

namespace {

// What a compute action needs from another rank, and what it makes for one. Neighbouring chunks are on different ranks.
bool is_backward(ActionKind kind) {
  return kind == ActionKind::backward || kind == ActionKind::backward_input;
}
bool receives(const Action& action, int num_chunks) {
  return action.kind == ActionKind::forward ? action.chunk > 0
                                            : is_backward(action.kind) && action.chunk + 1 < num_chunks;
}
bool sends(const Action& action, int num_chunks) {
  return action.kind == ActionKind::forward ? action.chunk + 1 < num_chunks
                                            : is_backward(action.kind) && action.chunk > 0;
}
Step message(bool send, const Action& action) {
  const bool forward = action.kind == ActionKind::forward;
  const StepKind kind = send ? (forward ? StepKind::send_forward : StepKind::send_backward)
                             : (forward ? StepKind::receive_forward : StepKind::receive_backward);
  return {kind, {action.chunk, forward ? ActionKind::forward : ActionKind::backward, action.microbatch}};
}

// Messages of one chunk and direction share a tag, so both ends must meet them in the same order: ascending.
void check_ascending(const Schedule& schedule, int num_chunks) {
  std::vector<std::array<int, 2>> last(static_cast<size_t>(num_chunks), {-1, -1});
  for (const auto& actions : schedule)
    for (const Action& action : actions) {
      if (action.kind == ActionKind::backward_weight) continue;
      LAMINA_CHECK(action.chunk >= 0 && action.chunk < num_chunks, "{} of {} chunks", to_string(action), num_chunks);
      int& earlier = last[static_cast<size_t>(action.chunk)][is_backward(action.kind) ? 1 : 0];
      LAMINA_CHECK(earlier < action.microbatch, "{} after micro-batch {}", to_string(action), earlier);
      earlier = action.microbatch;
    }
}

}  // namespace

std::string to_string(const Step& step) {
  switch (step.kind) {
    case StepKind::compute:
      return to_string(step.action);
    case StepKind::receive_forward:
    case StepKind::receive_backward:
      return "recv " + to_string(step.action);
    case StepKind::send_forward:
    case StepKind::send_backward:
      return "send " + to_string(step.action);
  }
  LAMINA_CHECK(false, "step kind {}", static_cast<int>(step.kind));
  return {};
}

Program lower(const Schedule& schedule, int num_chunks) {
  const size_t num_ranks = schedule.size();
  LAMINA_CHECK(num_ranks >= 1 && num_chunks >= 1 && num_chunks % static_cast<int>(num_ranks) == 0,
               "{} chunks on {} ranks", num_chunks, num_ranks);
  check_ascending(schedule, num_chunks);
  Program program(num_ranks);
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    const auto& actions = schedule[rank];
    auto& steps = program[rank];
    const auto post = [&](size_t i) {
      if (num_ranks > 1 && i < actions.size() && receives(actions[i], num_chunks))
        steps.push_back(message(false, actions[i]));
    };
    post(0);
    for (size_t i = 0; i < actions.size(); ++i) {
      post(i + 1);
      steps.push_back({StepKind::compute, actions[i]});
      if (num_ranks > 1 && sends(actions[i], num_chunks)) steps.push_back(message(true, actions[i]));
    }
  }
  return program;
}

namespace {

class ProgramValidator {
 public:
  ProgramValidator(const Program& program, int num_chunks)
      : program_(program), num_ranks_(static_cast<int>(program.size())), num_chunks_(num_chunks) {
    LAMINA_CHECK(num_ranks_ >= 1 && num_chunks >= 1 && num_chunks % num_ranks_ == 0, "{} chunks on {} ranks",
                 num_chunks, num_ranks_);
  }

  void run() {
    check_compute_steps();
    const PositionTable computes = compute_positions();
    const PositionTable messages = message_positions(computes);
    check_all_there(messages);
    check_message_order();
    check_progress(messages);
  }

 private:
  // Messages in a table of actions: their kind takes the place of the action's.
  static Action key(const Step& step) {
    return {step.action.chunk, static_cast<ActionKind>(static_cast<int>(step.kind) - 1), step.action.microbatch};
  }
  static bool is_send(const Step& step) {
    return step.kind == StepKind::send_forward || step.kind == StepKind::send_backward;
  }
  static bool is_forward(const Step& step) {
    return step.kind == StepKind::send_forward || step.kind == StepKind::receive_forward;
  }
  // The other end's step.
  static Step partner(const Step& step) {
    const bool forward = is_forward(step), send = is_send(step);
    return message(!send, {step.action.chunk + (send == forward ? 1 : -1),
                           forward ? ActionKind::forward : ActionKind::backward, step.action.microbatch});
  }
  const Step& step_at(Position position) const {
    return program_[static_cast<size_t>(position.rank)][static_cast<size_t>(position.index)];
  }
  template <class Visit>
  void for_each_step(Visit&& visit) const {
    for (size_t rank = 0; rank < program_.size(); ++rank)
      for (size_t i = 0; i < program_[rank].size(); ++i)
        visit(Position{static_cast<int>(rank), static_cast<int>(i)}, program_[rank][i]);
  }

  // `at` is in the program; the grid shows the compute steps, of which the next one of that rank is marked.
  [[noreturn]] void fail(Position at, const std::string& message) const {
    const auto& steps = program_[static_cast<size_t>(at.rank)];
    int num_before = 0, num_all = 0;
    for (size_t i = 0; i < steps.size(); ++i) {
      if (steps[i].kind != StepKind::compute) continue;
      ++num_all;
      if (static_cast<int>(i) < at.index) ++num_before;
    }
    throw Error("{}\n{}", message, grid_around(computes_, {at.rank, std::min(num_before, num_all - 1)}));
  }

  void check_compute_steps() {
    computes_.resize(program_.size());
    int64_t num_computes = 0, num_microbatches = 0;
    for_each_step([&](Position position, const Step& step) {
      if (step.kind != StepKind::compute) return;
      computes_[static_cast<size_t>(position.rank)].push_back(step.action);
      num_microbatches = std::max(num_microbatches, static_cast<int64_t>(step.action.microbatch) + 1);
      forward_only_ = forward_only_ && step.action.kind == ActionKind::forward;
      ++num_computes;
    });
    // Tables have an entry per chunk and micro-batch: one absurd number must not make them so large.
    if (num_computes == 0 || num_microbatches * num_chunks_ > 4 * num_computes + 64)
      throw Error("program: {} compute steps can't be all of {} chunks and {} micro-batches", num_computes, num_chunks_,
                  num_microbatches);
    num_microbatches_ = static_cast<int>(num_microbatches);
    pipeline::validate(computes_, num_chunks_, num_microbatches_, forward_only_);
  }

  PositionTable compute_positions() const {
    PositionTable table(num_chunks_, num_microbatches_);
    for_each_step([&](Position position, const Step& step) {
      if (step.kind == StepKind::compute) table.add(step.action, position);
    });
    return table;
  }

  // The compute step that makes what is sent or needs what is received; {} when there is none.
  Position compute_of(const Step& step, const PositionTable& computes) const {
    const Action& action = step.action;
    if (num_ranks_ == 1 || action.microbatch < 0 || action.microbatch >= num_microbatches_) return {};
    for (const ActionKind kind : {ActionKind::forward, ActionKind::backward, ActionKind::backward_input}) {
      const Action compute{action.chunk, kind, action.microbatch};
      if ((kind == ActionKind::forward) != is_forward(step) || !computes.contains(compute)) continue;
      return (is_send(step) ? sends(compute, num_chunks_) : receives(compute, num_chunks_)) ? computes.find(compute)
                                                                                            : Position{};
    }
    return {};
  }

  PositionTable message_positions(const PositionTable& computes) const {
    PositionTable messages(num_chunks_, num_microbatches_);
    for_each_step([&](Position position, const Step& step) {
      if (step.kind == StepKind::compute) return;
      const std::string name = to_string(step);
      const Position compute = compute_of(step, computes);
      if (!compute.exists() || compute.rank != position.rank)
        fail(position, fmt::format("program: rank {} has {}, but no step of it {}", position.rank, name,
                                   is_send(step) ? "makes what is sent" : "needs what is received"));
      if (is_send(step) && position.index < compute.index)
        fail(compute, fmt::format("program: rank {} has {} before {}, which makes what is sent", position.rank, name,
                                  to_string(step_at(compute))));
      if (!is_send(step) && position.index > compute.index)
        fail(compute, fmt::format("program: rank {} posts {} after {}, which needs it", position.rank, name,
                                  to_string(step_at(compute))));
      if (messages.add(key(step), position).exists())
        fail(position, fmt::format("program: rank {} has {} twice", position.rank, name));
    });
    return messages;
  }

  void check_all_there(const PositionTable& messages) const {
    if (num_ranks_ == 1) return;
    for_each_step([&](Position position, const Step& step) {
      if (step.kind != StepKind::compute) return;
      for (const bool send : {false, true}) {
        if (!(send ? sends(step.action, num_chunks_) : receives(step.action, num_chunks_))) continue;
        const Step expected = message(send, step.action);
        if (!messages.contains(key(expected)))
          fail(position,
               fmt::format("program: {} is missing on rank {}; {} waits for it on rank {}", to_string(expected),
                           position.rank, to_string(partner(expected)), partner(expected).action.chunk % num_ranks_));
      }
    });
  }

  // Two ranks match the messages of one chunk and direction in the order in which they post them.
  void check_message_order() const {
    struct End {
      Position at;
      int microbatch;
    };
    // [direction][hop c -> c + 1 or back][0: sent, 1: received]
    std::array<std::vector<std::array<std::vector<End>, 2>>, 2> ends;
    for (auto& hops : ends) hops.resize(static_cast<size_t>(num_chunks_));
    for_each_step([&](Position position, const Step& step) {
      if (step.kind == StepKind::compute) return;
      const size_t direction = is_forward(step) ? 0 : 1;
      const int hop = std::min(step.action.chunk, partner(step).action.chunk);
      ends[direction][static_cast<size_t>(hop)][is_send(step) ? 0 : 1].push_back({position, step.action.microbatch});
    });
    for (const auto& hops : ends)
      for (const auto& [sent, received] : hops)
        for (size_t i = 0; i < std::min(sent.size(), received.size()); ++i)
          if (sent[i].microbatch != received[i].microbatch)
            fail(received[i].at,
                 fmt::format("program: order error: rank {} posts {} where rank {} has {}: they are message {} of "
                             "their chunk and direction",
                             received[i].at.rank, to_string(step_at(received[i].at)), sent[i].at.rank,
                             to_string(step_at(sent[i].at)), i));
  }

  // A compute step waits for the send of what it needs; everything else goes on at once.
  void check_progress(const PositionTable& messages) const {
    const auto needs = [&](int rank, int index, auto&& need) {
      const Step& step = step_at({rank, index});
      if (num_ranks_ == 1 || step.kind != StepKind::compute || !receives(step.action, num_chunks_)) return;
      need(messages.find(key(partner(message(false, step.action)))));
    };
    const std::vector<int> reached = walk(program_, needs, [](int, int) {});
    const auto why = [&](int rank) {
      Position send;
      needs(rank, reached[static_cast<size_t>(rank)], [&](Position position) { send = position; });
      return send;
    };
    for (int stuck = 0; stuck < num_ranks_; ++stuck) {
      if (reached[static_cast<size_t>(stuck)] == static_cast<int>(program_[static_cast<size_t>(stuck)].size()))
        continue;
      const std::vector<int> cycle = waiting_cycle(stuck, program_.size(), why);
      const auto waits_at = [&](int rank) { return Position{rank, reached[static_cast<size_t>(rank)]}; };
      fail(waits_at(cycle[0]), "program: " + describe_deadlock(cycle, [&](int rank) {
                                 return fmt::format("rank {} waits at {} for {} of rank {}", rank,
                                                    to_string(step_at(waits_at(rank))), to_string(step_at(why(rank))),
                                                    why(rank).rank);
                               }));
    }
  }

  const Program& program_;
  int num_ranks_, num_chunks_, num_microbatches_ = 0;
  bool forward_only_ = true;
  Schedule computes_;
};

}  // namespace

void validate(const Program& program, int num_chunks) {
  ProgramValidator(program, num_chunks).run();
}

}  // namespace lamina::pipeline
