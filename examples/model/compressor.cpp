#include "examples/model/compressor.hpp"

#include <cmath>
#include <utility>

#include "cpnsa/error.hpp"

namespace model {
namespace {

double deviation_for(std::int64_t inputs, FirstSummaries first) {
  return (first == FirstSummaries::sums ? 0.1 : 1.0) / std::sqrt(static_cast<double>(inputs));
}

}  // namespace

Compressor::Compressor(Parameters& parameters, const cpnsa::Config& config, std::int64_t dim, std::int64_t hidden,
                       FirstSummaries first)
    : parameters_(parameters),
      num_kv_heads_(config.num_kv_heads),
      block_(config.compress_block),
      dim_(dim),
      hidden_(hidden),
      pos_(parameters.add_normal(num_kv_heads_ * block_, dim, 0.02)),
      w1_(parameters.add_normal(num_kv_heads_ * block_ * dim, hidden, deviation_for(block_ * dim, first))),
      b1_(parameters.add_constant(num_kv_heads_, hidden, 0.0)),
      w2_(parameters.add_normal(num_kv_heads_ * hidden, dim, deviation_for(hidden, first))),
      b2_(parameters.add_constant(num_kv_heads_, dim, 0.0)) {
  if (first == FirstSummaries::sums) add_sums();
}

// The hidden channels are z and -z, where z is the sum: act(z) - act(-z) = z for silu, relu and gelu.
void Compressor::add_sums() {
  if (hidden_ < 2 * dim_)
    throw cpnsa::ConfigError(
        "compressor: summaries that start as sums need a hidden width of twice the head dimension");
  for (std::int64_t group = 0; group < num_kv_heads_; ++group)
    for (std::int64_t channel = 0; channel < dim_; ++channel)
      for (const auto& [hidden, sign] : {std::pair{channel, 1.0}, std::pair{channel + dim_, -1.0}}) {
        for (std::int64_t token = 0; token < block_; ++token)
          parameters_.add_to(w1_, (group * block_ + token) * dim_ + channel, hidden, sign);
        parameters_.add_to(w2_, group * hidden_ + hidden, channel, sign);
      }
}

cpnsa::CompressorTensors Compressor::values() const {
  return views(&Parameters::rounded);
}

cpnsa::CompressorTensors Compressor::gradients() const {
  return views(&Parameters::gradient);
}

cpnsa::CompressorTensors Compressor::views(TensorView (Parameters::*of)(const Weight&) const) const {
  cpnsa::CompressorTensors tensors;
  tensors.pos = shaped((parameters_.*of)(pos_), {num_kv_heads_, block_, dim_});
  tensors.w1 = shaped((parameters_.*of)(w1_), {num_kv_heads_, block_ * dim_, hidden_});
  tensors.b1 = (parameters_.*of)(b1_);
  tensors.w2 = shaped((parameters_.*of)(w2_), {num_kv_heads_, hidden_, dim_});
  tensors.b2 = (parameters_.*of)(b2_);
  return tensors;
}

}  // namespace model
