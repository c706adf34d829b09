#pragma once

#include "cpnsa/attention.hpp"
#include "examples/model/parameters.hpp"

namespace model {

/// The summaries before training: of random weights, or close to the sum of the rows that they cover.
enum class FirstSummaries { random, sums };

/// The parameters of the mlp compressor of keys or of values. The library reads them in Parameters and writes their
/// gradients there.
class Compressor {
 public:
  Compressor(Parameters& parameters, const cpnsa::Config& config, std::int64_t dim, std::int64_t hidden,
             FirstSummaries first);

  cpnsa::CompressorTensors values() const;
  cpnsa::CompressorTensors gradients() const;

 private:
  void add_sums();
  cpnsa::CompressorTensors views(TensorView (Parameters::*of)(const Weight&) const) const;

  Parameters& parameters_;
  std::int64_t num_kv_heads_, block_, dim_, hidden_;
  Weight pos_, w1_, b1_, w2_, b2_;
};

}  // namespace model
