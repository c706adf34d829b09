#include "examples/model/compressor.hpp"

#include <cmath>

namespace model {
namespace {

double deviation_for(std::int64_t inputs) {
  return 1.0 / std::sqrt(static_cast<double>(inputs));
}

}  // namespace

Compressor::Compressor(Parameters& parameters, const cpnsa::Config& config, std::int64_t dim, std::int64_t hidden,
                       const Place& place)
    : parameters_(parameters),
      pos_(parameters.add_normal(config.num_kv_heads * config.compress_block, dim, 0.02), place,
           {config.num_kv_heads, config.compress_block, dim}),
      w1_(parameters.add_normal(config.num_kv_heads * config.compress_block * dim, hidden,
                                deviation_for(config.compress_block * dim)),
          place, {config.num_kv_heads, config.compress_block * dim, hidden}),
      b1_(parameters.add_constant(config.num_kv_heads, hidden, 0.0), place, {config.num_kv_heads, hidden}),
      w2_(parameters.add_normal(config.num_kv_heads * hidden, dim, deviation_for(hidden)), place,
          {config.num_kv_heads, hidden, dim}),
      b2_(parameters.add_constant(config.num_kv_heads, dim, 0.0), place, {config.num_kv_heads, dim}) {}

void Compressor::upload() {
  for (Tensor* tensor : {&pos_, &w1_, &b1_, &w2_, &b2_}) tensor->value.upload(parameters_.value(tensor->weight));
}

void Compressor::add_gradients() {
  std::vector<double> sums;
  for (Tensor* tensor : {&pos_, &w1_, &b1_, &w2_, &b2_}) {
    sums.resize(static_cast<std::size_t>(tensor->gradient.size()));
    tensor->gradient.download(sums.data());
    double* gradient = parameters_.gradient(tensor->weight);
    for (const double sum : sums) *gradient++ += sum;
  }
}

cpnsa::CompressorTensors Compressor::values() const {
  cpnsa::CompressorTensors tensors;
  tensors.pos = pos_.value.view();
  tensors.w1 = w1_.value.view();
  tensors.b1 = b1_.value.view();
  tensors.w2 = w2_.value.view();
  tensors.b2 = b2_.value.view();
  return tensors;
}

cpnsa::CompressorTensors Compressor::gradients() const {
  cpnsa::CompressorTensors tensors;
  tensors.pos = pos_.gradient.view();
  tensors.w1 = w1_.gradient.view();
  tensors.b1 = b1_.gradient.view();
  tensors.w2 = w2_.gradient.view();
  tensors.b2 = b2_.gradient.view();
  return tensors;
}

}  // namespace model
