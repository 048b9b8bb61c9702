// A stage: a range of sublayers with their residual scheme, and the embedding and head when it has them. Runs one
// micro-batch forward and backward; parameter gradients accumulate over micro-batches in the flat gradient buffers.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "model/mla.h"
#include "model/mlp.h"
#include "model/residual.h"

namespace lamina::model {

// Sums over tokens that the log needs, per site; the trainer adds them over micro-batches and ranks.
struct LayerSums {
  double hidden_square = 0;           // sum of h^2 over tokens and channels, h being what the scheme hands over
  double output_square = 0;           // of the sublayer's output
  double gradient_square = 0;         // of the loss's gradient with respect to that output
  std::vector<double> depth_weights;  // sum over micro-batches of the mean over tokens
};

struct StageOptions {
  const ModelConfig& config;
  DType dtype;
  Recompute recompute = Recompute::none;
  Device device;
  MemoryLedger* ledger = nullptr;
};

class Stage {
 public:
  Stage(const StageOptions& options, Parameters& parameters);
  ~Stage();

  // Loss only, or loss and (with train) what backward needs. tokens, targets [num_tokens] i32 on the device;
  // token_loss [num_tokens] acc is written. grad_scale: the weight of one token's loss in the total.
  struct Batch {
    BatchShape shape;
    TensorView tokens, targets, token_loss;
    double grad_scale = 0;
  };
  void forward(ops::OpContext& ctx, const Batch& batch, bool train, std::vector<LayerSums>* sums = nullptr);
  // Once after each forward with train. `ready(parameter)` is called for each use of a parameter as soon as this
  // micro-batch's gradient of it is complete: once, or twice for a tied embedding.
  void backward(ops::OpContext& ctx, const Batch& batch, const std::function<void(int)>& ready = {},
                std::vector<LayerSums>* sums = nullptr);

  // The head's input (after the final norm) for tokens without targets: [num_tokens, hidden_size], valid until the next call.
  TensorView forward_hidden(ops::OpContext& ctx, const BatchShape& shape, TensorView tokens);
  TensorView head_weight() const { return head_; }

  int num_sites() const { return static_cast<int>(sites_.size()); }
  const std::vector<int>& sublayer_parameters(int sublayer) const;  // indices, PreNorm and depth query included
  // How often backward reports each parameter per micro-batch.
  std::vector<int> uses_per_parameter() const;

 private:
  struct Layer {
    Mla mixer;
    Mlp mlp;
  };
  struct LayerSaved {
    Mla::Saved mixer;
    Mlp::Saved mlp;
  };

  TensorView run_sublayers(ops::OpContext& ctx, const BatchShape& shape, TensorView tokens,
                           std::vector<LayerSums>* sums);
  void run_sublayer(ops::OpContext& ctx, const BatchShape& shape, int sublayer, TensorView x, TensorView y);
  void sublayer_backward(ops::OpContext& ctx, const BatchShape& shape, int sublayer);
  void build_sites(const ModelConfig& config, Parameters& parameters);

  ModelConfig config_;
  DType dtype_;
  Recompute recompute_;
  Parameters& parameters_;
  std::vector<Site> sites_;
  std::vector<Layer> layers_;
  std::vector<LayerSaved> saved_;
  std::unique_ptr<ResidualPass> pass_;
  Arena keep_;
  TensorView embedding_, d_embedding_, head_, d_head_, d_head_input_;
  int embedding_index_ = -1, head_index_ = -1;
  std::vector<std::vector<int>> sublayer_parameters_;
};

}  // namespace lamina::model
