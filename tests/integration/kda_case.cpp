// Runs Kimi Delta Attention, both directions, on the operands in a folder, in fp32 and bf16 by the fastest version and in fp64 by
// the reference.
//   kda_case FOLDER
// FOLDER/shape holds "batch tokens heads key_dim value_dim scale"; q, k, v, g, beta, initial_state, d_o and d_final_state are raw
// float64 with the shapes of core/ops/kda/kda.h, document_starts, if there, raw int32. Results are raw float64: NAME.DTYPE.
#include <cstdio>
#include <exception>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "core/ops/kda/kda.h"

namespace lamina {
namespace {

template <class T>
std::vector<T> read_values(const std::string& path, int64_t count) {
  std::vector<T> out(static_cast<size_t>(count));
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size() * sizeof(T)));
  if (!file || file.peek() != std::ifstream::traits_type::eof()) {
    throw Error("{}: expected {} values of {} bytes", path, count, sizeof(T));
  }
  return out;
}

// Tensors of one run, by name.
class Case {
 public:
  Case(std::string folder, DType dtype) : folder_(std::move(folder)), dtype_(dtype) {
    std::ifstream file(folder_ + "/shape");
    int64_t batch = 0, tokens = 0, heads = 0, d_k = 0, d_v = 0;
    if (!(file >> batch >> tokens >> heads >> d_k >> d_v >> scale_))
      throw Error("{}/shape: expected six numbers", folder_);
    key_ = {batch, tokens, heads, d_k};
    value_ = {batch, tokens, heads, d_v};
    scalar_ = {batch, tokens, heads};
    state_ = {batch, heads, d_k, d_v};
  }

  void run() {
    const DType acc = accumulation_dtype(dtype_);
    const TensorView q = read("q", dtype_, key_), k = read("k", dtype_, key_), v = read("v", dtype_, value_);
    const TensorView g = read("g", acc, key_), beta = read("beta", acc, scalar_);
    const TensorView initial = read("initial_state", acc, state_), starts = read_starts();
    const TensorView d_o = read("d_o", dtype_, value_), d_final = read("d_final_state", acc, state_);
    Stream stream;
    Arena scratch(Device{}, nullptr, "case");
    ops::RefusalLog refusals;
    ops::OpContext ctx{stream, scratch, refusals,
                       dtype_ == DType::f64 ? ops::Backend::reference : ops::Backend::fastest};
    ops::kda_forward(
        ctx, {q, k, v, g, beta, scale_, starts, initial, make("o", dtype_, value_), make("final_state", acc, state_)});
    ops::kda_backward(ctx, {q, k, v, g, beta, scale_, starts, initial, d_o, d_final, make("dq", dtype_, key_),
                            make("dk", dtype_, key_), make("dv", dtype_, value_), make("dg", acc, key_),
                            make("dbeta", acc, scalar_), make("d_initial_state", acc, state_)});
    for (const char* name : {"o", "final_state", "dq", "dk", "dv", "dg", "dbeta", "d_initial_state"}) write(name);
  }

 private:
  TensorView make(const std::string& name, DType dtype, const Shape& shape) {
    const auto [at, added] =
        tensors_.emplace(name, Buffer(shape.num_elements() * size_of(dtype), Device{}, nullptr, "case"));
    return views_[name] = TensorView(at->second.data(), dtype, shape);
  }
  TensorView read(const std::string& name, DType dtype, const Shape& shape) {
    const TensorView view = make(name, dtype, shape);
    const auto values = read_values<double>(folder_ + "/" + name, shape.num_elements());
    for (int64_t i = 0; i < shape.num_elements(); ++i) {
      const double value = values[static_cast<size_t>(i)];
      if (dtype == DType::f64) view.as<double>()[i] = value;
      if (dtype == DType::f32) view.as<float>()[i] = static_cast<float>(value);
      if (dtype == DType::bf16) view.as<bf16>()[i] = bf16(static_cast<float>(value));
    }
    return view;
  }
  TensorView read_starts() {
    const std::string path = folder_ + "/document_starts";
    if (!std::ifstream(path)) return {};
    const TensorView view = make("document_starts", DType::i32, {key_[0], key_[1]});
    const auto values = read_values<int32_t>(path, view.num_elements());
    std::copy(values.begin(), values.end(), view.as<int32_t>());
    return view;
  }
  void write(const std::string& name) const {
    const TensorView& view = views_.at(name);
    std::vector<double> values;
    for (int64_t i = 0; i < view.num_elements(); ++i) {
      if (view.dtype == DType::f64) values.push_back(view.as<double>()[i]);
      if (view.dtype == DType::f32) values.push_back(static_cast<double>(view.as<float>()[i]));
      if (view.dtype == DType::bf16) values.push_back(static_cast<double>(view.as<bf16>()[i]));
    }
    const std::string path = fmt::format("{}/{}.{}", folder_, name, name_of(dtype_));
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(double)));
    if (!file.flush()) throw Error("{}: cannot be written", path);
  }

  std::string folder_;
  DType dtype_;
  Shape key_, value_, scalar_, state_;
  double scale_ = 0;
  std::map<std::string, Buffer> tensors_;
  std::map<std::string, TensorView> views_;
};

}  // namespace
}  // namespace lamina

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: kda_case FOLDER\n");
    return 2;
  }
  try {
    for (const lamina::DType dtype : {lamina::DType::f32, lamina::DType::bf16, lamina::DType::f64}) {
      lamina::Case(argv[1], dtype).run();
    }
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
  }
  return 0;
}
