// The recurrence token by token, in three steps (kda.h's formula multiplied out):
//   S~ = Diag(exp g) S,   r = beta (v - S~^T k),   S = S~ + k r^T,   o = scale S^T q
// and its adjoint, walking back over the states.
#include "core/ops/kda/implementations.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/ops/document_starts.h"
#include "core/ops/rows.h"

namespace lamina::ops::ref {
namespace {

// Of how many tokens the states are kept at once on the way back; before each such span one state is kept.
constexpr int64_t span = 64;

// One head of one sequence.
template <class Args, class T>
class Head {
 public:
  using A = acc_t<T>;
  Head(const Args& args, int64_t batch, int64_t head)
      : args_(args), batch_(batch), head_(head), d_k(args.q.size(3)), d_v(args.v.size(3)) {}

  template <class E>
  E* at(const TensorView& view, int64_t t) const {
    return view.template as<E>() + batch_ * view.stride(0) + t * view.stride(1) + head_ * view.stride(2);
  }
  A* state_of(const TensorView& states) const {
    return states.as<A>() + (batch_ * args_.q.size(2) + head_) * d_k * d_v;
  }
  Row<A> row(const TensorView& view, int64_t t) const {
    const T* from = at<T>(view, t);
    Row<A> out(static_cast<size_t>(view.size(3)));
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<A>(from[i]);
    return out;
  }

  // S~, then v - S~^T k.
  Row<A> decay(int64_t t, A* state) const {
    const A* g = at<A>(args_.g, t);
    const Row<A> k = row(args_.k, t);
    Row<A> error = row(args_.v, t);
    for (int64_t i = 0; i < d_k; ++i) {
      const A factor = std::exp(g[i]);
      for (int64_t j = 0; j < d_v; ++j) {
        state[i * d_v + j] *= factor;
        error[static_cast<size_t>(j)] -= k[static_cast<size_t>(i)] * state[i * d_v + j];
      }
    }
    return error;
  }
  // S
  void write(int64_t t, const Row<A>& error, A* state) const {
    const A beta = *at<A>(args_.beta, t);
    const Row<A> k = row(args_.k, t);
    for (int64_t i = 0; i < d_k; ++i) {
      for (int64_t j = 0; j < d_v; ++j) {
        state[i * d_v + j] += k[static_cast<size_t>(i)] * beta * error[static_cast<size_t>(j)];
      }
    }
  }
  void advance(int64_t t, A* state) const { write(t, decay(t, state), state); }

 private:
  const Args& args_;
  int64_t batch_, head_;

 public:
  const int64_t d_k, d_v;
};

template <class T>
void forward(const KdaForward& args, int64_t batch, int64_t index) {
  using A = acc_t<T>;
  const Head<KdaForward, T> head(args, batch, index);
  const int64_t size = head.d_k * head.d_v;
  std::vector<A> state(static_cast<size_t>(size));
  if (args.initial_state) std::copy_n(head.state_of(args.initial_state), size, state.data());
  for (int64_t t = 0; t < args.q.size(1); ++t) {
    if (t > 0 && document_start(args.document_starts, batch, t) == t) std::fill(state.begin(), state.end(), A(0));
    head.advance(t, state.data());
    const Row<A> q = head.row(args.q, t);
    T* o = head.template at<T>(args.o, t);
    for (int64_t j = 0; j < head.d_v; ++j) {
      A sum = 0;
      for (int64_t i = 0; i < head.d_k; ++i)
        sum += q[static_cast<size_t>(i)] * state[static_cast<size_t>(i * head.d_v + j)];
      o[j] = round_to<T>(static_cast<A>(args.scale) * sum);
    }
  }
  if (args.final_state) std::copy_n(state.data(), size, head.state_of(args.final_state));
}

// The adjoint of one token: `before` is S~, `after` is S, `d_state` turns from the gradient of S into that of the state before.
template <class T>
void backward_token(const KdaBackward& args, const Head<KdaBackward, T>& head, int64_t t, const Row<acc_t<T>>& error,
                    const acc_t<T>* before, const acc_t<T>* after, acc_t<T>* d_state) {
  using A = acc_t<T>;
  const Row<A> q = head.row(args.q, t), k = head.row(args.k, t), d_o = head.row(args.d_o, t);
  const A beta = *head.template at<A>(args.beta, t), scale = static_cast<A>(args.scale);
  const A* g = head.template at<A>(args.g, t);
  T *dq = head.template at<T>(args.dq, t), *dk = head.template at<T>(args.dk, t);
  T* dv = head.template at<T>(args.dv, t);
  A* dg = head.template at<A>(args.dg, t);
  const auto d_v = static_cast<size_t>(head.d_v);
  Row<A> y(d_v);  // the gradient of r
  for (size_t i = 0; i < k.size(); ++i) {
    A sum = 0;
    for (size_t j = 0; j < d_v; ++j) {
      sum += after[i * d_v + j] * d_o[j];
      d_state[i * d_v + j] += scale * q[i] * d_o[j];
      y[j] += k[i] * d_state[i * d_v + j];
    }
    dq[i] = round_to<T>(scale * sum);
  }
  A dbeta = 0;
  for (size_t j = 0; j < d_v; ++j) {
    dv[j] = round_to<T>(beta * y[j]);
    dbeta += y[j] * error[j];
  }
  *head.template at<A>(args.dbeta, t) = dbeta;
  for (size_t i = 0; i < k.size(); ++i) {
    A sum_k = 0, sum_g = 0;
    const A factor = std::exp(g[i]);
    for (size_t j = 0; j < d_v; ++j) {
      A& d = d_state[i * d_v + j];
      sum_k += beta * (d * error[j] - before[i * d_v + j] * y[j]);
      d -= beta * k[i] * y[j];
      sum_g += d * before[i * d_v + j];
      d *= factor;
    }
    dk[i] = round_to<T>(sum_k);
    dg[i] = sum_g;
  }
}

// Tokens [begin, end), at most `span` of them, from the state before them.
template <class T>
void backward_span(const KdaBackward& args, const Head<KdaBackward, T>& head, int64_t begin, int64_t end,
                   std::vector<acc_t<T>> state, acc_t<T>* d_state) {
  using A = acc_t<T>;
  std::vector<std::vector<A>> before, after;
  std::vector<Row<A>> errors;
  for (int64_t t = begin; t < end; ++t) {
    errors.push_back(head.decay(t, state.data()));
    before.push_back(state);
    head.write(t, errors.back(), state.data());
    after.push_back(state);
  }
  for (int64_t t = end - 1; t >= begin; --t) {
    const auto i = static_cast<size_t>(t - begin);
    backward_token<T>(args, head, t, errors[i], before[i].data(), after[i].data(), d_state);
  }
}

template <class T>
void backward(const KdaBackward& args, int64_t batch, int64_t index) {
  using A = acc_t<T>;
  const Head<KdaBackward, T> head(args, batch, index);
  const int64_t size = head.d_k * head.d_v, num_tokens = args.q.size(1);
  std::vector<A> state(static_cast<size_t>(size)), d_state(static_cast<size_t>(size));
  if (args.initial_state) std::copy_n(head.state_of(args.initial_state), size, state.data());
  std::vector<int64_t> begins;
  std::vector<std::vector<A>> states;  // before each span; a span ends where a document does
  for (int64_t t = 0; t < num_tokens; ++t) {
    const bool starts = t > 0 && document_start(args.document_starts, batch, t) == t;
    if (starts) std::fill(state.begin(), state.end(), A(0));
    if (t == 0 || starts || t - begins.back() == span) {
      begins.push_back(t);
      states.push_back(state);
    }
    head.advance(t, state.data());
  }
  if (args.d_final_state) std::copy_n(head.state_of(args.d_final_state), size, d_state.data());
  for (size_t i = begins.size(); i-- > 0;) {
    const int64_t end = i + 1 < begins.size() ? begins[i + 1] : num_tokens;
    backward_span<T>(args, head, begins[i], end, states[i], d_state.data());
    const bool starts = begins[i] > 0 && document_start(args.document_starts, batch, begins[i]) == begins[i];
    if (starts) std::fill(d_state.begin(), d_state.end(), A(0));
  }
  if (args.d_initial_state) std::copy_n(d_state.data(), size, head.state_of(args.d_initial_state));
}

template <class Args, class Run>
void each_head(const Args& args, Run&& run) {
  for (int64_t batch = 0; batch < args.q.size(0); ++batch) {
    for (int64_t head = 0; head < args.q.size(2); ++head) {
      visit_float(args.q.dtype, [&]<class T>(T type) { run(type, batch, head); });
    }
  }
}

}  // namespace

void kda_forward(OpContext&, const KdaForward& args) {
  each_head(args, [&]<class T>(T, int64_t batch, int64_t head) { forward<T>(args, batch, head); });
}
void kda_backward(OpContext&, const KdaBackward& args) {
  each_head(args, [&]<class T>(T, int64_t batch, int64_t head) { backward<T>(args, batch, head); });
}

}  // namespace lamina::ops::ref
