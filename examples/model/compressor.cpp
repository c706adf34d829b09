#include "examples/model/compressor.hpp"

#include <cmath>

namespace model {
namespace {

double deviation_for(std::int64_t inputs) {
  return 1.0 / std::sqrt(static_cast<double>(inputs));
}

}  // namespace

Compressor::Compressor(Parameters& parameters, const cpnsa::Config& config, std::int64_t dim, std::int64_t hidden)
    : parameters_(parameters),
      heads_(config.num_kv_heads),
      block_(config.compress_block),
      dim_(dim),
      hidden_(hidden),
      pos_(parameters.add_normal(heads_ * block_, dim, 0.02)),
      w1_(parameters.add_normal(heads_ * block_ * dim, hidden, deviation_for(block_ * dim))),
      b1_(parameters.add_constant(heads_, hidden, 0.0)),
      w2_(parameters.add_normal(heads_ * hidden, dim, deviation_for(hidden))),
      b2_(parameters.add_constant(heads_, dim, 0.0)) {}

cpnsa::CompressorTensors Compressor::values() const {
  return views(&Parameters::rounded);
}

cpnsa::CompressorTensors Compressor::gradients() const {
  return views(&Parameters::gradient);
}

cpnsa::CompressorTensors Compressor::views(TensorView (Parameters::*of)(const Weight&) const) const {
  cpnsa::CompressorTensors tensors;
  tensors.pos = shaped((parameters_.*of)(pos_), {heads_, block_, dim_});
  tensors.w1 = shaped((parameters_.*of)(w1_), {heads_, block_ * dim_, hidden_});
  tensors.b1 = (parameters_.*of)(b1_);
  tensors.w2 = shaped((parameters_.*of)(w2_), {heads_, hidden_, dim_});
  tensors.b2 = (parameters_.*of)(b2_);
  return tensors;
}

}  // namespace model
