// A model small enough to write its backward by hand, run by the executor with what the routes send. Layers of two sublayers
// y = tanh(h W), read by Attention Residuals, in float64; an embedding in front, an output read and a loss behind.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "parallel/pipeline/block_routes.h"
#include "parallel/pipeline/executor.h"

namespace lamina::pipeline::toy {

constexpr int64_t tokens = 2, width = 3, elements = tokens * width;
constexpr double eps = 1e-5;

using Vec = std::vector<double>;  // [tokens, width] unless said otherwise
using Shared = std::shared_ptr<Vec>;

inline Vec zeros() {
  return Vec(elements, 0.0);
}
inline void add(Vec& to, const Vec& what) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += what[i];
}
inline TensorView view(Vec& values) {
  return {values.data(), DType::f64, {tokens, width}};
}

// Parameters, or their gradients.
struct Parameters {
  Vec embedding, head;             // [tokens, width]; [width]
  std::vector<Vec> weight, query;  // [sublayer]: [width, width]; [sublayer + 1]: [width], the last for the output read

  static Parameters random(int num_sublayers, uint64_t seed) {
    uint64_t next = 0;
    const auto draw = [&](int64_t count, double scale) {
      Vec values(static_cast<size_t>(count));
      for (double& value : values) value = scale * CounterRng(seed, 0).normal(next++);
      return values;
    };
    Parameters p{draw(elements, 1), draw(width, 1), {}, {}};
    for (int s = 0; s < num_sublayers; ++s) p.weight.push_back(draw(width * width, 0.6));
    for (int s = 0; s <= num_sublayers; ++s) p.query.push_back(draw(width, 1));
    return p;
  }
  static Parameters zero(int num_sublayers) {
    Parameters p = random(num_sublayers, 0);
    for (Vec* v : p.all()) std::fill(v->begin(), v->end(), 0.0);
    return p;
  }
  std::vector<Vec*> all() {
    std::vector<Vec*> list{&embedding, &head};
    for (Vec& v : weight) list.push_back(&v);
    for (Vec& v : query) list.push_back(&v);
    return list;
  }
};

struct Read {
  std::vector<double> alpha, rstd, dot;  // [token, source]
  Vec h;
};

inline Read read(const std::vector<const Vec*>& sources, const Vec& query) {
  const size_t n = sources.size();
  Read out{std::vector<double>(tokens * n), std::vector<double>(tokens * n), std::vector<double>(tokens * n), zeros()};
  for (size_t t = 0; t < tokens; ++t) {
    double total = 0;
    for (size_t j = 0; j < n; ++j) {
      double square = 0, dot = 0;
      for (size_t d = 0; d < width; ++d) {
        const double v = (*sources[j])[t * width + d];
        square += v * v;
        dot += v * query[d];
      }
      out.rstd[t * n + j] = 1 / std::sqrt(square / width + eps);
      out.dot[t * n + j] = dot;
      out.alpha[t * n + j] = std::exp(dot * out.rstd[t * n + j]);
      total += out.alpha[t * n + j];
    }
    for (size_t j = 0; j < n; ++j) {
      out.alpha[t * n + j] /= total;
      for (size_t d = 0; d < width; ++d) out.h[t * width + d] += out.alpha[t * n + j] * (*sources[j])[t * width + d];
    }
  }
  return out;
}

// Adds to d_sources, and to d_query.
inline void read_backward(const std::vector<const Vec*>& sources, const Vec& query, const Read& saved, const Vec& d_h,
                          const std::vector<Vec*>& d_sources, Vec& d_query) {
  const size_t n = sources.size();
  for (size_t t = 0; t < tokens; ++t) {
    std::vector<double> u(n, 0.0);
    double mean = 0;
    for (size_t j = 0; j < n; ++j) {
      for (size_t d = 0; d < width; ++d) u[j] += d_h[t * width + d] * (*sources[j])[t * width + d];
      mean += saved.alpha[t * n + j] * u[j];
    }
    for (size_t j = 0; j < n; ++j) {
      const double alpha = saved.alpha[t * n + j], rstd = saved.rstd[t * n + j];
      const double d_logit = alpha * (u[j] - mean);
      const double along = d_logit * saved.dot[t * n + j] * rstd * rstd * rstd / width;
      for (size_t d = 0; d < width; ++d) {
        const double v = (*sources[j])[t * width + d];
        (*d_sources[j])[t * width + d] += alpha * d_h[t * width + d] + d_logit * rstd * query[d] - along * v;
        d_query[d] += d_logit * rstd * v;
      }
    }
  }
}

// What a rank may do wrong, on purpose.
enum class Fault { none, drop_deposit, double_deposit, drop_kept_gradient };

class Rank final : public ChunkRunner {
 public:
  Rank(const ChunkSplit& split, const BlockLayout& blocks, const BlockRoutes& routes, Parameters& parameters)
      : split_(split),
        blocks_(blocks),
        routes_(routes),
        parameters_(parameters),
        gradients_(Parameters::zero(split.begin.back())) {}

  void run(const Action& action) override {
    using enum ActionKind;
    if (action.kind == forward) run_forward(action.chunk, action.microbatch);
    if (action.kind == backward || action.kind == backward_input) run_backward(action.chunk, action.microbatch);
    if (action.kind == backward || action.kind == backward_weight) run_weights(action.chunk, action.microbatch);
    if (during_run) during_run();
  }
  void receive_forward(int chunk, int m, HopViews& views) override {
    open(incoming_, chunk, m, routes(chunk).received.size(), views);
  }
  void send_forward(int chunk, int m, HopViews& views) override {
    std::vector<Shared>& sent = outgoing_[{chunk, m}];
    sent = {stream_out_.at({chunk, m})};
    stream_out_.erase({chunk, m});
    for (const int b : routes(chunk).sent) sent.push_back(values_.at(key(chunk, m, b)));
    show(sent, views);
  }
  void sent_forward(int chunk, int m) override { close(outgoing_, chunk, m); }
  void receive_backward(int chunk, int m, HopViews& views) override {
    open(d_outgoing_, chunk, m, routes(chunk).sent.size(), views);
  }
  void send_backward(int chunk, int m, HopViews& views) override { show(d_incoming_.at({chunk, m}), views); }
  void sent_backward(int chunk, int m) override { close(d_incoming_, chunk, m); }

  // After a pass without backward.
  void forget_forward_pass() {
    values_.clear();
    stream_in_.clear();
  }
  Parameters& gradients() { return gradients_; }
  double loss() const { return loss_; }
  int peak() const { return peak_; }
  size_t num_left() const {
    return values_.size() + d_values_.size() + stream_in_.size() + stream_out_.size() + pending_.size() +
           incoming_.size() + outgoing_.size() + d_incoming_.size() + d_outgoing_.size() + d_stream_.size();
  }
  Fault fault = Fault::none;
  std::function<void()> during_run;  // as a long kernel would call Executor::progress()

 private:
  using Place = std::pair<int, int>;      // chunk, micro-batch
  using Key = std::tuple<int, int, int>;  // cache, micro-batch, summary
  using Messages = std::map<Place, std::vector<Shared>>;

  struct Site {
    int sublayer = 0;  // the number of sublayers: the output read
    std::vector<Shared> sources;
    bool has_partial = false;  // the last source
    Read saved;
    Vec y;
  };
  struct Trace {
    std::vector<Site> sites;
    std::map<int, Shared> own;  // summaries that this chunk brings as the stream or finishes
    Shared stream;
  };
  struct WeightWork {
    int sublayer;
    Vec h, d_pre, d_query;
  };

  const ChunkRoutes& routes(int chunk) const { return routes_.chunks[static_cast<size_t>(chunk)]; }
  Key key(int chunk, int m, int summary) const { return {routes_.cache_of(chunk), m, summary}; }
  bool is_last(int chunk) const { return chunk + 1 == split_.num_chunks(); }

  static void show(const std::vector<Shared>& messages, HopViews& views) {
    views.stream = view(*messages.front());
    for (size_t i = 1; i < messages.size(); ++i) views.summaries.push_back(view(*messages[i]));
  }
  void open(Messages& where, int chunk, int m, size_t num_summaries, HopViews& views) {
    std::vector<Shared>& messages = where[{chunk, m}];
    LAMINA_CHECK(messages.empty(), "chunk {}, micro-batch {} is received twice", chunk, m);
    for (size_t i = 0; i <= num_summaries; ++i) messages.push_back(std::make_shared<Vec>(elements, std::nan("")));
    show(messages, views);
  }
  void close(Messages& where, int chunk, int m) {
    LAMINA_CHECK(where.erase({chunk, m}) == 1, "chunk {}, micro-batch {} was not being sent", chunk, m);
  }
  std::vector<Shared> take(Messages& where, int chunk, int m) {
    std::vector<Shared> messages = std::move(where.at({chunk, m}));
    where.erase({chunk, m});
    return messages;
  }
  void put(int chunk, int m, int summary, Shared value) {
    const bool is_new = values_.emplace(key(chunk, m, summary), std::move(value)).second;
    LAMINA_CHECK(is_new, "chunk {}: summary {} is there already", chunk, summary);
    peak_ = std::max(peak_, static_cast<int>(values_.size()));
  }
  void deposit(int chunk, int m, int summary, const Vec& gradient) {
    if (fault == Fault::drop_deposit && std::exchange(fault, Fault::none) == Fault::drop_deposit) return;
    const auto [entry, is_new] = d_values_.try_emplace(key(chunk, m, summary), zeros());
    add(entry->second, gradient);
    if (fault != Fault::double_deposit) return;
    fault = Fault::none;
    add(entry->second, gradient);
  }
  Vec take_gradient(int chunk, int m, int summary) {
    const auto found = d_values_.find(key(chunk, m, summary));
    if (found == d_values_.end()) return zeros();
    Vec gradient = std::move(found->second);
    d_values_.erase(found);
    return gradient;
  }

  // The micro-batches differ by a factor per element of the embedding.
  static double scale(int m, size_t i) { return 1 + 0.3 * std::sin(static_cast<double>(i) + 2.0 * m); }
  Shared embed(int m) const {
    auto out = std::make_shared<Vec>(parameters_.embedding);
    for (size_t i = 0; i < out->size(); ++i) (*out)[i] *= scale(m, i);
    return out;
  }

  Trace trace(int chunk, int m) const;
  void run_forward(int chunk, int m);
  void run_backward(int chunk, int m);
  void run_weights(int chunk, int m);
  void site_backward(const Site& site, Vec& d_stream, std::map<int, Vec>& d_summaries, std::vector<WeightWork>& work);

  const ChunkSplit& split_;
  const BlockLayout& blocks_;
  const BlockRoutes& routes_;
  Parameters& parameters_;
  Parameters gradients_;
  double loss_ = 0;
  int peak_ = 0;
  std::map<Key, Shared> values_;
  std::map<Key, Vec> d_values_;
  std::map<Place, Shared> stream_in_, stream_out_, d_stream_;  // d_stream_: handed over without a message
  std::map<Place, std::vector<WeightWork>> pending_;
  Messages incoming_, outgoing_, d_incoming_, d_outgoing_;
};

inline Rank::Trace Rank::trace(int chunk, int m) const {
  Trace out;
  out.stream = stream_in_.at({chunk, m});
  const auto source = [&](int b) { return out.own.contains(b) ? out.own.at(b) : values_.at(key(chunk, m, b)); };
  const int begin = split_.begin[static_cast<size_t>(chunk)], end = split_.begin[static_cast<size_t>(chunk) + 1];
  const int num_sites = is_last(chunk) ? end + 1 : end;
  for (int s = begin; s < num_sites; ++s) {
    const bool is_output = s == split_.begin.back();
    const int block = is_output ? blocks_.num_blocks() - 1 : blocks_.block_of(s);
    const bool opens = !is_output && blocks_.opens_block(s);
    if (opens) out.own[block] = out.stream;
    Site site{s, {}, !opens, {}, {}};
    for (int b = 0; b <= block; ++b) site.sources.push_back(source(b));
    if (!opens) site.sources.push_back(out.stream);
    std::vector<const Vec*> sources;
    for (const Shared& value : site.sources) sources.push_back(value.get());
    site.saved = read(sources, parameters_.query[static_cast<size_t>(s)]);
    if (!is_output) {
      const Vec& weight = parameters_.weight[static_cast<size_t>(s)];
      site.y = zeros();
      for (size_t t = 0; t < tokens; ++t)
        for (size_t i = 0; i < width; ++i)
          for (size_t j = 0; j < width; ++j)
            site.y[t * width + j] += site.saved.h[t * width + i] * weight[i * width + j];
      for (double& y : site.y) y = std::tanh(y);
      auto next = std::make_shared<Vec>(site.y);
      if (!opens) add(*next, *out.stream);
      out.stream = next;
    }
    out.sites.push_back(std::move(site));
  }
  return out;
}

inline void Rank::run_forward(int chunk, int m) {
  if (chunk == 0) {
    stream_in_[{0, m}] = embed(m);
  } else if (incoming_.contains({chunk, m})) {
    const std::vector<Shared> messages = take(incoming_, chunk, m);
    stream_in_[{chunk, m}] = messages.front();
    for (size_t i = 0; i < routes(chunk).received.size(); ++i)
      put(chunk, m, routes(chunk).received[i], messages[i + 1]);
  } else {
    stream_in_[{chunk, m}] = stream_out_.at({chunk - 1, m});
    stream_out_.erase({chunk - 1, m});
  }
  const Trace traced = trace(chunk, m);
  std::vector<int> brought = routes(chunk).finished;
  if (routes(chunk).arrives_as_stream >= 0) brought.push_back(routes(chunk).arrives_as_stream);
  for (const int b : brought) put(chunk, m, b, traced.own.at(b));
  LAMINA_CHECK(brought.size() == traced.own.size(), "chunk {} finishes {} summaries, its routes say {}", chunk,
               traced.own.size(), brought.size());
  if (routes(chunk).keeps_leaving) put(chunk, m, routes(chunk).leaves_as_stream, traced.stream);
  if (!is_last(chunk)) {
    stream_out_[{chunk, m}] = traced.stream;
    return;
  }
  const Vec& h = traced.sites.back().saved.h;
  for (size_t t = 0; t < tokens; ++t) {
    double out = 0;
    for (size_t d = 0; d < width; ++d) out += h[t * width + d] * parameters_.head[d];
    loss_ += out * out;
  }
}

inline void Rank::site_backward(const Site& site, Vec& d_stream, std::map<int, Vec>& d_summaries,
                                std::vector<WeightWork>& work) {
  const auto s = static_cast<size_t>(site.sublayer);
  const bool is_output = s == parameters_.weight.size();
  WeightWork product{site.sublayer, site.saved.h, zeros(), Vec(width, 0.0)};
  Vec d_h = zeros();
  for (size_t t = 0; t < tokens; ++t) {
    if (is_output) {
      double out = 0;
      for (size_t d = 0; d < width; ++d) out += site.saved.h[t * width + d] * parameters_.head[d];
      for (size_t d = 0; d < width; ++d) d_h[t * width + d] = 2 * out * parameters_.head[d];
      product.d_pre[t * width] = 2 * out;  // of the one output
      continue;
    }
    for (size_t j = 0; j < width; ++j) {
      const double y = site.y[t * width + j];
      product.d_pre[t * width + j] = d_stream[t * width + j] * (1 - y * y);
      for (size_t i = 0; i < width; ++i)
        d_h[t * width + i] += product.d_pre[t * width + j] * parameters_.weight[s][i * width + j];
    }
  }
  std::vector<const Vec*> sources;
  std::vector<Vec*> d_sources;
  const size_t num_summaries = site.sources.size() - (site.has_partial ? 1 : 0);
  for (size_t j = 0; j < site.sources.size(); ++j) {
    sources.push_back(site.sources[j].get());
    d_sources.push_back(j < num_summaries ? &d_summaries.try_emplace(static_cast<int>(j), zeros()).first->second
                                          : &d_stream);
  }
  read_backward(sources, parameters_.query[s], site.saved, d_h, d_sources, product.d_query);
  // Where a block opens, what the stream was before is its newest summary.
  if (!site.has_partial) {
    d_stream = d_summaries.at(static_cast<int>(num_summaries) - 1);
    d_summaries.erase(static_cast<int>(num_summaries) - 1);
  }
  work.push_back(std::move(product));
}

inline void Rank::run_backward(int chunk, int m) {
  Vec d_stream = zeros();
  if (d_outgoing_.contains({chunk, m})) {
    const std::vector<Shared> messages = take(d_outgoing_, chunk, m);
    d_stream = *messages.front();
    for (size_t i = 0; i < routes(chunk).sent.size(); ++i) deposit(chunk, m, routes(chunk).sent[i], *messages[i + 1]);
  } else if (!is_last(chunk)) {
    d_stream = *d_stream_.at({chunk + 1, m});
    d_stream_.erase({chunk + 1, m});
  }
  if (routes(chunk).keeps_leaving) {
    const Vec kept = take_gradient(chunk, m, routes(chunk).leaves_as_stream);
    if (fault != Fault::drop_kept_gradient) add(d_stream, kept);
  }
  const Trace traced = trace(chunk, m);
  std::map<int, Vec> d_summaries;
  for (const auto& [b, value] : traced.own) d_summaries[b] = take_gradient(chunk, m, b);
  std::vector<WeightWork>& work = pending_[{chunk, m}];
  for (size_t i = traced.sites.size(); i-- > 0;) site_backward(traced.sites[i], d_stream, d_summaries, work);
  for (const auto& [b, gradient] : d_summaries) deposit(chunk, m, b, gradient);
  stream_in_.erase({chunk, m});
  for (const int b : routes(chunk).released)
    LAMINA_CHECK(values_.erase(key(chunk, m, b)) == 1, "chunk {}: summary {} is not there to release", chunk, b);

  if (chunk == 0) {
    for (size_t i = 0; i < elements; ++i) gradients_.embedding[i] += d_stream[i] * scale(m, i);
    return;
  }
  if (routes_.num_ranks == 1) {
    d_stream_[{chunk, m}] = std::make_shared<Vec>(std::move(d_stream));
    return;
  }
  std::vector<Shared>& messages = d_incoming_[{chunk, m}];
  messages = {std::make_shared<Vec>(std::move(d_stream))};
  for (const int b : routes(chunk).received) messages.push_back(std::make_shared<Vec>(take_gradient(chunk, m, b)));
}

inline void Rank::run_weights(int chunk, int m) {
  for (const WeightWork& work : pending_.at({chunk, m})) {
    const auto s = static_cast<size_t>(work.sublayer);
    add(gradients_.query[s], work.d_query);
    for (size_t t = 0; t < tokens; ++t)
      for (size_t i = 0; i < width; ++i) {
        const double h = work.h[t * width + i];
        if (s == gradients_.weight.size()) {
          gradients_.head[i] += h * work.d_pre[t * width];
          continue;
        }
        for (size_t j = 0; j < width; ++j) gradients_.weight[s][i * width + j] += h * work.d_pre[t * width + j];
      }
  }
  pending_.erase({chunk, m});
}

}  // namespace lamina::pipeline::toy
