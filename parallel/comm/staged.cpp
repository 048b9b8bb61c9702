#include "parallel/comm/staged.h"

#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <utility>

#include "core/device/cuda_device.h"
#include "core/device/staging_pool.h"

namespace lamina::comm {

namespace {

// An operation on the host whose result goes back to the device.
class StagedOperation final : public Request::State {
 public:
  StagedOperation(Staging in, Staging out) : in_(std::move(in)), out_(std::move(out)) {}
  // Here only when it is done or given up: not waited for a second time.
  ~StagedOperation() override { request_.give_up(); }

  Staging& out() { return out_; }
  void run(Request request) { request_ = std::move(request); }
  void returns(const TensorView& staged, const TensorView& result, const Stream& stream) {
    staged_ = staged;
    result_ = result;
    stream_ = stream;
  }

  bool test() override {
    if (!request_.test()) return false;
    finish();
    return true;
  }
  void wait() override {
    request_.wait();
    finish();
  }

 private:
  void finish() {
    if (result_) out_.copy(result_.data, staged_.data, result_.num_bytes(), stream_);
    result_ = TensorView();
  }

  Staging in_, out_;
  TensorView staged_, result_;
  Stream stream_;
  Request request_;
};

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(std::shared_ptr<Communicator> host, std::shared_ptr<StagingPool> pool)
      : host_(std::move(host)), pool_(std::move(pool)) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  Request send(TensorView view, int destination, int tag, Stream& stream) override;
  Request recv(TensorView view, int source, int tag, Stream& stream) override;
  Request all_reduce(TensorView inout, ReduceOp op, Stream& stream) override;
  Request reduce_scatter(TensorView in, TensorView out, ReduceOp op, Stream& stream) override;
  Request all_gather(TensorView in, TensorView out, Stream& stream) override;
  Request broadcast(TensorView inout, int root, Stream& stream) override;
  Request all_to_all(TensorView in, TensorView out, Stream& stream) override;
  Request all_to_all_v(TensorView in, std::span<const int64_t> send_counts, TensorView out,
                       std::span<const int64_t> receive_counts, Stream& stream) override;
  void barrier() override { host_->barrier(); }
  void progress() override { host_->progress(); }
  bool set_patient(bool patient) override { return host_->set_patient(patient); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<StagedCommunicator>(host_->split(color, key), pool_);
  }
  [[noreturn]] void abort(const std::string& reason) override {
    host_->abort(reason);
    std::abort();  // not reached; compilers don't see it through the pointer
  }
  int64_t take_bytes_sent() override { return host_->take_bytes_sent(); }

 private:
  static bool on_host(std::initializer_list<const TensorView*> views, const Stream& stream, const char* operation);
  static Request copy_alone(const TensorView& in, const TensorView& out, Stream& stream);
  Staging stage(int64_t num_bytes, Stream& stream) { return {pool_, num_bytes, stream}; }
  // The host's twin of a view, which fills the piece from its start.
  static TensorView twin_of(const TensorView& view, const Staging& staging) {
    return {staging.data(), view.dtype, {view.num_elements()}};
  }
  static void download(Staging& staging, const TensorView& to, const TensorView& from, Stream& stream) {
    staging.copy(to.data, from.data, from.num_bytes(), stream);
  }

  std::shared_ptr<Communicator> host_;
  std::shared_ptr<StagingPool> pool_;
};

// Where the operands of a call live, which is one place.
bool StagedCommunicator::on_host(std::initializer_list<const TensorView*> views, const Stream& stream,
                                 const char* operation) {
  const Device device = (*views.begin())->device;
  for (const TensorView* view : views)
    LAMINA_CHECK(view->device == device, "{} between host and device memory, or between two devices", operation);
  if (device.kind == DeviceKind::cpu) return true;
  LAMINA_CHECK(stream.device() == device, "{} of a view of a GPU on a stream that is not of that GPU", operation);
  for (const TensorView* view : views) {
    LAMINA_CHECK(view->is_contiguous(), "{} of {}, which is not contiguous", operation, view->to_string());
    LAMINA_CHECK(view->data != nullptr || view->num_elements() == 0, "{} of an empty view", operation);
  }
  return false;
}

// A group of one rank has nobody to send to: its results are its operands, which need not leave the device.
Request StagedCommunicator::copy_alone(const TensorView& in, const TensorView& out, Stream& stream) {
  LAMINA_CHECK(in.dtype == out.dtype && in.num_elements() == out.num_elements(), "{} into {} on one rank",
               in.to_string(), out.to_string());
  if (in.data != out.data) cuda::copy(out.data, in.data, in.num_bytes(), stream);
  return {};
}

Request StagedCommunicator::send(TensorView view, int destination, int tag, Stream& stream) {
  if (on_host({&view}, stream, "send")) return host_->send(view, destination, tag, stream);
  auto operation = std::make_unique<StagedOperation>(Staging(), stage(view.num_bytes(), stream));
  const TensorView staged = twin_of(view, operation->out());
  download(operation->out(), staged, view, stream);
  stream.synchronize();
  operation->run(host_->send(staged, destination, tag, stream));
  return Request(std::move(operation));
}

Request StagedCommunicator::recv(TensorView view, int source, int tag, Stream& stream) {
  if (on_host({&view}, stream, "recv")) return host_->recv(view, source, tag, stream);
  auto operation = std::make_unique<StagedOperation>(Staging(), stage(view.num_bytes(), stream));
  const TensorView staged = twin_of(view, operation->out());
  operation->returns(staged, view, stream);
  operation->run(host_->recv(staged, source, tag, stream));
  return Request(std::move(operation));
}

Request StagedCommunicator::all_reduce(TensorView inout, ReduceOp op, Stream& stream) {
  if (on_host({&inout}, stream, "all_reduce")) return host_->all_reduce(inout, op, stream);
  if (size() == 1) return {};
  auto operation = std::make_unique<StagedOperation>(Staging(), stage(inout.num_bytes(), stream));
  const TensorView staged = twin_of(inout, operation->out());
  download(operation->out(), staged, inout, stream);
  operation->returns(staged, inout, stream);
  stream.synchronize();
  operation->run(host_->all_reduce(staged, op, stream));
  return Request(std::move(operation));
}

Request StagedCommunicator::reduce_scatter(TensorView in, TensorView out, ReduceOp op, Stream& stream) {
  if (on_host({&in, &out}, stream, "reduce_scatter")) return host_->reduce_scatter(in, out, op, stream);
  if (size() == 1) return copy_alone(in, out, stream);
  LAMINA_CHECK(in.dtype == out.dtype && in.num_elements() == out.num_elements() * size(),
               "reduce_scatter of {} into {} over {} ranks", in.to_string(), out.to_string(), size());
  auto operation = std::make_unique<StagedOperation>(Staging(), stage(in.num_bytes(), stream));
  const TensorView staged = twin_of(in, operation->out());
  const TensorView part = staged.slice(0, rank() * out.num_elements(), (rank() + 1) * out.num_elements());
  download(operation->out(), staged, in, stream);
  operation->returns(part, out, stream);
  stream.synchronize();
  operation->run(host_->reduce_scatter(staged, part, op, stream));
  return Request(std::move(operation));
}

Request StagedCommunicator::all_gather(TensorView in, TensorView out, Stream& stream) {
  if (on_host({&in, &out}, stream, "all_gather")) return host_->all_gather(in, out, stream);
  if (size() == 1) return copy_alone(in, out, stream);
  LAMINA_CHECK(in.dtype == out.dtype && out.num_elements() == in.num_elements() * size(),
               "all_gather of {} into {} over {} ranks", in.to_string(), out.to_string(), size());
  auto operation = std::make_unique<StagedOperation>(Staging(), stage(out.num_bytes(), stream));
  const TensorView staged = twin_of(out, operation->out());
  const TensorView part = staged.slice(0, rank() * in.num_elements(), (rank() + 1) * in.num_elements());
  download(operation->out(), part, in, stream);
  operation->returns(staged, out, stream);
  stream.synchronize();
  operation->run(host_->all_gather(part, staged, stream));
  return Request(std::move(operation));
}

Request StagedCommunicator::broadcast(TensorView inout, int root, Stream& stream) {
  if (on_host({&inout}, stream, "broadcast")) return host_->broadcast(inout, root, stream);
  if (size() == 1 && root == 0) return {};
  auto operation = std::make_unique<StagedOperation>(Staging(), stage(inout.num_bytes(), stream));
  const TensorView staged = twin_of(inout, operation->out());
  if (rank() == root) {
    download(operation->out(), staged, inout, stream);
    stream.synchronize();
  } else {
    operation->returns(staged, inout, stream);
  }
  operation->run(host_->broadcast(staged, root, stream));
  return Request(std::move(operation));
}

Request StagedCommunicator::all_to_all(TensorView in, TensorView out, Stream& stream) {
  if (on_host({&in, &out}, stream, "all_to_all")) return host_->all_to_all(in, out, stream);
  LAMINA_CHECK(in.data != out.data || in.num_elements() == 0, "all_to_all in place");
  if (size() == 1) return copy_alone(in, out, stream);
  Staging sent = stage(in.num_bytes(), stream);
  const TensorView staged_in = twin_of(in, sent);
  download(sent, staged_in, in, stream);
  auto operation = std::make_unique<StagedOperation>(std::move(sent), stage(out.num_bytes(), stream));
  const TensorView staged_out = twin_of(out, operation->out());
  operation->returns(staged_out, out, stream);
  stream.synchronize();
  operation->run(host_->all_to_all(staged_in, staged_out, stream));
  return Request(std::move(operation));
}

Request StagedCommunicator::all_to_all_v(TensorView in, std::span<const int64_t> send_counts, TensorView out,
                                         std::span<const int64_t> receive_counts, Stream& stream) {
  if (on_host({&in, &out}, stream, "all_to_all_v"))
    return host_->all_to_all_v(in, send_counts, out, receive_counts, stream);
  LAMINA_CHECK(in.data != out.data || in.num_elements() == 0 || out.num_elements() == 0, "all_to_all_v in place");
  if (size() == 1) {
    LAMINA_CHECK(send_counts.size() == 1 && receive_counts.size() == 1 && send_counts[0] == in.num_elements() &&
                     receive_counts[0] == out.num_elements(),
                 "all_to_all_v of {} into {} on one rank with other counts", in.to_string(), out.to_string());
    return copy_alone(in, out, stream);
  }
  Staging sent = stage(in.num_bytes(), stream);
  const TensorView staged_in = twin_of(in, sent);
  download(sent, staged_in, in, stream);
  auto operation = std::make_unique<StagedOperation>(std::move(sent), stage(out.num_bytes(), stream));
  const TensorView staged_out = twin_of(out, operation->out());
  operation->returns(staged_out, out, stream);
  stream.synchronize();
  operation->run(host_->all_to_all_v(staged_in, send_counts, staged_out, receive_counts, stream));
  return Request(std::move(operation));
}

// Shared by the groups of a rank.
std::shared_ptr<StagingPool> make_pool(MemoryLedger* ledger) {
  constexpr StagingPool::Limits limits{std::numeric_limits<int64_t>::max(), 1};
  return std::make_shared<StagingPool>(ledger, "communication staging", limits);
}

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host, MemoryLedger* ledger) {
  LAMINA_CHECK(host != nullptr);
  return std::make_unique<StagedCommunicator>(std::move(host), make_pool(ledger));
}

std::unique_ptr<Communicator> make_staged_communicator(Communicator& host, MemoryLedger* ledger) {
  const std::shared_ptr<Communicator> borrowed(&host, [](Communicator*) {});
  return std::make_unique<StagedCommunicator>(borrowed, make_pool(ledger));
}

}  // namespace lamina::comm
