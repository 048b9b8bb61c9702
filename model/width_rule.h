// The maximal-update rule (mup): how initial values and learning rates follow the width, so that what one size needs serves the next.
// Sources: Yang and others, Tensor Programs V (arXiv 2203.03466, table 3); Yang, Simon and Bernstein, A Spectral Condition for
// Feature Learning (arXiv 2310.17813), for updates that are orthogonal matrices.
#pragma once

#include "configs/schema/config.h"
#include "model/parameters.h"

namespace lamina::model {

// Of a tensor, with r = hidden_size / mup_base_width; all 1 where r is 1, without mup_base_width, for vectors and the embedding. An activation changes
// in a step by an amount that does not depend on r when
//   matrix from a wide input to a wide output   init r^-1/2, AdamW r^-1, Muon r^-1/2
//   from a wide input to a fixed number         init r^-1,   AdamW r^-1, Muon r^-1/2 x g
//   from a fixed number to a wide output        init 1,      AdamW 1,    Muon r^1/2 x g
// where g makes up for the factor that Muon's updates have here, 0.2 sqrt(longer side): g = sqrt(longer side at the base / longer side).
// It is for widths that grow together: hidden_size, intermediate sizes and the number of heads, with heads, ranks and experts as they
// are. It says nothing of depth, of batch size and of the length of a run.
struct WidthFactors {
  double init = 1;  // of initializer_range
  // Of the learning rate: where an update moves every element by about the rate, as AdamW does; where it is an orthogonal matrix.
  double elementwise = 1;
  double orthogonal = 1;
};
WidthFactors width_factors(const ModelConfig& config, const ParameterSpec& spec);

}  // namespace lamina::model
