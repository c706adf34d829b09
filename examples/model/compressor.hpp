#pragma once

#include <memory>

#include "cpnsa/attention.hpp"
#include "examples/model/device_tensor.hpp"
#include "examples/model/parameters.hpp"

namespace model {

/// The parameters of one of cpnsa's mlp compressors, of the keys or of the values: part of Parameters, copied to the
/// device before each forward; their gradients come back after each backward.
class Compressor {
 public:
  Compressor(Parameters& parameters, const cpnsa::Config& config, std::int64_t dim, std::int64_t hidden,
             const Place& place);

  void upload();
  void add_gradients();

  cpnsa::CompressorTensors values() const;
  cpnsa::CompressorTensors gradients() const;

 private:
  struct Tensor {
    Tensor(const Weight& place_in_parameters, const Place& place, std::initializer_list<std::int64_t> shape)
        : weight(place_in_parameters), value(place, shape), gradient(place, shape) {}
    Weight weight;
    DeviceTensor value, gradient;
  };

  Parameters& parameters_;
  Tensor pos_, w1_, b1_, w2_, b2_;
};

}  // namespace model
